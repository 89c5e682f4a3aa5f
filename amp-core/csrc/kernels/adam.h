// What adam.cu is started with: the options as they cross from Rust.

struct AmpAdam {
  double lr, beta1, beta2, eps, weight_decay;
  int decoupled;
};
