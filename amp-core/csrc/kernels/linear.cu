// What stands behind the product of a linear layer and before those of its backward pass.

// Bias, which may be null, ReLU and dropout of [rows, columns], in place.
extern "C" __global__ void activate(T* values, const T* bias, long long count, long long columns,
                                    const Dropout dropout) {
  const long long group = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long begin = group * per_thread;
  if (begin >= count) return;
  float factors[per_thread];
  Factors(dropout).of(group, factors);
  const int own = count - begin < per_thread ? static_cast<int>(count - begin) : per_thread;
  const bool whole = own == per_thread && is_aligned(values);
  auto pack = load(values + begin, 0, own, whole);
  for (int k = 0; k < per_thread; ++k) {
    auto value = widen(pack.at[k]);
    if (bias != nullptr) value = rounded<T>(value + widen(bias[(begin + k) % columns]));
    // Leaves a NaN.
    if (value <= 0) value = 0;
    narrow(value * factors[k], pack.at[k]);
  }
  store(pack, values + begin, 0, own, whole);
}

// The sums of a matrix's columns, which are the gradient of a bias. A block has 32 of them and up to
// `part` rows; the sums of the parts lie below one another. If the output of a ReLU and of dropout is
// given, what these let through is summed, and written to `passed`: where the output is not 0, times
// `scale`. `out` may be null then.
extern "C" __global__ void column_sums(const T* in, const T* output, float scale, T* passed, P* out,
                                       long long rows, long long columns, long long part) {
  using W = Wide<T>;
  __shared__ W sums[32][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const long long across = (columns + 31) / 32;
  const long long column = blockIdx.x % across * 32 + lane, at = blockIdx.x / across;
  const long long end = (at + 1) * part < rows ? (at + 1) * part : rows;
  W sum = 0;
  if (column < columns) {
    for (long long row = at * part + warp; row < end; row += warps) {
      const long long place = row * columns + column;
      W value = widen(in[place]);
      if (output != nullptr) {
        value = widen(output[place]) != 0 ? rounded<T>(value * scale) : W(0);
        narrow(value, passed[place]);
      }
      sum += value;
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= columns || out == nullptr) return;
  for (int other = 1; other < warps; ++other) sum += sums[other][lane];
  narrow(sum, out[at * columns + column]);
}
