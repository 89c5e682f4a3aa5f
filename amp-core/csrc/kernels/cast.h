// What cast.cu is started with.

constexpr int max_tensors = 128;
constexpr int elements_per_block = 8192;

struct Tensors {
  const float* from[max_tensors];
  void* to[max_tensors];
  long long sizes[max_tensors];
  // The block that works on a tensor's first elements.
  int first_blocks[max_tensors];
  int count;
};
