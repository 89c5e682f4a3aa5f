// What adam.cu is started with.

constexpr int max_tensors = 48;
constexpr int elements_per_block = 4096;

// Tensors of one dtype.
struct Tensors {
  void* params[max_tensors];
  const void* grads[max_tensors];
  void* exp_avgs[max_tensors];
  void* exp_avg_sqs[max_tensors];
  // Where the averages have 8 bits: one of each for every 256 elements.
  float* exp_avg_scales[max_tensors];
  float* exp_avg_sq_scales[max_tensors];
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

// Of averages in 8 bits (optim/moments.rs): 256 values, ascending, and the 255 bounds between them.
struct Code {
  const float* values;
  const float* bounds;
};
