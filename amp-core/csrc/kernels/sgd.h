// What sgd.cu is started with: the options as they cross from Rust.

struct AmpSgd {
  double lr, momentum, dampening, weight_decay;
  int nesterov, first_step;
};
