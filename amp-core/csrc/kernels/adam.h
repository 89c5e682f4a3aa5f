// What adam.cu is started with: the options as they cross from Rust.

struct AmpAdam {
  double lr, beta1, beta2, eps, weight_decay;
  int decoupled;
};

// Of averages in 8 bits (optim/state/quantized.rs): 256 values, ascending, and the 255 bounds between them.
struct Code {
  const float* values;
  const float* bounds;
};
