// An SGD step over many tensors at once: parameters, gradients, momentum buffers (only with
// momentum). The arithmetic equals that of libtorch's fused kernel
// (ATen/native/cuda/FusedSgdKernel.cu): options in f64, elements in the parameter's dtype, or in
// f32 if this dtype has 16 bits.

extern "C" __global__ void step(const StepTensors tensors, const OnDevice known,
                                const AmpSgd options) {
  using W = Wide<T>;
  if (is_left_out(known)) return;
  // If a schedule lowers the momentum to 0, the momentum buffers keep their values.
  const double lr = known.rates[0], momentum = known.rates[1];
  step_elements<3>(tensors, known, [&](W (&values)[3]) {
    auto& [param, grad, buffer] = values;
    if (options.weight_decay != 0) grad += options.weight_decay * param;
    if (momentum != 0) {
      buffer = options.first_step ? grad : momentum * buffer + (1 - options.dampening) * grad;
      grad = options.nesterov ? grad + momentum * buffer : buffer;
    }
    param -= lr * grad;
  });
}
