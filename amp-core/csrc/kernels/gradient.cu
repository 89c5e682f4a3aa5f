// Computes the norm of many gradients together, and the clipping factor.

// Squares are summed in f64, in which the square of an f32 number cannot overflow.
extern "C" __global__ void square_sums(const Tensors tensors, double* sums) {
  const auto [at, begin, count] = part_of(tensors);
  const auto* data = static_cast<const T*>(tensors.data[0][at]) + begin;
  const bool packed = is_aligned(data);
  double sum = 0;
  for (int i = threadIdx.x * per_thread; i < count; i += blockDim.x * per_thread) {
    Pack<T> pack;
    const bool whole = packed && i + per_thread <= count;
    if (whole) pack = pack_at(data, i);
    for (int k = 0; k < per_thread; ++k) {
      if (i + k >= count) break;
      const double value = widen(whole ? pack.at[k] : data[i + k]);
      sum += value * value;
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Computes the norm and the clipping factor. `norm` is the norm of the unscaled gradients. `factor`
// also contains the division by the loss scale. Runs in a single block.
extern "C" __global__ void clip_factor(const double* sums, int count, const float* scale,
                                       double max_norm, float* found_inf, Wide<T>* norm,
                                       Wide<T>* factor) {
  using W = Wide<T>;
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  const double total = sqrt(sum);
  *norm = static_cast<W>(total);
  if (found_inf != nullptr && !isfinite(static_cast<W>(total))) *found_inf = nan("");
  // The reciprocal of the scale is rounded to f32, as in PyTorch.
  const double inverse = scale == nullptr ? 1 : static_cast<float>(1 / static_cast<double>(*scale));
  const double clipped = max_norm / (total * inverse + 1e-6);
  *factor = static_cast<W>((clipped < 1 ? clipped : 1) * inverse);
}
