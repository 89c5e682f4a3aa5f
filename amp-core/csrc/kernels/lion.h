// The options of a Lion step, as Rust passes them to the kernel of lion.cu.

struct AmpLion {
  double lr, beta1, beta2, weight_decay;
};
