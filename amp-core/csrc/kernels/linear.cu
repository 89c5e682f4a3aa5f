// The operations after the product of a linear layer, and the operations before the products of its
// backward pass.

// Adds a bias, which may be null, then applies ReLU and dropout to [rows, columns], in place.
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
    // A NaN is kept.
    if (value <= 0) value = 0;
    narrow(value * factors[k], pack.at[k]);
  }
  store(pack, values + begin, 0, own, whole);
}

// The numbers are the same as in csrc/linear.cpp.
enum Activation : int { none, relu, gelu, gelu_tanh };

// Computes the exponential. For 16-bit values its error is far below their rounding.
__device__ float exponential_of(float x) {
  if constexpr (sizeof(T) == 2) return __expf(x);
  return expf(x);
}

// Computes the hyperbolic tangent for 16-bit values, with an error of about 1e-7.
__device__ float hyperbolic_tangent(float x) {
  if constexpr (sizeof(T) == 2) return 1 - __fdividef(2.0f, 1 + __expf(2 * x));
  return tanhf(x);
}
__device__ double hyperbolic_tangent(double x) { return tanh(x); }

// Φ(x) and φ(x) of the normal distribution.
template <typename W>
struct Normal {
  W share, density;
};

// Computes them for 16-bit values, with an error of about 1e-7 (Abramowitz and Stegun, 7.1.26).
__device__ Normal<float> normal_of(float x) {
  constexpr float peak = 0.39894228040143268f;
  const float density = peak * exponential_of(x * x * -0.5f);
  if constexpr (sizeof(T) != 2) return {0.5f * (1 + erff(x * 0.70710678118654752f)), density};
  const float t = __fdividef(1.0f, 1 + 0.23164189f * fabsf(x));
  const float rest = 1.421413741f + t * (-1.453152027f + t * 1.061405429f);
  const float sum = t * (0.254829592f + t * (-0.284496736f + t * rest));
  const float tail = 0.5f / peak * density * sum;
  return {x < 0 ? tail : 1 - tail, density};
}
__device__ Normal<double> normal_of(double x) {
  return {0.5 * (1 + erf(x * 0.70710678118654752)), 0.39894228040143268 * exp(x * x * -0.5)};
}

// Computes x·Φ(x), or its approximation x·(1 + tanh(β·(x + κ·x³)))/2.
template <typename W>
__device__ W gelu_of(W x) {
  return x * normal_of(x).share;
}
template <typename W>
__device__ W gelu_tanh_of(W x) {
  constexpr W beta = 0.79788456080286536, kappa = 0.044715;
  return W(0.5) * x * (1 + hyperbolic_tangent(beta * (x + kappa * x * x * x)));
}

// Computes the derivatives of these functions.
template <typename W>
__device__ W gelu_slope(W x) {
  const auto normal = normal_of(x);
  return normal.share + x * normal.density;
}
template <typename W>
__device__ W gelu_tanh_slope(W x) {
  constexpr W beta = 0.79788456080286536, kappa = 0.044715;
  const W share = hyperbolic_tangent(beta * (x + kappa * x * x * x));
  return W(0.5) * (1 + share) +
         W(0.5) * x * (1 - share * share) * beta * (1 + 3 * kappa * x * x);
}

// Computes the factors of dropout for the line at index `place`, a multiple of the line's length.
__device__ void factors_of(const Factors& factors, long long place, float (&out)[Line::length]) {
  for (int k = 0; k < Line::length; ++k) out[k] = factors.scale;
  if (factors.threshold == 0) return;
  if constexpr (Line::length % per_thread == 0) {
    for (int group = 0; group < Line::length / per_thread; ++group) {
      float own[per_thread];
      factors.of(place / per_thread + group, own);
      for (int k = 0; k < per_thread; ++k) out[group * per_thread + k] = own[k];
    }
  } else {
    for (int k = 0; k < Line::length; ++k) out[k] = factors.at(place + k);
  }
}

// Applies GELU, then dropout. Each thread processes a line. Between the two layers a value is
// rounded to the layers' dtype.
extern "C" __global__ void gelu_and_dropout(const T* in, T* out, long long count, int activation,
                                            const Dropout dropout) {
  const long long begin =
      (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * Line::length;
  if (begin >= count) return;
  float factors[Line::length];
  factors_of(Factors(dropout), begin, factors);
  const bool whole = begin + Line::length <= count;
  Line line{};
  if (whole) {
    line = *reinterpret_cast<const Line*>(in + begin);
  } else {
    for (int k = 0; k < Line::length; ++k) {
      if (begin + k < count) line.at[k] = in[begin + k];
    }
  }
  for (int k = 0; k < Line::length; ++k) {
    const auto x = widen(line.at[k]);
    const auto active = rounded<T>(activation == gelu ? gelu_of(x) : gelu_tanh_of(x));
    narrow(active * factors[k], line.at[k]);
  }
  if (whole) {
    *reinterpret_cast<Line*>(out + begin) = line;
  } else {
    for (int k = 0; k < Line::length; ++k) {
      if (begin + k < count) out[begin + k] = line.at[k];
    }
  }
}

// Computes the gradient of an activation's input from the gradient after the activation and the
// dropout. Dropout multiplies by `factor`.
template <int activation, typename W>
__device__ W passed_on(W value, W kept, float factor) {
  if constexpr (activation == relu) return kept != 0 ? value * factor : W(0);
  if constexpr (activation == gelu) return rounded<T>(value * factor) * gelu_slope(kept);
  if constexpr (activation == gelu_tanh) return rounded<T>(value * factor) * gelu_tanh_slope(kept);
  return value;
}

// Does the same with rounding, for an activation that is chosen at run time.
template <typename W>
__device__ W passed_on(W value, W kept, int activation, float factor) {
  switch (activation) {
    case relu: return rounded<T>(passed_on<relu>(value, kept, factor));
    case gelu: return rounded<T>(passed_on<gelu>(value, kept, factor));
    case gelu_tanh: return rounded<T>(passed_on<gelu_tanh>(value, kept, factor));
    default: return value;
  }
}

// Sums a matrix's columns, which gives the gradient of a bias. Each block processes 32 columns and
// up to `part` rows, and writes the sums of each part to a row of the output. With an activation
// the matrix is first multiplied by the activation's derivative and written to `passed`. `kept` is
// the output of ReLU and dropout, or the input of GELU. `out` may then be null.
extern "C" __global__ void column_sums(const T* in, const T* kept, int activation,
                                       const Dropout dropout, T* passed, P* out, long long rows,
                                       long long columns, long long part) {
  using W = Wide<T>;
  __shared__ W sums[32][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const long long across = (columns + 31) / 32;
  const long long column = blockIdx.x % across * 32 + lane, at = blockIdx.x / across;
  const long long end = (at + 1) * part < rows ? (at + 1) * part : rows;
  const Factors factors(dropout);
  W sum = 0;
  if (column < columns) {
    for (long long row = at * part + warp; row < end; row += warps) {
      const long long place = row * columns + column;
      W value = widen(in[place]);
      if (activation != none) {
        value = passed_on(value, widen(kept[place]), activation, factors.at(place));
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

// Sums columns in lines of 16 bytes, one for each lane. A block of eight warps processes up to
// `part` rows of the columns in one warp's lines.
struct Lines {
  const T *in, *kept;
  Factors factors;
  T* passed;
  long long rows, columns, part;
};

template <int activation, typename W>
__device__ void add_lines(const Lines& lines, long long column, long long at,
                          W (&sum)[Line::length]) {
  constexpr int warps = 8;
  // The number of rows whose lines are read before the first is used.
  constexpr int depth = activation == none ? 4 : 2;
  const long long end = (at + 1) * lines.part < lines.rows ? (at + 1) * lines.part : lines.rows;
  for (long long first = at * lines.part + threadIdx.x / 32; first < end; first += warps * depth) {
    Line read[depth], kept[depth];
#pragma unroll
    for (int turn = 0; turn < depth; ++turn) {
      const long long row = first + turn * warps, place = row * lines.columns + column;
      if (row >= end) break;
      read[turn] = *reinterpret_cast<const Line*>(lines.in + place);
      if constexpr (activation != none) {
        kept[turn] = *reinterpret_cast<const Line*>(lines.kept + place);
      }
    }
#pragma unroll
    for (int turn = 0; turn < depth; ++turn) {
      const long long row = first + turn * warps, place = row * lines.columns + column;
      if (row >= end) break;
      Line& line = read[turn];
      if constexpr (activation != none) {
        float factors[Line::length];
        factors_of(lines.factors, place, factors);
        for (int k = 0; k < Line::length; ++k) {
          const W given = widen(line.at[k]), own = widen(kept[turn].at[k]);
          narrow(passed_on<activation>(given, own, factors[k]), line.at[k]);
        }
        *reinterpret_cast<Line*>(lines.passed + place) = line;
      }
      for (int k = 0; k < Line::length; ++k) sum[k] += widen(line.at[k]);
    }
  }
}

// Writes the sums of the parts to `out`.
extern "C" __global__ void __launch_bounds__(256, sizeof(T) == 2 ? 3 : 2)
    large_column_sums(const T* in, const T* kept, int activation, const Dropout dropout, T* passed,
                      Wide<T>* out, long long rows, long long columns, long long part) {
  using W = Wide<T>;
  constexpr int warps = 8, width = 32 * Line::length;
  __shared__ W sums[warps][width];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long across = (columns + width - 1) / width;
  const long long column = blockIdx.x % across * width + lane * Line::length;
  const long long at = blockIdx.x / across;
  const Lines lines{in, kept, Factors(dropout), passed, rows, columns, part};
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
