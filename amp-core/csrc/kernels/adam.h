// The arguments of adam.cu's kernels: the options as passed from Rust.

struct AmpAdam {
  double lr, beta1, beta2, eps, weight_decay;
  int decoupled;
};

// The tables for averages in 8 bits (optim/moments.rs): 256 values in ascending order, and the 255
// bounds between them.
struct Code {
  const float* values;
  const float* bounds;
};
