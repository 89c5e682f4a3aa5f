// What gradient.cu is started with.

constexpr int max_tensors = 128;
constexpr int elements_per_block = 8192;

// Tensors of one dtype.
struct Tensors {
  const void* data[max_tensors];
  long long sizes[max_tensors];
  // The block that works on a tensor's first elements.
  int first_blocks[max_tensors];
  int count;
};
