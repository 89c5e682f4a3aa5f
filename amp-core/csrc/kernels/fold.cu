// Rearranges images of up to four channels for a convolution with stride 2. Each block of 2×2
// pixels becomes sixteen channels, four for each pixel. If the images have fewer than four channels,
// the missing channels are zeros. The result is surrounded by padding, and is in channels_last and
// 16 bits. T is the dtype of the result, and P is the dtype of the images.

struct alignas(16) Half {
  T at[folded_channels / 2];
};

extern "C" __global__ void __launch_bounds__(256) fold(const P* __restrict__ in, T* __restrict__ out,
                                                       const Folding folding) {
  // Indices have 32 bits, because there are fewer than 2^31 elements and 64-bit divisions would
  // take longer than the rest of the kernel.
  const unsigned own = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned taps = folding.taps, width = folding.out[1], height = folding.out[0];
  const int tap = own % taps, column = own / taps % width, row = own / taps / width % height;
  const int image = own / taps / width / height;
  if (image >= folding.count) return;
  Half halves[2] = {};
  const int y = 2 * (row - folding.before), x = 2 * (column + tap - folding.before);
  for (int dy = 0; dy < 2; ++dy) {
    for (int dx = 0; dx < 2; ++dx) {
      const bool within = y + dy >= 0 && y + dy < folding.in[0] && x + dx >= 0 && x + dx < folding.in[1];
      for (int c = 0; c < 4; ++c) {
        if (!within || c >= folding.channels) continue;
        const long long from = image * folding.strides[0] + c * folding.strides[1] +
                               (y + dy) * folding.strides[2] + (x + dx) * folding.strides[3];
        const int k = (dy * 2 + dx) * 4 + c;
        narrow(widen(in[from]), halves[k / 8].at[k % 8]);
      }
    }
  }
  Half* to = reinterpret_cast<Half*>(out) + 2LL * own;
  to[0] = halves[0];
  to[1] = halves[1];
}
