// Casts many f32 tensors to 16 bits.

extern "C" __global__ void cast(const Tensors tensors) {
  const auto [at, begin, count] = part_of(tensors);
  const auto* from = static_cast<const float*>(tensors.data[0][at]) + begin;
  auto* to = static_cast<T*>(tensors.data[1][at]) + begin;
  const bool packed = is_aligned(from) && is_aligned(to);
  for (int i = threadIdx.x * per_thread; i < count; i += blockDim.x * per_thread) {
    if (packed && i + per_thread <= count) {
      const auto wide = pack_at(from, i);
      Pack<T> pack;
      for (int k = 0; k < per_thread; ++k) narrow(wide.at[k], pack.at[k]);
      pack_at(to, i) = pack;
    } else {
      for (int k = 0; k < per_thread && i + k < count; ++k) narrow(from[i + k], to[i + k]);
    }
  }
}
