// What lion.cu is started with: the options as they cross from Rust.

struct AmpLion {
  double lr, beta1, beta2, weight_decay;
};
