// The sums of a matrix's columns, which are the gradient of a bias. A block has 32 of them and up to
// `part` rows; the sums of the parts lie below one another.

extern "C" __global__ void column_sums(const T* in, P* out, long long rows, long long columns,
                                       long long part) {
  using W = Wide<T>;
  __shared__ W sums[32][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const long long across = (columns + 31) / 32;
  const long long column = blockIdx.x % across * 32 + lane, at = blockIdx.x / across;
  const long long end = (at + 1) * part < rows ? (at + 1) * part : rows;
  W sum = 0;
  if (column < columns) {
    for (long long row = at * part + warp; row < end; row += warps) {
      sum += widen(in[row * columns + column]);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= columns) return;
  for (int other = 1; other < warps; ++other) sum += sums[other][lane];
  narrow(sum, out[at * columns + column]);
}
