// The sums of a matrix's columns, which are the gradient of a bias. One block has 32 of them, and sums
// each in as many parts as it has warps.

extern "C" __global__ void column_sums(const T* in, P* out, int rows, int columns) {
  using W = Wide<T>;
  __shared__ W parts[32][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int column = blockIdx.x * 32 + lane;
  W sum = 0;
  if (column < columns) {
    for (int row = warp; row < rows; row += warps) {
      sum += widen(in[static_cast<long long>(row) * columns + column]);
    }
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= columns) return;
  for (int part = 1; part < warps; ++part) sum += parts[part][lane];
  narrow(sum, out[column]);
}
