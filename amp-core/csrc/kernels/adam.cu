// Adam and AdamW over many tensors at once. The arithmetic is that of libtorch's fused kernel
// (ATen/native/cuda/fused_adam_utils.cuh): rates in f64, everything else in the parameter's dtype,
// or in f32 where that has 16 bits. Unlike there the rates lie on the device, so that a captured step
// follows its schedule, and the gradients are multiplied by a factor on the way, so that unscaling
// and clipping need no pass of their own.

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

extern "C" __global__ void step(const Tensors tensors, const double* rates, const Options options,
                                const Wide<T>* factor, const float* found_inf) {
  using W = Wide<T>;
  if (is_left_out(found_inf)) return;
  const auto [at, begin, count] = part_of(tensors, elements_per_block);

  __shared__ W step_size, correction2_sqrt;
  const double lr = rates[0], beta1 = rates[1], beta2 = options.beta2;
  if (threadIdx.x == 0) {
    const double steps = *tensors.steps[at];
    const W correction1 = 1 - pow(beta1, steps);
    step_size = lr / correction1;
    correction2_sqrt = sqrt(1 - pow(beta2, steps));
  }
  __syncthreads();
  const W multiplier = factor == nullptr ? 1 : *factor;

  auto* params = static_cast<T*>(tensors.params[at]);
  const auto* grads = static_cast<const T*>(tensors.grads[at]);
  auto* exp_avgs = static_cast<T*>(tensors.exp_avgs[at]);
  auto* exp_avg_sqs = static_cast<T*>(tensors.exp_avg_sqs[at]);
  const auto update = [&](T& param_out, T grad_in, T& exp_avg_out, T& exp_avg_sq_out) {
    W param = widen(param_out), grad = widen(grad_in) * multiplier;
    W exp_avg = widen(exp_avg_out), exp_avg_sq = widen(exp_avg_sq_out);
    if (options.weight_decay != 0) {
      if (options.decoupled) {
        param -= lr * options.weight_decay * param;
      } else {
        grad += param * options.weight_decay;
      }
    }
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad;
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad;
    const W denominator = sqrt(exp_avg_sq) / correction2_sqrt + options.eps;
    param -= step_size * exp_avg / denominator;
    narrow(param, param_out);
    narrow(exp_avg, exp_avg_out);
    narrow(exp_avg_sq, exp_avg_sq_out);
  };

  const bool packed = is_aligned(params) && is_aligned(grads) && is_aligned(exp_avgs) &&
                      is_aligned(exp_avg_sqs);
  for (int i = threadIdx.x * per_thread; i < count; i += blockDim.x * per_thread) {
    const long long from = begin + i;
    if (packed && i + per_thread <= count) {
      auto param = pack_at(params, from);
      const auto grad = pack_at(grads, from);
      auto exp_avg = pack_at(exp_avgs, from), exp_avg_sq = pack_at(exp_avg_sqs, from);
      for (int k = 0; k < per_thread; ++k) {
        update(param.at[k], grad.at[k], exp_avg.at[k], exp_avg_sq.at[k]);
      }
      pack_at(params, from) = param;
      pack_at(exp_avgs, from) = exp_avg;
      pack_at(exp_avg_sqs, from) = exp_avg_sq;
    } else {
      for (int k = 0; k < per_thread && i + k < count; ++k) {
        update(params[from + k], grads[from + k], exp_avgs[from + k], exp_avg_sqs[from + k]);
      }
    }
  }
}
