// A Lion step over many tensors at once: parameters, gradients, exp_avgs. The arithmetic equals
// that of libtorch's foreach kernels (see csrc/optim.cpp), except that intermediate values are not
// rounded to 16 bits.

extern "C" __global__ void step(const StepTensors tensors, const OnDevice known,
                                const AmpLion options) {
  using W = Wide<T>;
  if (is_left_out(known)) return;
  const W lr = known.rates[0], kept = 1 - known.rates[0] * options.weight_decay;
  const W beta1 = known.rates[1], rest1 = 1 - known.rates[1];
  const W beta2 = options.beta2, rest2 = 1 - options.beta2;
  step_elements<3>(tensors, known, [&](W (&values)[3]) {
    auto& [param, grad, exp_avg] = values;
    const W direction = product(exp_avg, beta1) + rest1 * grad;
    param = product(param, kept) - lr * ((0 < direction) - (direction < 0));
    exp_avg = product(exp_avg, beta2) + rest2 * grad;
  });
}
