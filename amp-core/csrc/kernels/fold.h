// The arguments of fold.cu, for host and device.

constexpr int folded_channels = 16;

// Images [count, channels, in[0], in[1]] with these strides, in blocks of 2×2 pixels. Each side has `out`
// blocks, of which the first `before` are padding. Along a row `taps` neighbours become one.
struct Folding {
  int count, channels, in[2], out[2], before, taps;
  long long strides[4];
};
