// The arguments of rmsprop.cu: the options as Rust passes them.

struct AmpRmsprop {
  double lr, alpha, eps, weight_decay, momentum;
  int centered;
};
