// Adam and AdamW over many tensors at once: parameters, gradients, exp_avgs, exp_avg_sqs, steps (f32
// scalars). The arithmetic is that of libtorch's fused kernel
// (ATen/native/cuda/fused_adam_utils.cuh): rates in f64, everything else in the parameter's dtype,
// or in f32 where that has 16 bits. Unlike there the rates lie on the device, so that a captured step
// follows its schedule, and the gradients are multiplied by a factor on the way, so that unscaling
// and clipping need no pass of their own.

__device__ float& steps_of(const StepTensors& tensors, int at) {
  return *static_cast<float*>(tensors.data[4][at]);
}

// One block.
extern "C" __global__ void count_steps(const StepTensors tensors, const OnDevice known) {
  const int at = threadIdx.x;
  if (at < tensors.count && !is_left_out(known)) steps_of(tensors, at) += 1;
}

extern "C" __global__ void step(const StepTensors tensors, const OnDevice known,
                                const AmpAdam options) {
  using W = Wide<T>;
  if (is_left_out(known)) return;
  __shared__ W step_size, correction2_sqrt;
  const double lr = known.rates[0], beta1 = known.rates[1], beta2 = options.beta2;
  if (threadIdx.x == 0) {
    const double steps = steps_of(tensors, part_of(tensors).tensor);
    const W correction1 = 1 - pow(beta1, steps);
    step_size = lr / correction1;
    correction2_sqrt = sqrt(1 - pow(beta2, steps));
  }
  __syncthreads();
  step_elements<4>(tensors, known, [&](W (&values)[4]) {
    auto& [param, grad, exp_avg, exp_avg_sq] = values;
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
  });
}
