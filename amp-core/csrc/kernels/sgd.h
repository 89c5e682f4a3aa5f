// The arguments of sgd.cu's kernels: the options as passed from Rust.

struct AmpSgd {
  double lr, momentum, dampening, weight_decay;
  int nesterov, first_step;
};
