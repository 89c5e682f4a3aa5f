// The operations after the matrix product of a linear layer, and the operations before the matrix products of its
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
    // The comparison is false for a NaN, so ReLU returns the NaN.
    if (value <= 0) value = 0;
    narrow(value * factors[k], pack.at[k]);
  }
  store(pack, values + begin, 0, own, whole);
}

// The activations. csrc/activation.h uses the same numbers.
enum Activation : int { none, relu, gelu, gelu_tanh };

// Compute 2ˣ and 1/x for 16-bit values, with an error of about 2⁻²². A number that is too small for a normal f32
// becomes 0. Exact results for such numbers would take a quarter of all instructions of GELU.
__device__ float power_of_two(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
__device__ float reciprocal(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// Computes the hyperbolic tangent. For 16-bit values, the error is about 1e-7.
__device__ float hyperbolic_tangent(float x) {
  constexpr float to_power = 2.8853900817779268f;
  if constexpr (sizeof(T) == 2) return 1 - 2 * reciprocal(1 + power_of_two(to_power * x));
  return tanhf(x);
}
__device__ double hyperbolic_tangent(double x) { return tanh(x); }

// The values Φ(x) and φ(x) of the standard normal distribution.
template <typename W>
struct Normal {
  W share, density;
};

// Computes Φ(x) and φ(x) for 16-bit values, with an error of about 1e-7 (Abramowitz and Stegun, 7.1.26).
__device__ Normal<float> normal_of(float x) {
  constexpr float peak = 0.39894228040143268f, to_power = -0.72134752044448170f;
  if constexpr (sizeof(T) != 2) {
    return {0.5f * (1 + erff(x * 0.70710678118654752f)), peak * expf(x * x * -0.5f)};
  }
  const float bell = power_of_two(x * x * to_power), t = reciprocal(1 + 0.23164189f * fabsf(x));
  // The published function is twice the tail of Φ. Therefore the coefficients here are half of the published ones.
  const float rest = 0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f);
  const float sum = t * (0.127414796f + t * (-0.142248368f + t * rest));
  const float tail = bell * sum;
  return {x < 0 ? tail : 1 - tail, peak * bell};
}
__device__ Normal<double> normal_of(double x) {
  return {0.5 * (1 + erf(x * 0.70710678118654752)), 0.39894228040143268 * exp(x * x * -0.5)};
}

// Compute GELU, x·Φ(x), and its approximation x·(1 + tanh(β·(x + κ·x³)))/2, with PyTorch's constants β and κ.
template <typename W>
__device__ W gelu_of(W x) {
  return x * normal_of(x).share;
}
template <typename W>
__device__ W gelu_tanh_of(W x) {
  constexpr W beta = 0.79788456080286536, kappa = 0.044715;
  return W(0.5) * x * (1 + hyperbolic_tangent(beta * (x + kappa * x * x * x)));
}

// Compute the derivatives of `gelu_of` and `gelu_tanh_of`.
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

// Computes the dropout factors (0 or `scale`) of `Line::length` consecutive elements. `place` is the index of the first
// of these elements, and a multiple of `Line::length`.
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

// Applies GELU to a line, and then dropout if `drops` is true. Between GELU and dropout, each value is rounded to the
// dtype of the layers.
template <int activation, bool drops>
__device__ void activate_line(Line& line, const float (&factors)[Line::length]) {
  for (int k = 0; k < Line::length; ++k) {
    const auto x = widen(line.at[k]);
    const auto active = activation == gelu ? gelu_of(x) : gelu_tanh_of(x);
    narrow(drops ? rounded<T>(active) * factors[k] : active, line.at[k]);
  }
}
template <int activation>
__device__ void activate_line(Line& line, long long begin, const Dropout& dropout) {
  float factors[Line::length];
  if (dropout.threshold == 0) {
    activate_line<activation, false>(line, factors);
  } else {
    factors_of(Factors(dropout), begin, factors);
    activate_line<activation, true>(line, factors);
  }
}

// Applies GELU, then dropout. Each thread processes a line of 16 bytes.
extern "C" __global__ void gelu_and_dropout(const T* in, T* out, long long count, int activation,
                                            const Dropout dropout) {
  const long long begin =
      (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * Line::length;
  if (begin >= count) return;
  const bool whole = begin + Line::length <= count;
  Line line{};
  if (whole) {
    line = *reinterpret_cast<const Line*>(in + begin);
  } else {
    for (int k = 0; k < Line::length; ++k) {
      if (begin + k < count) line.at[k] = in[begin + k];
    }
  }
  if (activation == gelu) {
    activate_line<gelu>(line, begin, dropout);
  } else {
    activate_line<gelu_tanh>(line, begin, dropout);
  }
  if (whole) {
    *reinterpret_cast<Line*>(out + begin) = line;
  } else {
    for (int k = 0; k < Line::length; ++k) {
      if (begin + k < count) out[begin + k] = line.at[k];
    }
  }
}

// Computes the gradient of an activation's input from the gradient after the activation and the dropout. `factor` is
// the factor of the dropout. For GELU, `factor` is used only if `drops` is true.
template <int activation, bool drops = true, typename W>
__device__ W passed_on(W value, W kept, float factor) {
  if constexpr (activation == relu) return kept != 0 ? value * factor : W(0);
  const W dropped = drops ? rounded<T>(value * factor) : value;
  if constexpr (activation == gelu) return dropped * gelu_slope(kept);
  if constexpr (activation == gelu_tanh) return dropped * gelu_tanh_slope(kept);
  return value;
}

// The elements of a column that a warp of `column_sums` sums, and where their gradients are written.
struct Column {
  const T *in, *kept;
  Factors factors;
  T* passed;
  // The index of the first element, the index behind the last element, and the distance between
  // successive elements.
  long long begin, end, stride;
};

// Computes the sum of the column's elements. With an activation, the elements are gradients of the activation's
// output. The function then writes the gradients of the activation's input, and returns their sum.
template <int activation>
__device__ Wide<T> sum_of(const Column& column) {
  using W = Wide<T>;
  // The number of elements that are read before the first is used.
  constexpr int depth = activation == none ? 8 : activation == relu ? 4 : 1;
  W sum = 0;
  for (long long first = column.begin; first < column.end; first += depth * column.stride) {
    T read[depth], kept[depth];
#pragma unroll
    for (int turn = 0; turn < depth; ++turn) {
      const long long place = first + turn * column.stride;
      if (place >= column.end) break;
      read[turn] = column.in[place];
      if constexpr (activation != none) kept[turn] = column.kept[place];
    }
#pragma unroll
    for (int turn = 0; turn < depth; ++turn) {
      const long long place = first + turn * column.stride;
      if (place >= column.end) break;
      W value = widen(read[turn]);
      if constexpr (activation != none) {
        const float factor = column.factors.at(place);
        value = rounded<T>(passed_on<activation>(value, widen(kept[turn]), factor));
        narrow(value, column.passed[place]);
      }
      sum += value;
    }
  }
  return sum;
}

// Sums the columns of a matrix, which gives the gradient of a bias. Each block processes 32 columns and up to `part`
// rows, and writes one row of sums. With an activation, the matrix is first multiplied by the activation's derivative
// and written to `passed`. `kept` is the output of ReLU and dropout, or the input of GELU. With an activation, `out`
// may be null.
extern "C" __global__ void __launch_bounds__(512)
    column_sums(const T* in, const T* kept, int activation, const Dropout dropout, T* passed, P* out,
                long long rows, long long columns, long long part) {
  using W = Wide<T>;
  __shared__ W sums[32][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const long long across = (columns + 31) / 32;
  const long long column = blockIdx.x % across * 32 + lane, at = blockIdx.x / across;
  const long long end = (at + 1) * part < rows ? (at + 1) * part : rows;
  W sum = 0;
  if (column < columns) {
    const Column own{in, kept, Factors(dropout), passed, (at * part + warp) * columns + column,
                     end * columns, warps * columns};
    switch (activation) {
      case relu: sum = sum_of<relu>(own); break;
      case gelu: sum = sum_of<gelu>(own); break;
      case gelu_tanh: sum = sum_of<gelu_tanh>(own); break;
      default: sum = sum_of<none>(own);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= columns || out == nullptr) return;
  for (int other = 1; other < warps; ++other) sum += sums[other][lane];
  narrow(sum, out[at * columns + column]);
}

// The arguments of `add_lines`, which sums columns. A block of eight warps processes up to `part` rows, and as many
// columns as the 32 lanes of a warp read at once with a line of 16 bytes per lane.
struct Lines {
  const T *in, *kept;
  Factors factors;
  T* passed;
  long long rows, columns, part;
};

template <int activation, bool drops = true, typename W>
__device__ void add_lines(const Lines& lines, long long column, long long at,
                          W (&sum)[Line::length]) {
  constexpr int warps = 8;
  // The number of rows whose lines are read before the line of the first row is used.
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
        if constexpr (drops) factors_of(lines.factors, place, factors);
        for (int k = 0; k < Line::length; ++k) {
          const W given = widen(line.at[k]), own = widen(kept[turn].at[k]);
          narrow(passed_on<activation, drops>(given, own, factors[k]), line.at[k]);
        }
        *reinterpret_cast<Line*>(lines.passed + place) = line;
      }
      for (int k = 0; k < Line::length; ++k) sum[k] += widen(line.at[k]);
    }
  }
}

// Sums the columns of a large matrix in parts of rows, and writes the sums of each part to `out`.
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
    const bool drops = dropout.threshold != 0;
    switch (activation) {
      case relu: add_lines<relu>(lines, column, at, sum); break;
      case gelu:
        drops ? add_lines<gelu>(lines, column, at, sum)
              : add_lines<gelu, false>(lines, column, at, sum);
        break;
      case gelu_tanh:
        drops ? add_lines<gelu_tanh>(lines, column, at, sum)
              : add_lines<gelu_tanh, false>(lines, column, at, sum);
        break;
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
