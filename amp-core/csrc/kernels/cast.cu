// Many f32 tensors in 16 bits, at once.

constexpr int max_tensors = 128;
constexpr int elements_per_block = 8192;

// Laid out as in csrc/cast.cpp.
struct Tensors {
  const float* from[max_tensors];
  T* to[max_tensors];
  long long sizes[max_tensors];
  // The block that works on a tensor's first elements.
  int first_blocks[max_tensors];
  int count;
};

extern "C" __global__ void cast(const Tensors tensors) {
  const auto [at, begin, count] = part_of(tensors, elements_per_block);
  const float* from = tensors.from[at] + begin;
  T* to = tensors.to[at] + begin;
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
