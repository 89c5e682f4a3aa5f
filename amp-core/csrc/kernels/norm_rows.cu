// The backward pass of layer normalisation after a residual addition (post-norm) or inside a residual branch
// (pre-norm). One or two warps process each row and keep its elements in registers.
//
// P is the dtype of the norm's input, and Q the dtype of the norm's weights and output. R is the dtype of the cached
// cast, which has the values of the output in the dtype of autocast. A row has AMP_N times 128 columns.

using W = Wide<Q>;

// The largest number of warps in a block. If there are few rows, the blocks of `backward` have fewer warps.
constexpr int most_warps = 8;
// The number of warps per row. If two warps share a row, each warp needs half as many registers, so that more blocks
// run at the same time.
constexpr int halves = AMP_N % 2 == 0 ? 2 : 1;
// The number of packs of four neighbouring columns that a lane processes.
constexpr int packs = AMP_N / halves;
// The distance between successive packs of a lane, in columns.
constexpr int stride = 32 * per_thread;
// The number of columns in a row.
constexpr int columns = AMP_N * stride;
// The number of blocks that run on a multiprocessor at the same time and share its registers.
constexpr int resident = sizeof(W) == 8 || packs > 4 ? 1 : 2;
// The number of sums for each column: the weight's gradient, the bias's gradient, and the sum of the branch's gradient.
constexpr int sums = 3;

struct Two {
  W sum, product;
};

// Computes two sums over a row. Only the warps of this row wait for each other. `turn` alternates from row to row, so
// that successive rows use different memory.
__device__ Two row_sums(Two own, int turn) {
  for (int offset = 16; offset > 0; offset /= 2) {
    own.sum += __shfl_xor_sync(~0u, own.sum, offset);
    own.product += __shfl_xor_sync(~0u, own.product, offset);
  }
  if constexpr (halves == 1) return own;
  __shared__ Two shared[2][most_warps];
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) shared[turn][warp] = own;
  asm volatile("bar.sync %0, 64;" ::"r"(1 + warp / 2) : "memory");
  const Two first = shared[turn][warp & ~1], second = shared[turn][warp | 1];
  return {first.sum + second.sum, first.product + second.product};
}

struct Behind {
  // The input of the norm.
  const P* in;
  // The gradients of the residual stream, of the output and of the cached cast. Each may be null.
  const P* stream_grads;
  const Q* grads;
  const R* twin_grads;
  const Q* weights;
  const W *means, *inverses;
};

// The tensors that the backward pass writes. `in` is the gradient of the norm's input, including the gradient of the
// residual stream. `branch` is the gradient of the branch (norm_rows.h): `in` after the backward pass of the branch's
// dropout, in the dtype R. `branch` may be null. `parts` holds the column sums of each block over its rows:
// [blocks, sums, columns].
struct Gradients {
  P* in;
  R* branch;
  W* parts;
};

extern "C" __global__ void __launch_bounds__(32 * most_warps, resident)
    backward(const Behind behind, const Gradients out, int rows, const Dropout before) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int rows_of_block = blockDim.x / 32 / halves;
  // The first column that this lane processes.
  const int first = warp % halves * packs * stride + lane * per_thread;
  const Factors factors(before);
  W totals[sums][packs][per_thread] = {};
  int turn = 0;
  for (int row = blockIdx.x * rows_of_block + warp / halves; row < rows;
       row += gridDim.x * rows_of_block, turn ^= 1) {
    const long long begin = static_cast<long long>(row) * columns + first;
    W normal[packs][per_thread], grad[packs][per_thread];
    Pack<P> stream[packs] = {};
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const auto x = pack_at(behind.in, begin + p * stride);
      for (int k = 0; k < per_thread; ++k) {
        normal[p][k] = widen(x.at[k]);
        grad[p][k] = 0;
      }
    }
    if (behind.grads != nullptr) {
#pragma unroll
      for (int p = 0; p < packs; ++p) {
        const auto g = pack_at(behind.grads, begin + p * stride);
        for (int k = 0; k < per_thread; ++k) grad[p][k] = widen(g.at[k]);
      }
    }
    if (behind.twin_grads != nullptr) {
#pragma unroll
      for (int p = 0; p < packs; ++p) {
        const auto g = pack_at(behind.twin_grads, begin + p * stride);
        for (int k = 0; k < per_thread; ++k) grad[p][k] = rounded<Q>(grad[p][k] + widen(g.at[k]));
      }
    }
    if (behind.stream_grads != nullptr) {
#pragma unroll
      for (int p = 0; p < packs; ++p) stream[p] = pack_at(behind.stream_grads, begin + p * stride);
    }
    const W mean = behind.means[row], inverse = behind.inverses[row];
    Two own = {0, 0};
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const auto w = pack_at(behind.weights, first + p * stride);
      for (int k = 0; k < per_thread; ++k) {
        normal[p][k] = (normal[p][k] - mean) * inverse;
        totals[0][p][k] += grad[p][k] * normal[p][k];
        totals[1][p][k] += grad[p][k];
        grad[p][k] *= widen(w.at[k]);
        own.sum += grad[p][k];
        own.product += grad[p][k] * normal[p][k];
      }
    }
    const Two all = row_sums(own, turn);
    const W sum = all.sum / columns, product = all.product / columns;
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      float kept[per_thread];
      factors.of((begin + p * stride) / per_thread, kept);
      Pack<R> branch;
      for (int k = 0; k < per_thread; ++k) {
        const W value = (grad[p][k] - sum - normal[p][k] * product) * inverse;
        narrow(value + widen(stream[p].at[k]), stream[p].at[k]);
        narrow(rounded<R>(widen(stream[p].at[k])) * kept[k], branch.at[k]);
        totals[2][p][k] += widen(branch.at[k]);
      }
      pack_at(out.in, begin + p * stride) = stream[p];
      if (out.branch != nullptr) pack_at(out.branch, begin + p * stride) = branch;
    }
  }
  __shared__ W shared[columns];
#pragma unroll
  for (int s = 0; s < sums; ++s) {
    // The sums of the warps are added one after the other, so that the order of the additions is always the same.
    for (int other = 0; other < rows_of_block; ++other) {
      if (other == warp / halves) {
#pragma unroll
        for (int p = 0; p < packs; ++p) {
          for (int k = 0; k < per_thread; ++k) {
            W& to = shared[first + p * stride + k];
            to = other == 0 ? totals[s][p][k] : to + totals[s][p][k];
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

// Adds up the sums of all parts. The gradients of weight and bias are written in their dtype, and the column sums of
// the branch in the dtype of the computation. Each block processes 32 columns of one of the sums, and each warp of the
// block reads every eighth part.
extern "C" __global__ void __launch_bounds__(32 * most_warps)
    add_parts(const W* parts, int count, Q* weight, Q* bias, W* column_sums) {
  __shared__ double shared[most_warps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int across = columns / 32;
  const int s = blockIdx.x / across, column = blockIdx.x % across * 32 + lane;
  double total = 0;
  for (int part = warp; part < count; part += most_warps) {
    total += parts[(static_cast<long long>(part) * sums + s) * columns + column];
  }
  shared[warp][lane] = total;
  __syncthreads();
  if (warp != 0) return;
  for (int other = 1; other < most_warps; ++other) total += shared[other][lane];
  if (s == 0) narrow(total, weight[column]);
  if (s == 1) narrow(total, bias[column]);
  if (s == 2) column_sums[column] = static_cast<W>(total);
}
