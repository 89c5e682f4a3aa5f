// Dropout without a mask in memory: the generator's position and an element's index decide whether
// the element is dropped. The backward pass is therefore the forward pass applied to the gradient.
// Each group of `run` neighbours is dropped or kept as a whole.

extern "C" __global__ void apply(const T* in, T* out, long long count, long long run,
                                 const Dropout dropout) {
  const bool packed = is_aligned(in) && is_aligned(out);
  const long long group = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long begin = group * per_thread;
  if (begin >= count) return;
  float factors[per_thread];
  const Factors drops(dropout);
  if (run == 1) {
    drops.of(group, factors);
  } else {
    for (int k = 0; k < per_thread; ++k) {
      const bool again = k > 0 && (begin + k) % run != 0;
      factors[k] = again ? factors[k - 1] : drops.at((begin + k) / run);
    }
  }
  if (packed && begin + per_thread <= count) {
    auto pack = pack_at(in, begin);
    for (int k = 0; k < per_thread; ++k) narrow(widen(pack.at[k]) * factors[k], pack.at[k]);
    pack_at(out, begin) = pack;
  } else {
    for (int k = 0; k < per_thread && begin + k < count; ++k) {
      narrow(widen(in[begin + k]) * factors[k], out[begin + k]);
    }
  }
}
