// Layer norm of a residual stream; one pass adds the gradients of stream and norm. A warp processes
// a row, whose elements stay in registers.
//
// P is the dtype of the stream, Q of weights and output, and R of the output's cached cast for an
// autocast region. AMP_N is the number of groups of four columns for each lane.

using W = Wide<Q>;

constexpr int packs = AMP_N;
constexpr int stride = 32 * per_thread;
constexpr int columns = packs * stride;
constexpr int warps = 8;
// The sums of columns: the gradients of weight and bias, and the sum of the cached cast of the
// stream's gradient.
constexpr int sums = 3;

__device__ W warp_sum(W value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

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
    pack_at(out, begin + p * stride) = pack;
    if (twin != nullptr) pack_at(twin, begin + p * stride) = cast;
  }
}

// stream + branch, whose dtype is R. A thread processes four neighbours.
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

// The inputs of the backward pass.
struct Behind {
  const P* in;
  // The gradients of the stream, of the output and of its cached cast; each may be null.
  const P* stream_grads;
  const Q* grads;
  const R* twin_grads;
  const Q* weights;
  const W *means, *inverses;
};

// The outputs: the stream's gradient with its cached cast, which may be null, and for each block
// the sums of columns over its rows, [blocks, sums, columns].
struct Gradients {
  P* in;
  R* twin;
  W* parts;
};

extern "C" __global__ void __launch_bounds__(32 * warps)
    backward(const Behind behind, const Gradients out, int rows) {
  __shared__ W shared[columns];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  W totals[sums][packs][per_thread] = {};
  for (int row = blockIdx.x * warps + warp; row < rows; row += gridDim.x * warps) {
    const long long begin = static_cast<long long>(row) * columns + lane * per_thread;
    W normal[packs][per_thread], grad[packs][per_thread];
    for (int p = 0; p < packs; ++p) {
      const auto x = pack_at(behind.in, begin + p * stride);
      for (int k = 0; k < per_thread; ++k) {
        normal[p][k] = widen(x.at[k]);
        grad[p][k] = 0;
      }
    }
    if (behind.grads != nullptr) {
      for (int p = 0; p < packs; ++p) {
        const auto g = pack_at(behind.grads, begin + p * stride);
        for (int k = 0; k < per_thread; ++k) grad[p][k] = widen(g.at[k]);
      }
    }
    if (behind.twin_grads != nullptr) {
      for (int p = 0; p < packs; ++p) {
        const auto g = pack_at(behind.twin_grads, begin + p * stride);
        for (int k = 0; k < per_thread; ++k) grad[p][k] = rounded<Q>(grad[p][k] + widen(g.at[k]));
      }
    }
    Pack<P> stream[packs] = {};
    if (behind.stream_grads != nullptr) {
      for (int p = 0; p < packs; ++p) stream[p] = pack_at(behind.stream_grads, begin + p * stride);
    }
    const W mean = behind.means[row], inverse = behind.inverses[row];
    W sum = 0, products = 0;
    for (int p = 0; p < packs; ++p) {
      const auto w = pack_at(behind.weights, lane * per_thread + p * stride);
      for (int k = 0; k < per_thread; ++k) {
        normal[p][k] = (normal[p][k] - mean) * inverse;
        totals[0][p][k] += grad[p][k] * normal[p][k];
        totals[1][p][k] += grad[p][k];
        grad[p][k] *= widen(w.at[k]);
        sum += grad[p][k];
        products += grad[p][k] * normal[p][k];
      }
    }
    sum = warp_sum(sum) / columns;
    products = warp_sum(products) / columns;
    for (int p = 0; p < packs; ++p) {
      Pack<R> cast;
      for (int k = 0; k < per_thread; ++k) {
        const W own = (grad[p][k] - sum - normal[p][k] * products) * inverse;
        narrow(own + widen(stream[p].at[k]), stream[p].at[k]);
        narrow(widen(stream[p].at[k]), cast.at[k]);
        totals[2][p][k] += widen(cast.at[k]);
      }
      pack_at(out.in, begin + p * stride) = stream[p];
      if (out.twin != nullptr) pack_at(out.twin, begin + p * stride) = cast;
    }
  }
  for (int s = 0; s < sums; ++s) {
    // Warp by warp, so that the order of a sum is fixed.
    for (int turn = 0; turn < warps; ++turn) {
      if (turn == warp) {
        for (int p = 0; p < packs; ++p) {
          for (int k = 0; k < per_thread; ++k) {
            W& to = shared[lane * per_thread + p * stride + k];
            to = turn == 0 ? totals[s][p][k] : to + totals[s][p][k];
          }
        }
      }
      __syncthreads();
    }
    W* to = out.parts + (static_cast<long long>(blockIdx.x) * sums + s) * columns;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) to[column] = shared[column];
    __syncthreads();
  }
}

// The sums over the parts: weights and biases in their dtype, columns in the dtype of the
// computation. A block has 32 columns of one sum; each warp sums every eighth part.
extern "C" __global__ void __launch_bounds__(32 * warps)
    add_parts(const W* parts, int count, Q* weight, Q* bias, W* column_sums) {
  __shared__ double shared[warps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int across = columns / 32;
  const int s = blockIdx.x / across, column = blockIdx.x % across * 32 + lane;
  double total = 0;
  for (int part = warp; part < count; part += warps) {
    total += parts[(static_cast<long long>(part) * sums + s) * columns + column];
  }
  shared[warp][lane] = total;
  __syncthreads();
  if (warp != 0) return;
  for (int other = 1; other < warps; ++other) total += shared[other][lane];
  if (s == 0) narrow(total, weight[column]);
  if (s == 1) narrow(total, bias[column]);
  if (s == 2) column_sums[column] = static_cast<W>(total);
}
