// The arguments of kernels, for host and device.

// At most `most` tensors of one dtype; a tensor has the same layout in every list. One launch of a kernel
// works on them.
template <int lists, int most, int per_block>
struct TensorList {
  static constexpr int max_tensors = most;
  static constexpr int elements_per_block = per_block;

  void* data[lists][most];
  long long sizes[most];
  // The index of the block that works on a tensor's first elements.
  int first_blocks[most];
  int count;
};

// The tensors of an optimizer's step: parameters, their gradients, and state as the optimizer orders it. An
// unused list is null.
using StepTensors = TensorList<7, 48, 4096>;

// The values of a step that are read from device memory.
struct OnDevice {
  // The learning rate, and the second value that a schedule may change: a momentum, or beta1 of Adam and
  // Lion.
  const double* rates;
  // The factor of the gradients, in the dtype in which they are computed; or null.
  const void* factor;
  // If it is given and not 0, nothing changes.
  const float* found_inf;
};
