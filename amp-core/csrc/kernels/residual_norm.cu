// Layer normalisation of a residual stream, and the sum of the stream and a branch. One warp
// processes each row and keeps its elements in registers. norm_rows.cu computes the backward pass.
//
// P is the dtype of the stream, and Q the dtype of weights and output. R is the dtype of the cached
// cast, which has the values of the output in the dtype of autocast. Each lane processes AMP_N
// times four columns.

using W = Wide<Q>;

// The number of packs of four neighbouring columns that a lane processes.
constexpr int packs = AMP_N;
// The distance between successive packs of a lane, in columns.
constexpr int stride = 32 * per_thread;
// The number of columns in a row.
constexpr int columns = packs * stride;
// The number of warps in a block.
constexpr int warps = 8;

__device__ W warp_sum(W value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// Computes the layer norm of each row. `twin` is the cached cast. `out` or `twin` may be null, but
// not both.
extern "C" __global__ void __launch_bounds__(32 * warps)
    forward(const P* in, const Q* weights, const Q* biases, double eps, int rows, W* means,
            W* inverses, Q* out, R* twin) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * warps + threadIdx.x / 32;
  if (row >= rows) return;
  const long long begin = static_cast<long long>(row) * columns + lane * per_thread;
  W x[packs][per_thread];
  for (int p = 0; p < packs; ++p) {
    const auto pack = pack_at(in, begin + p * stride);
    for (int k = 0; k < per_thread; ++k) x[p][k] = widen(pack.at[k]);
  }
  W sum = 0, squares = 0;
  for (int p = 0; p < packs; ++p) {
    for (int k = 0; k < per_thread; ++k) sum += x[p][k];
  }
  const W mean = warp_sum(sum) / columns;
  for (int p = 0; p < packs; ++p) {
    for (int k = 0; k < per_thread; ++k) {
      x[p][k] -= mean;
      squares += x[p][k] * x[p][k];
    }
  }
  const W inverse = W(1 / sqrt(double(warp_sum(squares)) / columns + eps));
  if (lane == 0) {
    means[row] = mean;
    inverses[row] = inverse;
  }
  for (int p = 0; p < packs; ++p) {
    const int column = lane * per_thread + p * stride;
    const auto w = pack_at(weights, column), b = pack_at(biases, column);
    Pack<Q> pack;
    Pack<R> cast;
    for (int k = 0; k < per_thread; ++k) {
      narrow(x[p][k] * inverse * widen(w.at[k]) + widen(b.at[k]), pack.at[k]);
      narrow(widen(pack.at[k]), cast.at[k]);
    }
    if (out != nullptr) pack_at(out, begin + p * stride) = pack;
    if (twin != nullptr) pack_at(twin, begin + p * stride) = cast;
  }
}

// Computes stream + branch. The branch has the dtype R. Each thread processes four neighbouring
// elements.
extern "C" __global__ void add(const P* stream, const R* branch, P* out, long long count) {
  const long long at = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * per_thread;
  if (at >= count) return;
  const int own = count - at < per_thread ? static_cast<int>(count - at) : per_thread;
  const bool whole = own == per_thread;
  auto sum = load(stream + at, 0, own, whole);
  const auto added = load(branch + at, 0, own, whole);
  for (int k = 0; k < per_thread; ++k) {
    narrow(widen(sum.at[k]) + widen(added.at[k]), sum.at[k]);
  }
  store(sum, out + at, 0, own, whole);
}
