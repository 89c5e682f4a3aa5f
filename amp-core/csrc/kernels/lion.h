// The arguments of lion.cu's kernels: the options as passed from Rust.

struct AmpLion {
  double lr, beta1, beta2, weight_decay;
};
