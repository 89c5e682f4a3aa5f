// Types shared by fold.cu and its host code.

constexpr int folded_channels = 16;

// Images [count, channels, in[0], in[1]] with these strides, in blocks of 2×2 pixels: `out` blocks
// along each side; the first `before` are padding. Along a row, `taps` neighbours become one pixel.
struct Folding {
  int count, channels, in[2], out[2], before, taps;
  long long strides[4];
};
