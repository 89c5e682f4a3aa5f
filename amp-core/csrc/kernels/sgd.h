// The options of an SGD step, as Rust passes them to the kernel of sgd.cu.

struct AmpSgd {
  double lr, momentum, dampening, weight_decay;
  int nesterov, first_step;
};
