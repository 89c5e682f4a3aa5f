// The arguments of adam.cu: the options as Rust passes them.

struct AmpAdam {
  double lr, beta1, beta2, eps, weight_decay;
  int decoupled;
};

// The code of 8-bit averages (optim/state/quantized.rs): 256 ascending values, and the 255 bounds between
// them.
struct Code {
  const float* values;
  const float* bounds;
};
