// Writes zeros to those rows of [N, heads, L, width] that are masked.

// The sizes of [N, heads, L], and for each of these dimensions the strides of the values and of the mask. `width`
// and `step` are the size and the stride of the values' last dimension. There are fewer than 2³¹ rows, so that the
// index of a row can be divided in 32 bits. Most rows are not masked, and for such a row a division in 64 bits
// would take longer than reading the mask.
struct Rows {
  unsigned size[3];
  long long stride[3], masked[3], width, step;
};

// Writes zeros to the masked rows. Each thread processes one row.
extern "C" __global__ void clear(T* values, const bool* masked, unsigned count, const Rows rows) {
  unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= count) return;
  long long begin = 0, of = 0;
  for (int dimension = 2; dimension >= 0; --dimension) {
    const unsigned above = at / rows.size[dimension], place = at - above * rows.size[dimension];
    at = above;
    begin += place * rows.stride[dimension];
    of += place * rows.masked[dimension];
  }
  if (!masked[of]) return;
  for (long long column = 0; column < rows.width; ++column) narrow(Wide<T>(0), values[begin + column * rows.step]);
}
