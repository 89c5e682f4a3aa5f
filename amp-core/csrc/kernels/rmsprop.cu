// An RMSprop step over many tensors at once: parameters, gradients, square_avgs, momentum buffers
// (with momentum), grad_avgs (if centered). The arithmetic equals that of libtorch's foreach
// kernels (see csrc/optim.cpp), except that intermediate values are not rounded to 16 bits.

extern "C" __global__ void step(const StepTensors tensors, const OnDevice known,
                                const AmpRmsprop options) {
  using W = Wide<T>;
  if (is_left_out(known)) return;
  const W lr = known.rates[0], momentum = known.rates[1];
  const W weight_decay = options.weight_decay, eps = options.eps;
  const W alpha = options.alpha, rest = 1 - options.alpha;
  step_elements<5>(tensors, known, [&](W (&values)[5]) {
    auto& [param, grad, square_avg, buffer, grad_avg] = values;
    if (weight_decay != 0) grad += weight_decay * param;
    square_avg = product(square_avg, alpha) + rest * product(grad, grad);
    W variance = square_avg;
    if (options.centered) {
      // This is the formula of torch.lerp. It is exact at both ends, where the weight is 0 or 1.
      const W away = grad - grad_avg;
      grad_avg = rest < W(0.5) ? grad_avg + rest * away : grad - away * (1 - rest);
      variance -= product(grad_avg, grad_avg);
    }
    W update = grad / (sqrt(variance) + eps);
    if (momentum > 0) {
      buffer = product(buffer, momentum) + update;
      update = buffer;
    }
    param -= lr * update;
  });
}
