// What rmsprop.cu is started with: the options as they cross from Rust.

struct AmpRmsprop {
  double lr, alpha, eps, weight_decay, momentum;
  int centered;
};
