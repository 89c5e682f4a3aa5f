// The arguments of rmsprop.cu's kernels: the options as passed from Rust.

struct AmpRmsprop {
  double lr, alpha, eps, weight_decay, momentum;
  int centered;
};
