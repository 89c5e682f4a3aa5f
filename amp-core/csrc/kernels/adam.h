// The options of an Adam step, as Rust passes them to the kernel of adam.cu.

struct AmpAdam {
  double lr, beta1, beta2, eps, weight_decay;
  int decoupled;
};

// The code of 8-bit averages (optim/state/quantized.rs): 256 values in ascending order, and the 255
// bounds between neighbouring values.
struct Code {
  const float* values;
  const float* bounds;
};
