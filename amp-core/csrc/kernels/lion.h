// The arguments of lion.cu: the options as Rust passes them.

struct AmpLion {
  double lr, beta1, beta2, weight_decay;
};
