// The arguments of sgd.cu: the options as Rust passes them.

struct AmpSgd {
  double lr, momentum, dampening, weight_decay;
  int nesterov, first_step;
};
