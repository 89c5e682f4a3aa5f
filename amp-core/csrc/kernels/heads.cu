// Joins the gradients of queries, keys and values, which are stored by head, into the gradient of the product from
// which queries, keys and values were split. Also sums the columns of this gradient, which gives the gradient of
// the product's bias.

// The gradients of queries, keys and values, [batch, heads, length, width], with their strides in memory. `width` is a
// multiple of the number of elements in 16 bytes.
struct Heads {
  const T* data[3];
  long long batch[3], head[3], place[3];
  int heads, width;
};

// Joins the gradients and sums the columns. A row is one position of a sequence, and each sequence has `length` rows. A
// block of eight warps processes up to `part` rows, and as many columns as the 32 lanes of a warp read at once with 16
// bytes per lane. `sums` receives the sums of each part.
extern "C" __global__ void __launch_bounds__(256)
    join_heads(const Heads from, T* out, Wide<T>* sums, long long rows, int length, int part) {
  using W = Wide<T>;
  constexpr int warps = 8, across_block = 32 * Line::length;
  __shared__ W shared[warps][across_block];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int each = from.heads * from.width, columns = 3 * each;
  const int across = (columns + across_block - 1) / across_block;
  const int column = blockIdx.x % across * across_block + lane * Line::length;
  const long long at = blockIdx.x / across, begin = at * part;
  const long long end = begin + part < rows ? begin + part : rows;
  W sum[Line::length] = {};
  if (column < columns) {
    const int which = column / each, head = column % each / from.width;
    const T* own = from.data[which] + head * from.head[which] + column % from.width;
    int place = static_cast<int>((begin + warp) % length);
    const T* sequence = own + (begin + warp) / length * from.batch[which];
#pragma unroll 4
    for (long long row = begin + warp; row < end; row += warps) {
      const Line line = *reinterpret_cast<const Line*>(sequence + place * from.place[which]);
      for (place += warps; place >= length; place -= length) sequence += from.batch[which];
      *reinterpret_cast<Line*>(out + row * columns + column) = line;
      for (int k = 0; k < Line::length; ++k) sum[k] += widen(line.at[k]);
    }
  }
  for (int k = 0; k < Line::length; ++k) shared[warp][lane * Line::length + k] = sum[k];
  __syncthreads();
  const int own = blockIdx.x % across * across_block + threadIdx.x;
  if (threadIdx.x >= across_block || own >= columns) return;
  W total = shared[0][threadIdx.x];
  for (int other = 1; other < warps; ++other) total += shared[other][threadIdx.x];
  sums[at * columns + own] = total;
}

// Adds up the sums of all parts. A block processes 32 columns, and each warp of the block reads every eighth part.
extern "C" __global__ void __launch_bounds__(256)
    add_parts(const Wide<T>* sums, int count, int columns, Wide<T>* out) {
  __shared__ double shared[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
  double total = 0;
  if (column < columns) {
    for (int part = warp; part < count; part += 8) {
      total += sums[static_cast<long long>(part) * columns + column];
    }
  }
  shared[warp][lane] = total;
  __syncthreads();
  if (warp != 0 || column >= columns) return;
  for (int other = 1; other < 8; ++other) total += shared[other][lane];
  out[column] = static_cast<Wide<T>>(total);
}
