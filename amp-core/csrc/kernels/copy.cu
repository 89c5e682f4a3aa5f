// Copies many tensors byte by byte.

extern "C" __global__ void copy(const Bytes tensors) {
  constexpr int width = sizeof(uint4);
  const auto [at, begin, count] = part_of(tensors);
  const auto* from = static_cast<const unsigned char*>(tensors.data[0][at]) + begin;
  auto* to = static_cast<unsigned char*>(tensors.data[1][at]) + begin;
  const auto place = reinterpret_cast<unsigned long long>(from) |
                     reinterpret_cast<unsigned long long>(to);
  for (int i = threadIdx.x * width; i < count; i += blockDim.x * width) {
    if (place % width == 0 && i + width <= count) {
      *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
      continue;
    }
    // A thread reads all its bytes before it writes the first, so that the reads overlap.
    unsigned char bytes[width];
    for (int k = 0; k < width; ++k) bytes[k] = i + k < count ? from[i + k] : 0;
    for (int k = 0; k < width && i + k < count; ++k) to[i + k] = bytes[k];
  }
}
