// What adam.cu is started with.

constexpr int max_tensors = 64;
constexpr int elements_per_block = 4096;

// Tensors of one dtype.
struct Tensors {
  void* params[max_tensors];
  const void* grads[max_tensors];
  void* exp_avgs[max_tensors];
  void* exp_avg_sqs[max_tensors];
  float* steps[max_tensors];
  long long sizes[max_tensors];
  // The block that works on a tensor's first elements.
  int first_blocks[max_tensors];
  int count;
};

struct Options {
  double beta2, eps, weight_decay;
  int decoupled;
};
