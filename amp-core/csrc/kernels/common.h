// What kernels are started with: for both halves.

// Tensors of one dtype, at most so many, each of one layout in every list: one start of a kernel
// works on them.
template <int lists, int most, int per_block>
struct TensorList {
  static constexpr int max_tensors = most;
  static constexpr int elements_per_block = per_block;

  void* data[lists][most];
  long long sizes[most];
  // The block that works on a tensor's first elements.
  int first_blocks[most];
  int count;
};

// What an optimizer steps: parameters, their gradients and, as it names them, state. A list that it
// does not have is null.
using StepTensors = TensorList<7, 48, 4096>;

// What the device knows of a step.
struct OnDevice {
  // lr, and what a schedule moves beside it: a momentum or Adam's and Lion's beta1.
  const double* rates;
  // What gradients are multiplied by, in the dtype they are computed in, or null.
  const void* factor;
  // Where it, if given, is not 0, nothing moves.
  const float* found_inf;
};
