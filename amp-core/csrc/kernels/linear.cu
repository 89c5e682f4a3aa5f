// The operations after the product of a linear layer, and before the products of its backward pass.

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
    // NaN passes.
    if (value <= 0) value = 0;
    narrow(value * factors[k], pack.at[k]);
  }
  store(pack, values + begin, 0, own, whole);
}

// The same values as in csrc/linear.cpp.
enum Activation : int { none, relu, gelu, gelu_tanh };

__device__ float error_function(float x) { return erff(x); }
__device__ double error_function(double x) { return erf(x); }
// For 16-bit values; the error is about 1e-7.
__device__ float hyperbolic_tangent(float x) {
  if constexpr (sizeof(T) == 2) return 1 - __fdividef(2.0f, 1 + __expf(2 * x));
  return tanhf(x);
}
__device__ double hyperbolic_tangent(double x) { return tanh(x); }

// The derivatives of x·Φ(x), and of its approximation x·(1 + tanh(β·(x + κ·x³)))/2.
template <typename W>
__device__ W gelu_slope(W x) {
  return W(0.5) * (1 + error_function(x * W(0.70710678118654752))) +
         x * W(0.39894228040143268) * exponential(x * x * W(-0.5));
}
template <typename W>
__device__ W gelu_tanh_slope(W x) {
  constexpr W beta = 0.79788456080286536, kappa = 0.044715;
  const W share = hyperbolic_tangent(beta * (x + kappa * x * x * x));
  return W(0.5) * (1 + share) +
         W(0.5) * x * (1 - share * share) * beta * (1 + 3 * kappa * x * x);
}

// The gradient before an activation, from the gradient after it.
template <int activation, typename W>
__device__ W passed_on(W value, W kept, float scale) {
  if constexpr (activation == relu) return kept != 0 ? value * scale : W(0);
  if constexpr (activation == gelu) return value * gelu_slope(kept);
  if constexpr (activation == gelu_tanh) return value * gelu_tanh_slope(kept);
  return value;
}

// The same, rounded, if the activation is not known at compile time.
template <typename W>
__device__ W passed_on(W value, W kept, int activation, float scale) {
  switch (activation) {
    case relu: return rounded<T>(passed_on<relu>(value, kept, scale));
    case gelu: return rounded<T>(passed_on<gelu>(value, kept, scale));
    case gelu_tanh: return rounded<T>(passed_on<gelu_tanh>(value, kept, scale));
    default: return value;
  }
}

// The sums of a matrix's columns, which are the gradient of a bias. A block processes 32 columns
// and up to `part` rows; the sums of the parts are rows of a matrix. With an activation, the
// gradient before the activation is summed and written to `passed`: `kept` is the output of ReLU
// and dropout, or the input of GELU. `out` may be null then.
extern "C" __global__ void column_sums(const T* in, const T* kept, int activation, float scale,
                                       T* passed, P* out, long long rows, long long columns,
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
      const long long place = row * columns + column;
      W value = widen(in[place]);
      if (activation != none) {
        value = passed_on(value, widen(kept[place]), activation, scale);
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

struct alignas(16) Line {
  static constexpr int length = 16 / sizeof(T);
  T at[length];
};

// The same in lines of 16 bytes, one for each lane: a block of eight warps processes the columns of
// a warp's lines and up to `part` rows.
struct Lines {
  const T *in, *kept;
  float scale;
  T* passed;
  long long rows, columns, part;
};

template <int activation, typename W>
__device__ void add_lines(const Lines& lines, long long column, long long at,
                          W (&sum)[Line::length]) {
  constexpr int warps = 8;
  const long long end = (at + 1) * lines.part < lines.rows ? (at + 1) * lines.part : lines.rows;
#pragma unroll 4
  for (long long row = at * lines.part + threadIdx.x / 32; row < end; row += warps) {
    const long long place = row * lines.columns + column;
    Line line = *reinterpret_cast<const Line*>(lines.in + place);
    if constexpr (activation != none) {
      const Line own = *reinterpret_cast<const Line*>(lines.kept + place);
      for (int k = 0; k < Line::length; ++k) {
        const W value = passed_on<activation>(widen(line.at[k]), widen(own.at[k]), lines.scale);
        narrow(value, line.at[k]);
      }
      *reinterpret_cast<Line*>(lines.passed + place) = line;
    }
    for (int k = 0; k < Line::length; ++k) sum[k] += widen(line.at[k]);
  }
}

// `out` contains the sums of the parts.
extern "C" __global__ void __launch_bounds__(256)
    large_column_sums(const T* in, const T* kept, int activation, float scale, T* passed,
                      Wide<T>* out, long long rows, long long columns, long long part) {
  using W = Wide<T>;
  constexpr int warps = 8, width = 32 * Line::length;
  __shared__ W sums[warps][width];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long across = (columns + width - 1) / width;
  const long long column = blockIdx.x % across * width + lane * Line::length;
  const long long at = blockIdx.x / across;
  const Lines lines{in, kept, scale, passed, rows, columns, part};
  W sum[Line::length] = {};
  if (column < columns) {
    switch (activation) {
      case relu: add_lines<relu>(lines, column, at, sum); break;
      case gelu: add_lines<gelu>(lines, column, at, sum); break;
      case gelu_tanh: add_lines<gelu_tanh>(lines, column, at, sum); break;
      default: add_lines<none>(lines, column, at, sum);
    }
  }
  for (int k = 0; k < Line::length; ++k) sums[warp][lane * Line::length + k] = sum[k];
  __syncthreads();
  const long long own = blockIdx.x % across * width + threadIdx.x;
  if (out == nullptr || threadIdx.x >= width || own >= columns) return;
  W total = sums[0][threadIdx.x];
  for (int other = 1; other < warps; ++other) total += sums[other][threadIdx.x];
  out[at * columns + own] = total;
}
