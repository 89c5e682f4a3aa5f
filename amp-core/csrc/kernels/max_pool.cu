// Max pooling of images in channels_last and 16 bits. For each output, one byte stores the position
// of the largest value in the window. In the backward pass, each input collects the gradients of
// all windows that contain it, so that the gradients are always summed in the same order.

constexpr int eight = 8;

using Row = Line;

struct alignas(8) Places {
  unsigned char at[eight];
};

// Eight channels of a pixel, which one thread processes. In the forward pass the pixel belongs to the output, and in
// the backward pass to the input.
struct Pixel {
  int image, row, column, channel;
  bool within;

  // Divides in 32 bits: there are fewer than 2^31 pixels, and 64-bit divisions would take longer than
  // the rest of the kernel.
  __device__ Pixel(const Images& images, const int (&sides)[2]) {
    const unsigned packs = images.channels / eight, width = sides[1], height = sides[0];
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    channel = at % packs * eight;
    at /= packs;
    column = at % width;
    at /= width;
    row = at % height;
    at /= height;
    image = at;
    within = image < images.count;
  }
};

__device__ long long place_of(const Images& images, const int (&sides)[2], const Pixel& pixel, int row,
                              int column) {
  const long long before = (static_cast<long long>(pixel.image) * sides[0] + row) * sides[1] + column;
  return before * images.channels + pixel.channel;
}

extern "C" __global__ void __launch_bounds__(256) forward(const T* __restrict__ in, T* __restrict__ out,
                                                          unsigned char* __restrict__ places,
                                                          const Images images, const Windows windows) {
  const Pixel pixel(images, images.out);
  if (!pixel.within) return;
  float largest[eight];
  Places found;
  bool first = true;
  for (int i = 0; i < windows.size[0]; ++i) {
    const int row = pixel.row * windows.stride[0] - windows.padding[0] + i * windows.dilation[0];
    if (row < 0 || row >= images.in[0]) continue;
    for (int j = 0; j < windows.size[1]; ++j) {
      const int column = pixel.column * windows.stride[1] - windows.padding[1] + j * windows.dilation[1];
      if (column < 0 || column >= images.in[1]) continue;
      const Row x = *reinterpret_cast<const Row*>(in + place_of(images, images.in, pixel, row, column));
      for (int k = 0; k < eight; ++k) {
        const float value = widen(x.at[k]);
        // A NaN counts as the largest value. Of several equal values, the first is used.
        if (first || value > largest[k] || value != value) {
          largest[k] = value;
          found.at[k] = static_cast<unsigned char>(i * windows.size[1] + j);
        }
      }
      first = false;
    }
  }
  Row y;
  for (int k = 0; k < eight; ++k) narrow(largest[k], y.at[k]);
  const long long at = place_of(images, images.out, pixel, pixel.row, pixel.column);
  *reinterpret_cast<Row*>(out + at) = y;
  *reinterpret_cast<Places*>(places + at) = found;
}

// The first and the last output along one side whose windows may contain the input `place`.
struct Span {
  int first, last;

  __device__ Span(const Windows& windows, const Images& images, int side, int place) {
    const int from = place + windows.padding[side], reach = (windows.size[side] - 1) * windows.dilation[side];
    const int stride = windows.stride[side];
    first = from > reach ? (from - reach + stride - 1) / stride : 0;
    last = from / stride < images.out[side] ? from / stride : images.out[side] - 1;
  }
};

// Returns the position of the input `place` within the window of the output `out`, along one side.
// Returns -1 if the dilation skips the input.
__device__ int tap_of(const Windows& windows, int side, int out, int place) {
  const int offset = place + windows.padding[side] - out * windows.stride[side];
  return offset % windows.dilation[side] == 0 ? offset / windows.dilation[side] : -1;
}

extern "C" __global__ void __launch_bounds__(256) backward(const T* __restrict__ grads,
                                                           const unsigned char* __restrict__ places,
                                                           T* __restrict__ out, const Images images,
                                                           const Windows windows) {
  const Pixel pixel(images, images.in);
  if (!pixel.within) return;
  float sum[eight] = {};
  const Span rows(windows, images, 0, pixel.row), columns(windows, images, 1, pixel.column);
  for (int row = rows.first; row <= rows.last; ++row) {
    const int i = tap_of(windows, 0, row, pixel.row);
    if (i < 0) continue;
    for (int column = columns.first; column <= columns.last; ++column) {
      const int j = tap_of(windows, 1, column, pixel.column);
      if (j < 0) continue;
      const long long at = place_of(images, images.out, pixel, row, column);
      const Places found = *reinterpret_cast<const Places*>(places + at);
      const Row grad = *reinterpret_cast<const Row*>(grads + at);
      const int own = i * windows.size[1] + j;
      for (int k = 0; k < eight; ++k) {
        if (found.at[k] == own) sum[k] += widen(grad.at[k]);
      }
    }
  }
  Row total;
  for (int k = 0; k < eight; ++k) narrow(sum[k], total.at[k]);
  *reinterpret_cast<Row*>(out + place_of(images, images.in, pixel, pixel.row, pixel.column)) = total;
}
