// The arguments of fold.cu, shared by host and device code.

constexpr int folded_channels = 16;

// Images of the shape [count, channels, in[0], in[1]] with the strides `strides`. The kernel reads the images in blocks
// of 2×2 pixels. The result has `out` blocks along each side, of which the first `before` blocks are padding. `taps`
// neighbouring blocks of a row are combined into one.
struct Folding {
  int count, channels, in[2], out[2], before, taps;
  long long strides[4];
};
