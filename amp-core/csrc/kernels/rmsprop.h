// The options of an RMSprop step, as Rust passes them to the kernel of rmsprop.cu.

struct AmpRmsprop {
  double lr, alpha, eps, weight_decay, momentum;
  int centered;
};
