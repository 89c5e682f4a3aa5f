// The arguments of kernels, shared by host and device code.

// Lists of at most `most` tensors of one dtype, for one launch of a kernel. Tensors at the same index of
// the lists have the same layout.
template <int lists, int most, int per_block>
struct TensorList {
  static constexpr int max_tensors = most;
  static constexpr int elements_per_block = per_block;

  void* data[lists][most];
  // The number of elements of each tensor.
  long long sizes[most];
  // For each tensor, the index of the block that works on its first elements.
  int first_blocks[most];
  // The number of tensors.
  int count;
};

// The tensors of an optimizer's step: parameters, their gradients, and the optimizer's state in the
// optimizer's order. An unused list is null.
using StepTensors = TensorList<7, 48, 4096>;

// The values of an optimizer step that a kernel reads from device memory.
struct OnDevice {
  // The learning rate, and the second value that a schedule may change: a momentum, or beta1 of Adam and
  // Lion.
  const double* rates;
  // The factor by which each gradient is multiplied, in the dtype of the computation. May be null.
  const void* factor;
  // A scalar that may be null. If it is not null and its value is not 0, the step changes nothing.
  const float* found_inf;
};
