// Batch normalisation of images in channels_last and 16 bits in training mode, followed by ReLU, or
// by adding a residual and ReLU. Sums are f32 within a thread and f64 across threads, always in the
// same order.
//
// In the forward pass, `statistics` reads the input, `normalise` computes the coefficients of each
// channel, and `apply` reads the input again. In the backward pass, `gradient_sums` sums the
// gradients, `slopes` computes the coefficients of each channel, and `input_gradient` reads the
// input and the gradients again. The mask of ReLU is recomputed from the input. With a residual,
// the mask is stored as one bit per element. The first kernel of a pass starts at the end of the
// images, which was written last and may still be in the cache. The third kernel starts at the
// beginning, where the first kernel has ended.

constexpr int threads = 256;
constexpr int eight = 8;
// The number of blocks that run on a multiprocessor at the same time and share its registers.
constexpr int resident = 3;

using Row = Line;

__device__ void widen(const Row& row, float (&out)[eight]) {
  for (int k = 0; k < eight; ++k) out[k] = ::widen(row.at[k]);
}

__device__ constexpr bool is_bf16(bf16) { return true; }
__device__ constexpr bool is_bf16(f16) { return false; }

// Rounds two numbers to T and packs them into 32 bits, with the first number in the lower half. If
// the device has an instruction for two numbers, one instruction rounds both.
__device__ unsigned narrow_two(float low, float high) {
#if __CUDA_ARCH__ >= 800
  unsigned out;
  if constexpr (is_bf16(T())) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  }
  return out;
#else
  T a, b;
  ::narrow(low, a), ::narrow(high, b);
  return static_cast<unsigned>(a.bits) | static_cast<unsigned>(b.bits) << 16;
#endif
}

__device__ Row narrow(const float (&from)[eight]) {
  union {
    unsigned pairs[eight / 2];
    Row row;
  };
  for (int k = 0; k < eight / 2; ++k) pairs[k] = narrow_two(from[2 * k], from[2 * k + 1]);
  return row;
}

// Returns the largest float that becomes 0 when it is rounded to the argument's type. It is half of
// the smallest positive number of that type.
__device__ float rounds_to_zero(bf16) { return __uint_as_float(1u << 15); }
__device__ float rounds_to_zero(f16) { return 0x1p-25f; }

// Computes ReLU. Returns NaN for a NaN.
__device__ float relu(float x) { return x <= 0 ? 0.f : x; }

// Returns whether ReLU passes on the gradient of an element with the value x. Returns true for a
// NaN.
__device__ bool passes(float x) { return !(x <= rounds_to_zero(T())); }

// The place of a thread: the first of its eight columns, its row within each group of
// `rows_at_once` rows, the index `chunk` of the first such group that its block processes, and
// whether the thread processes any elements.
struct Place {
  int column, row, chunk;
  bool within;

  __device__ explicit Place(const Shape& shape) {
    const int lane = threadIdx.x % shape.lanes;
    row = threadIdx.x / shape.lanes;
    column = (static_cast<int>(blockIdx.x) % shape.tiles * shape.lanes + lane) * eight;
    chunk = static_cast<int>(blockIdx.x) / shape.tiles;
    within = row < shape.rows_at_once && column < shape.columns;
  }

  __device__ float load(const float* values, int k) const { return values[column + k]; }
};

// Calls `read(at, slot)` for up to `depth` rows of the thread, and then `use(at, slot)` for the
// same rows.
template <bool from_the_end, int depth, typename Read, typename Use>
__device__ void for_rows(const Shape& shape, const Place& place, Read read, Use use) {
  if (!place.within) return;
  const int groups = (shape.rows + shape.rows_at_once - 1) / shape.rows_at_once;
  for (int first = place.chunk; first < groups; first += shape.chunks * depth) {
    long long at[depth];
    bool has[depth];
#pragma unroll
    for (int slot = 0; slot < depth; ++slot) {
      const int turn = first + slot * shape.chunks;
      const int group = from_the_end ? groups - 1 - turn : turn;
      const long long row = static_cast<long long>(group) * shape.rows_at_once + place.row;
      has[slot] = turn < groups && row < shape.rows;
      at[slot] = row * shape.columns + place.column;
      if (has[slot]) read(at[slot], slot);
    }
#pragma unroll
    for (int slot = 0; slot < depth; ++slot) {
      if (has[slot]) use(at[slot], slot);
    }
  }
}

__device__ const Row& row_at(const T* data, long long at) {
  return *reinterpret_cast<const Row*>(data + at);
}
__device__ Row& row_at(T* data, long long at) { return *reinterpret_cast<Row*>(data + at); }

// Adds up the two values per column over all rows of the block, and writes the two sums of each
// column to `sums`: [chunks, 2, columns].
__device__ void write_sums(const Shape& shape, const Place& place, const float (&first)[eight],
                           const float (&second)[eight], float* sums) {
  __shared__ float kept[2][eight][threads];
  for (int k = 0; k < eight; ++k) {
    kept[0][k][threadIdx.x] = first[k];
    kept[1][k][threadIdx.x] = second[k];
  }
  __syncthreads();
  const int tile = place.column - static_cast<int>(threadIdx.x) % shape.lanes * eight;
  for (int own = threadIdx.x; own < shape.lanes * eight; own += threads) {
    if (tile + own >= shape.columns) break;
    double a = 0, b = 0;
    for (int row = 0; row < shape.rows_at_once; ++row) {
      a += kept[0][own % eight][row * shape.lanes + own / eight];
      b += kept[1][own % eight][row * shape.lanes + own / eight];
    }
    float* out = sums + static_cast<long long>(place.chunk) * 2 * shape.columns + tile + own;
    out[0] = static_cast<float>(a);
    out[shape.columns] = static_cast<float>(b);
  }
}

// Sums the values of all chunks. A block has 512 threads for eight columns: 64 threads for each
// column. Calls `finish` for each column with the sums.
template <typename Finish>
__device__ void for_columns(const Shape& shape, const float* sums, Finish finish) {
  constexpr int parts = 64;
  __shared__ double kept[2][parts][eight];
  const int own = threadIdx.x % eight, part = threadIdx.x / eight;
  const int column = blockIdx.x * eight + own;
  double a = 0, b = 0;
  if (column < shape.columns) {
    for (int chunk = part; chunk < shape.chunks; chunk += parts) {
      const float* from = sums + static_cast<long long>(chunk) * 2 * shape.columns + column;
      a += from[0];
      b += from[shape.columns];
    }
  }
  kept[0][part][own] = a;
  kept[1][part][own] = b;
  __syncthreads();
  for (int half = parts / 2; half > 0; half /= 2) {
    if (part < half) {
      kept[0][part][own] += kept[0][part + half][own];
      kept[1][part][own] += kept[1][part + half][own];
    }
    __syncthreads();
  }
  if (part == 0 && column < shape.columns) finish(column, kept[0][0][own], kept[1][0][own]);
}

// Sums the distances from the first row, and the squares of the distances. Sums of distances lose
// no precision if the values of a column are far from zero.
extern "C" __global__ void __launch_bounds__(threads, resident) statistics(const T* __restrict__ in, float* sums, const Shape shape) {
  const Place place(shape);
  float origin[eight] = {}, sum[eight] = {}, squares[eight] = {};
  if (place.within) widen(row_at(in, place.column), origin);
  constexpr int depth = 4;
  Row rows[depth];
  for_rows<true, depth>(
      shape, place, [&](long long at, int slot) { rows[slot] = row_at(in, at); },
      [&](long long, int slot) {
        float x[eight];
        widen(rows[slot], x);
        for (int k = 0; k < eight; ++k) {
          const float distance = x[k] - origin[k];
          sum[k] += distance;
          squares[k] = fmaf(distance, distance, squares[k]);
        }
      });
  write_sums(shape, place, sum, squares, sums);
}

extern "C" __global__ void __launch_bounds__(512) normalise(const T* in, const float* sums, const P* weights,
                                     const P* biases, P* running_means, P* running_vars,
                                     long long* tracked, float* known, const Shape shape,
                                     const double momentum, const double eps) {
  if (tracked != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *tracked += 1;
  for_columns(shape, sums, [&](int at, double distances, double squared) {
    const double n = shape.rows, offset = distances / n;
    const double centre = ::widen(in[at]) + offset;
    const double spread = squared / n - offset * offset, variance = spread < 0 ? 0 : spread;
    const double inverse = 1 / sqrt(variance + eps), scale = inverse * ::widen(weights[at]);
    known[mean_row * shape.columns + at] = centre;
    known[inverse_row * shape.columns + at] = inverse;
    known[scale_row * shape.columns + at] = scale;
    known[shift_row * shape.columns + at] = ::widen(biases[at]) - centre * scale;
    if (running_means != nullptr) {
      const double old = 1 - momentum, unbiased = variance * n / (n - 1);
      ::narrow(old * ::widen(running_means[at]) + momentum * centre, running_means[at]);
      ::narrow(old * ::widen(running_vars[at]) + momentum * unbiased, running_vars[at]);
    }
  });
}

enum After { nothing, cuts, adds_and_cuts };

template <After after>
__device__ void apply_to(const T* __restrict__ in, const T* __restrict__ residual,
                         const float* __restrict__ known, T* __restrict__ out,
                         unsigned char* __restrict__ mask, const Shape& shape) {
  const Place place(shape);
  float scale[eight], shift[eight];
  if (place.within) {
    for (int k = 0; k < eight; ++k) {
      scale[k] = place.load(known + scale_row * shape.columns, k);
      shift[k] = place.load(known + shift_row * shape.columns, k);
    }
  }
  constexpr int depth = after == adds_and_cuts ? 2 : 4;
  Row rows[depth], others[depth];
  for_rows<false, depth>(
      shape, place,
      [&](long long at, int slot) {
        rows[slot] = row_at(in, at);
        if (after == adds_and_cuts) others[slot] = row_at(residual, at);
      },
      [&](long long at, int slot) {
        float y[eight];
        widen(rows[slot], y);
        for (int k = 0; k < eight; ++k) y[k] = fmaf(y[k], scale[k], shift[k]);
        if (after == adds_and_cuts) {
          // The output of the batch norm is rounded to 16 bits before the residual is added, as
          // separate layers would round it.
          float other[eight];
          widen(narrow(y), y);
          widen(others[slot], other);
          unsigned bits = 0;
          for (int k = 0; k < eight; ++k) {
            y[k] += other[k];
            bits |= (passes(y[k]) ? 1u : 0u) << k;
          }
          mask[at / eight] = static_cast<unsigned char>(bits);
        }
        if (after != nothing) {
          for (int k = 0; k < eight; ++k) y[k] = relu(y[k]);
        }
        row_at(out, at) = narrow(y);
      });
}

extern "C" __global__ void __launch_bounds__(threads, resident) apply(const T* in, const T* residual, const float* known,
                                     T* out, unsigned char* mask, const Shape shape) {
  apply_to<nothing>(in, residual, known, out, mask, shape);
}
extern "C" __global__ void __launch_bounds__(threads, resident) apply_relu(const T* in, const T* residual, const float* known,
                                          T* out, unsigned char* mask, const Shape shape) {
  apply_to<cuts>(in, residual, known, out, mask, shape);
}
extern "C" __global__ void __launch_bounds__(threads, resident) apply_add_relu(const T* in, const T* residual,
                                              const float* known, T* out, unsigned char* mask,
                                              const Shape shape) {
  apply_to<adds_and_cuts>(in, residual, known, out, mask, shape);
}

// Sums the gradients of the normalised values, and the products of these gradients with the
// distance from the mean. With a residual, also writes the gradient after ReLU, because it is the
// gradient of the residual.
template <After after>
__device__ void sum_gradients(const T* __restrict__ in, const T* __restrict__ grads,
                              const unsigned char* __restrict__ mask,
                              const float* __restrict__ known, T* __restrict__ passed, float* sums,
                              const Shape& shape) {
  const Place place(shape);
  float mean[eight] = {}, scale[eight], shift[eight], sum[eight] = {}, products[eight] = {};
  if (place.within) {
    for (int k = 0; k < eight; ++k) {
      mean[k] = place.load(known + mean_row * shape.columns, k);
      if (after == cuts) {
        scale[k] = place.load(known + scale_row * shape.columns, k);
        shift[k] = place.load(known + shift_row * shape.columns, k);
      }
    }
  }
  constexpr int depth = 2;
  Row rows[depth], incoming[depth];
  unsigned char bits[depth];
  for_rows<true, depth>(
      shape, place,
      [&](long long at, int slot) {
        rows[slot] = row_at(in, at);
        incoming[slot] = row_at(grads, at);
        if (after == adds_and_cuts) bits[slot] = mask[at / eight];
      },
      [&](long long at, int slot) {
        float x[eight], grad[eight];
        widen(rows[slot], x);
        widen(incoming[slot], grad);
        for (int k = 0; k < eight; ++k) {
          if (after == cuts && !passes(fmaf(x[k], scale[k], shift[k]))) grad[k] = 0;
          if (after == adds_and_cuts && (bits[slot] >> k & 1) == 0) grad[k] = 0;
          sum[k] += grad[k];
          products[k] = fmaf(grad[k], x[k] - mean[k], products[k]);
        }
        if (after == adds_and_cuts) row_at(passed, at) = narrow(grad);
      });
  write_sums(shape, place, sum, products, sums);
}

extern "C" __global__ void __launch_bounds__(threads, resident) gradient_sums(const T* in, const T* grads,
                                             const unsigned char* mask, const float* known,
                                             T* passed, float* sums, const Shape shape) {
  sum_gradients<nothing>(in, grads, mask, known, passed, sums, shape);
}
extern "C" __global__ void __launch_bounds__(threads, resident) gradient_sums_relu(const T* in, const T* grads,
                                                  const unsigned char* mask, const float* known,
                                                  T* passed, float* sums, const Shape shape) {
  sum_gradients<cuts>(in, grads, mask, known, passed, sums, shape);
}
extern "C" __global__ void __launch_bounds__(threads, resident) gradient_sums_add_relu(const T* in, const T* grads,
                                                      const unsigned char* mask,
                                                      const float* known, T* passed, float* sums,
                                                      const Shape shape) {
  sum_gradients<adds_and_cuts>(in, grads, mask, known, passed, sums, shape);
}

// Computes the gradients of weight and bias. Also computes the coefficients of a linear function of
// the input: the gradient of the input is the scaled gradient of the output plus this function.
extern "C" __global__ void __launch_bounds__(512) slopes(const float* sums, const float* known, P* weight_grads,
                                  P* bias_grads, float* line, const Shape shape) {
  for_columns(shape, sums, [&](int at, double total, double product) {
    const double mean = known[mean_row * shape.columns + at];
    const double inverse = known[inverse_row * shape.columns + at];
    const double scale = known[scale_row * shape.columns + at];
    const double slope = product * inverse;
    ::narrow(slope, weight_grads[at]);
    ::narrow(total, bias_grads[at]);
    const double of_input = -scale * slope * inverse / shape.rows;
    line[of_input_row * shape.columns + at] = of_input;
    line[constant_row * shape.columns + at] = -scale * total / shape.rows - of_input * mean;
  });
}

template <After after>
__device__ void find_input_gradient(const T* __restrict__ in, const T* __restrict__ grads,
                                    const float* __restrict__ known,
                                    const float* __restrict__ line, T* __restrict__ out,
                                    const Shape& shape) {
  const Place place(shape);
  float scale[eight], shift[eight], of_input[eight], constant[eight];
  if (place.within) {
    for (int k = 0; k < eight; ++k) {
      scale[k] = place.load(known + scale_row * shape.columns, k);
      if (after == cuts) shift[k] = place.load(known + shift_row * shape.columns, k);
      of_input[k] = place.load(line + of_input_row * shape.columns, k);
      constant[k] = place.load(line + constant_row * shape.columns, k);
    }
  }
  constexpr int depth = 2;
  Row rows[depth], incoming[depth];
  for_rows<false, depth>(
      shape, place,
      [&](long long at, int slot) {
        rows[slot] = row_at(in, at);
        incoming[slot] = row_at(grads, at);
      },
      [&](long long at, int slot) {
        float x[eight], grad[eight];
        widen(rows[slot], x);
        widen(incoming[slot], grad);
        for (int k = 0; k < eight; ++k) {
          if (after == cuts && !passes(fmaf(x[k], scale[k], shift[k]))) grad[k] = 0;
          grad[k] = fmaf(grad[k], scale[k], fmaf(x[k], of_input[k], constant[k]));
        }
        row_at(out, at) = narrow(grad);
      });
}

extern "C" __global__ void __launch_bounds__(threads, resident) input_gradient(const T* in, const T* grads,
                                              const float* known, const float* line, T* out,
                                              const Shape shape) {
  find_input_gradient<nothing>(in, grads, known, line, out, shape);
}
extern "C" __global__ void __launch_bounds__(threads, resident) input_gradient_relu(const T* in, const T* grads,
                                                   const float* known, const float* line, T* out,
                                                   const Shape shape) {
  find_input_gradient<cuts>(in, grads, known, line, out, shape);
}
