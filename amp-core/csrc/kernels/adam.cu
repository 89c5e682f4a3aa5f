// Adam and AdamW over many tensors at once. The arithmetic is that of libtorch's fused kernel
// (ATen/native/cuda/fused_adam_utils.cuh): rates in f64, everything else in the parameter's dtype,
// or in f32 where that has 16 bits. Unlike there the rates lie on the device, so that a captured step
// follows its schedule, and the gradients are multiplied by a factor on the way, so that unscaling
// and clipping need no pass of their own.

constexpr int max_tensors = 64;
constexpr int elements_per_block = 4096;
constexpr int per_thread = 4;

struct bf16 {
  unsigned short bits;
};

__device__ float widen(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ float widen(float x) { return x; }
__device__ double widen(double x) { return x; }

__device__ void narrow(float x, float& out) { out = x; }
__device__ void narrow(double x, double& out) { out = x; }
// To nearest, ties to even.
__device__ void narrow(float x, bf16& out) {
  const unsigned bits = __float_as_uint(x);
  out.bits = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <typename T>
struct alignas(sizeof(T) * per_thread) Pack {
  T at[per_thread];
};

// Tensors of one dtype. Laid out as in csrc/adam.cpp.
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

__device__ bool is_left_out(const float* found_inf) {
  return found_inf != nullptr && *found_inf != 0;
}

// One block.
extern "C" __global__ void count_steps(const Tensors tensors, const float* found_inf) {
  const int at = threadIdx.x;
  if (at < tensors.count && !is_left_out(found_inf)) *tensors.steps[at] += 1;
}

extern "C" __global__ void write_rates(double* rates, double lr, double beta1) {
  rates[0] = lr;
  rates[1] = beta1;
}

template <typename T>
__device__ void step(const Tensors& tensors, const double* rates, const Options& options,
                     const void* factor, const float* found_inf) {
  using Wide = decltype(widen(T()));
  if (is_left_out(found_inf)) return;
  int at = 0;
  while (at + 1 < tensors.count && tensors.first_blocks[at + 1] <= blockIdx.x) ++at;

  __shared__ Wide step_size, correction2_sqrt;
  const double lr = rates[0], beta1 = rates[1], beta2 = options.beta2;
  if (threadIdx.x == 0) {
    const double count = *tensors.steps[at];
    const Wide correction1 = 1 - pow(beta1, count);
    step_size = lr / correction1;
    correction2_sqrt = sqrt(1 - pow(beta2, count));
  }
  __syncthreads();
  const Wide multiplier = factor == nullptr ? 1 : *static_cast<const Wide*>(factor);

  auto* params = static_cast<T*>(tensors.params[at]);
  const auto* grads = static_cast<const T*>(tensors.grads[at]);
  auto* exp_avgs = static_cast<T*>(tensors.exp_avgs[at]);
  auto* exp_avg_sqs = static_cast<T*>(tensors.exp_avg_sqs[at]);
  const auto update = [&](T& param_out, T grad_in, T& exp_avg_out, T& exp_avg_sq_out) {
    Wide param = widen(param_out), grad = widen(grad_in) * multiplier;
    Wide exp_avg = widen(exp_avg_out), exp_avg_sq = widen(exp_avg_sq_out);
    if (options.weight_decay != 0) {
      if (options.decoupled) {
        param -= lr * options.weight_decay * param;
      } else {
        grad += param * options.weight_decay;
      }
    }
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad;
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad;
    const Wide denominator = sqrt(exp_avg_sq) / correction2_sqrt + options.eps;
    param -= step_size * exp_avg / denominator;
    narrow(param, param_out);
    narrow(exp_avg, exp_avg_out);
    narrow(exp_avg_sq, exp_avg_sq_out);
  };

  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<unsigned long long>(pointer) % alignof(Pack<T>) == 0;
  };
  const bool packed = aligned(params) && aligned(grads) && aligned(exp_avgs) && aligned(exp_avg_sqs);
  const long long begin = static_cast<long long>(blockIdx.x - tensors.first_blocks[at]) *
                          elements_per_block;
  const long long left = tensors.sizes[at] - begin;
  const int count = left < elements_per_block ? static_cast<int>(left) : elements_per_block;
  for (int i = threadIdx.x * per_thread; i < count; i += blockDim.x * per_thread) {
    const long long from = begin + i;
    if (packed && i + per_thread <= count) {
      auto param = *reinterpret_cast<Pack<T>*>(params + from);
      const auto grad = *reinterpret_cast<const Pack<T>*>(grads + from);
      auto exp_avg = *reinterpret_cast<Pack<T>*>(exp_avgs + from);
      auto exp_avg_sq = *reinterpret_cast<Pack<T>*>(exp_avg_sqs + from);
      for (int k = 0; k < per_thread; ++k) {
        update(param.at[k], grad.at[k], exp_avg.at[k], exp_avg_sq.at[k]);
      }
      *reinterpret_cast<Pack<T>*>(params + from) = param;
      *reinterpret_cast<Pack<T>*>(exp_avgs + from) = exp_avg;
      *reinterpret_cast<Pack<T>*>(exp_avg_sqs + from) = exp_avg_sq;
    } else {
      for (int k = 0; k < per_thread && i + k < count; ++k) {
        update(params[from + k], grads[from + k], exp_avgs[from + k], exp_avg_sqs[from + k]);
      }
    }
  }
}

extern "C" __global__ void adam_f32(const Tensors tensors, const double* rates, Options options,
                                    const void* factor, const float* found_inf) {
  step<float>(tensors, rates, options, factor, found_inf);
}

extern "C" __global__ void adam_f64(const Tensors tensors, const double* rates, Options options,
                                    const void* factor, const float* found_inf) {
  step<double>(tensors, rates, options, factor, found_inf);
}

extern "C" __global__ void adam_bf16(const Tensors tensors, const double* rates, Options options,
                                     const void* factor, const float* found_inf) {
  step<bf16>(tensors, rates, options, factor, found_inf);
}
