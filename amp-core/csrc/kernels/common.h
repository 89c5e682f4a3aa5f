// The arguments of kernels, for both host and device code.

// A list of tensors with the same dtype, of limited length. A tensor has the same layout in every
// list. One launch of a kernel processes the list.
template <int lists, int most, int per_block>
struct TensorList {
  static constexpr int max_tensors = most;
  static constexpr int elements_per_block = per_block;

  void* data[lists][most];
  long long sizes[most];
  // The block that processes a tensor's first elements.
  int first_blocks[most];
  int count;
};

// The tensors of an optimizer's step: parameters, gradients and state. A list that the optimizer
// does not have is null.
using StepTensors = TensorList<7, 48, 4096>;

// The values of a step that only the device has.
struct OnDevice {
  // lr, and the second rate that a schedule sets: a momentum, or beta1 of Adam and Lion.
  const double* rates;
  // The factor of the gradients in the dtype of their computation, or null.
  const void* factor;
  // If this is given and not 0, nothing changes.
  const float* found_inf;
};
