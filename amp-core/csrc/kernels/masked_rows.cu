// Writes zeros to the masked rows of [N, heads, L, width].

// Sizes, and the strides of the values and of the mask.
struct Rows {
  long long size[3], stride[3], masked[3], width, step;
};

// Each thread processes a row.
extern "C" __global__ void clear(T* values, const bool* masked, long long count, const Rows rows) {
  long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count) return;
  long long begin = 0, of = 0;
  for (int dimension = 2; dimension >= 0; --dimension) {
    const long long place = at % rows.size[dimension];
    at /= rows.size[dimension];
    begin += place * rows.stride[dimension];
    of += place * rows.masked[dimension];
  }
  if (!masked[of]) return;
  for (long long column = 0; column < rows.width; ++column) narrow(Wide<T>(0), values[begin + column * rows.step]);
}
