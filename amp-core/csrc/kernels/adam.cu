// Adam and AdamW steps over many tensors at once. The lists of tensors are parameters, gradients, exp_avgs, exp_avg_sqs
// and steps (f32 scalars). With 8-bit averages there are two more lists, the scales of exp_avg and of exp_avg_sq, with
// one scale for each 256 elements. The arithmetic equals that of libtorch's fused kernel
// (ATen/native/cuda/fused_adam_utils.cuh): learning rate and betas in f64, everything else in the parameter's dtype, or
// in f32 if this dtype has 16 bits. This kernel differs from libtorch's kernel in three ways. The learning rate is read
// from device memory, so that a step in a CUDA graph follows the learning-rate schedule. Gradients are multiplied by a
// factor when they are read, so that unscaling and clipping need no separate kernel. Averages may have fewer bits than
// the parameters.

constexpr float smallest_normal = 1.17549435e-38f;

__device__ float* steps_of(const StepTensors& tensors, int at) {
  return static_cast<float*>(tensors.data[4][at]);
}

// Increments the step count of each tensor. Runs in a single block.
extern "C" __global__ void count_steps(const StepTensors tensors, const OnDevice known) {
  const int at = threadIdx.x;
  if (at < tensors.count && !is_left_out(known)) *steps_of(tensors, at) += 1;
}

// Compute approximations of a square root and a quotient. For normal numbers the error is at most two units in the
// last place. Subnormal numbers give zero.
__device__ float approximate_sqrt(float x) {
  float out;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
__device__ float approximate_ratio(float x, float y) {
  float out;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(out) : "f"(x), "f"(y));
  return out;
}

// The constants of a step for one tensor. R is the dtype in which they are computed.
template <typename R>
struct Update {
  using W = Wide<T>;
  R decay, beta1, beta2, rest1, rest2, eps;
  bool decoupled, decays;
  W step_size, correction2_sqrt, multiplier;

  // Must be called by all threads of the block.
  __device__ Update(const OnDevice& known, const AmpAdam& options, const float* steps)
      : decay(options.decoupled ? known.rates[0] * options.weight_decay : options.weight_decay),
        beta1(known.rates[1]),
        beta2(options.beta2),
        rest1(1 - known.rates[1]),
        rest2(1 - options.beta2),
        eps(options.eps),
        decoupled(options.decoupled),
        decays(options.weight_decay != 0),
        multiplier(factor_of<W>(known)) {
    __shared__ W shared[2];
    if (threadIdx.x == 0) {
      const double count = *steps;
      const W correction1 = 1 - pow(known.rates[1], count);
      shared[0] = known.rates[0] / correction1;
      shared[1] = sqrt(1 - pow(options.beta2, count));
    }
    __syncthreads();
    step_size = shared[0];
    correction2_sqrt = shared[1];
  }

  __device__ void operator()(W& param, W grad, W& exp_avg, W& exp_avg_sq) const {
    grad *= multiplier;
    if (decays) {
      if (decoupled) {
        param -= decay * param;
      } else {
        grad += param * decay;
      }
    }
    exp_avg = beta1 * exp_avg + rest1 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + rest2 * grad * grad;
    if constexpr (sizeof(R) < sizeof(double)) {
      const float denominator =
          approximate_ratio(approximate_sqrt(exp_avg_sq), correction2_sqrt) + eps;
      param -= approximate_ratio(step_size * exp_avg, denominator);
    } else {
      const W denominator = sqrt(exp_avg_sq) / correction2_sqrt + eps;
      param -= step_size * exp_avg / denominator;
    }
  }
};

template <typename U>
__device__ void keep(Wide<T> average, U& out, unsigned noise) {
  if constexpr (sizeof(U) < sizeof(T)) {
    narrow_at_random(average, out, noise);
  } else {
    narrow(average, out);
  }
}

// Computes an Adam step. P is the dtype of the gradients, and Q the dtype of the averages. If Q has fewer bits than
// the parameters' dtype, the averages are rounded stochastically.
extern "C" __global__ void step(const StepTensors tensors, const OnDevice known,
                                const AmpAdam options, const Random random) {
  using W = Wide<T>;
  constexpr bool at_random = sizeof(Q) < sizeof(T);
  if (is_left_out(known)) return;
  const auto [at, begin, count] = part_of(tensors);
  const Update<double> update(known, options, steps_of(tensors, at));
  const Stream noise = at_random ? Stream(random) : Stream();

  auto* params = static_cast<T*>(tensors.data[0][at]);
  const auto* grads = static_cast<const P*>(tensors.data[1][at]);
  auto* exp_avgs = static_cast<Q*>(tensors.data[2][at]);
  auto* exp_avg_sqs = static_cast<Q*>(tensors.data[3][at]);
  const auto step = [&](T& param_out, P grad, Q& exp_avg_out, Q& exp_avg_sq_out, unsigned bits) {
    W param = widen(param_out);
    W exp_avg = widen(exp_avg_out), exp_avg_sq = widen(exp_avg_sq_out);
    update(param, widen(grad), exp_avg, exp_avg_sq);
    narrow(param, param_out);
    keep(exp_avg, exp_avg_out, bits & 0xffff);
    keep(exp_avg_sq, exp_avg_sq_out, bits >> 16);
  };

  const bool packed = is_aligned(params) && is_aligned(grads) && is_aligned(exp_avgs) &&
                      is_aligned(exp_avg_sqs);
  for (int i = threadIdx.x * per_thread; i < count; i += blockDim.x * per_thread) {
    const long long from = begin + i;
    unsigned bits[per_thread]{};
    if (at_random) {
      const long long first = static_cast<long long>(blockIdx.x) * StepTensors::elements_per_block;
      noise.words((first + i) / per_thread, bits);
    }
    if (packed && i + per_thread <= count) {
      auto param = pack_at(params, from);
      const auto grad = pack_at(grads, from);
      auto exp_avg = pack_at(exp_avgs, from), exp_avg_sq = pack_at(exp_avg_sqs, from);
      for (int k = 0; k < per_thread; ++k) {
        step(param.at[k], grad.at[k], exp_avg.at[k], exp_avg_sq.at[k], bits[k]);
      }
      pack_at(params, from) = param;
      pack_at(exp_avgs, from) = exp_avg;
      pack_at(exp_avg_sqs, from) = exp_avg_sq;
    } else {
      for (int k = 0; k < per_thread && i + k < count; ++k) {
        const long long one = from + k;
        step(params[one], grads[one], exp_avgs[one], exp_avg_sqs[one], bits[k]);
      }
    }
  }
}

constexpr int block_elements = 256;

// Encodes a value as a fraction of the largest magnitude in its block, with the code of optim/state/quantized.rs. The
// magnitudes are divided into seven decades (factors of ten), and each decade into `count` equal parts. A code stands
// for the middle of a part. Within a decade, the bounds between two values are therefore the edges of the parts.
template <bool is_signed>
struct Coder {
  struct Decade {
    // A magnitude `size` of this decade lies in the part with the index size · slope - offset, rounded down. The code
    // of the part is `first` plus this index.
    float slope, offset;
    // The largest index of a part, and the code of the first part.
    int last, first;
  };
  const float* values;
  const Decade* decades;
  // The bounds of the magnitude: between zero and the first decade, between neighbouring decades,
  // and between the last decade and 1.
  float bounds[8];

  // Must be called by all threads of the block, before the block synchronises.
  __device__ void load(const Code& code) {
    __shared__ float kept_values[256];
    __shared__ Decade kept_decades[9];
    values = kept_values;
    decades = kept_decades;
    for (int i = threadIdx.x; i < 256; i += blockDim.x) kept_values[i] = code.values[i];
    // The code of zero.
    constexpr int nothing = is_signed ? 127 : 0;
    // Returns the code of the first part of a decade.
    const auto first = [](int decade) { return nothing + 1 + (count(decade) - count(0)); };
    for (int decade = 0; decade < 8; ++decade) bounds[decade] = code.bounds[first(decade) - 1];
    // A square of a gradient that is above zero never gets the code of zero.
    if (!is_signed) bounds[0] = 0;
    if (threadIdx.x >= 9) return;
    const int decade = static_cast<int>(threadIdx.x) - 1;
    if (decade < 0) {
      kept_decades[0] = {0, 0, 0, nothing};
    } else if (decade == 7) {
      kept_decades[8] = {0, 0, 0, 255};
    } else {
      const double parts = count(decade), size = pow(10.0, decade - 6.0);
      kept_decades[decade + 1] = {static_cast<float>(parts / (0.9 * size)),
                                  static_cast<float>(parts / 9), count(decade) - 1, first(decade)};
    }
  }

  // Returns the number of parts of a decade.
  static __device__ int count(int decade) { return (is_signed ? 1 : 2) << decade; }

  // Returns the code of `share`, a fraction between -1 and 1.
  __device__ unsigned char of(float share) const {
    const float size = fabsf(share);
    // Finds the number of bounds below the magnitude by binary search.
    const bool upper = size > bounds[3];
    const bool third = size > (upper ? bounds[5] : bounds[1]);
    const float next = upper ? (third ? bounds[6] : bounds[4]) : (third ? bounds[2] : bounds[0]);
    const int at = 4 * upper + 2 * third + (size > next) + (size > bounds[7]);
    const Decade decade = decades[at];
    const int part = static_cast<int>(size * decade.slope - decade.offset);
    const int code = decade.first + max(0, min(part, decade.last));
    // The codes of negative values descend with increasing magnitude. There is no code for the fraction -1, which gets
    // code 0, the code of the nearest value.
    if (is_signed && share < 0) return static_cast<unsigned char>(max(0, 254 - code));
    return static_cast<unsigned char>(code);
  }
};

__device__ float warp_max(float value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
  }
  return value;
}

// Computes a step with 8-bit averages, which have one f32 scale for each 256 elements. Each warp updates 256
// elements.
extern "C" __global__ void step_8bit(const StepTensors tensors, const OnDevice known,
                                     const AmpAdam options, const Code exp_avg_code,
                                     const Code exp_avg_sq_code) {
  using W = Wide<T>;
  constexpr int packs = block_elements / 32 / per_thread;
  if (is_left_out(known)) return;
  const auto [at, begin, count] = part_of(tensors);
  Coder<true> exp_avg_coder;
  Coder<false> exp_avg_sq_coder;
  exp_avg_coder.load(exp_avg_code);
  exp_avg_sq_coder.load(exp_avg_sq_code);
  // The constants are not computed in f64, which would take more time than 8-bit averages save.
  const Update<Wide<T>> update(known, options, steps_of(tensors, at));

  auto* params = static_cast<T*>(tensors.data[0][at]);
  const auto* grads = static_cast<const P*>(tensors.data[1][at]);
  auto* exp_avgs = static_cast<unsigned char*>(tensors.data[2][at]);
  auto* exp_avg_sqs = static_cast<unsigned char*>(tensors.data[3][at]);
  const bool packed = is_aligned(params) && is_aligned(grads);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int first = warp * block_elements; first < count; first += warps * block_elements) {
    const long long block = (begin + first) / block_elements;
    float& exp_avg_scale = static_cast<float*>(tensors.data[5][at])[block];
    float& exp_avg_sq_scale = static_cast<float*>(tensors.data[6][at])[block];
    const float old_scale = exp_avg_scale, old_sq_scale = exp_avg_sq_scale;
    float exp_avg[packs][per_thread], exp_avg_sq[packs][per_thread];
    float largest = 0, largest_sq = 0;
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const int i = first + (p * 32 + lane) * per_thread;
      const long long from = begin + i;
      // Blocks of codes are always complete, so reading four codes never goes beyond the end.
      const auto codes = pack_at(exp_avgs, from), sq_codes = pack_at(exp_avg_sqs, from);
      const bool whole = packed && i + per_thread <= count;
      Pack<T> param{};
      Pack<P> grad{};
      if (whole) {
        param = pack_at(params, from);
        grad = pack_at(grads, from);
      }
      for (int k = 0; k < per_thread; ++k) {
        exp_avg[p][k] = exp_avg_sq[p][k] = 0;
        if (i + k >= count) continue;
        if (!whole) {
          param.at[k] = params[from + k];
          grad.at[k] = grads[from + k];
        }
        W weight = widen(param.at[k]);
        W average = exp_avg_coder.values[codes.at[k]] * old_scale;
        W square = exp_avg_sq_coder.values[sq_codes.at[k]] * old_sq_scale;
        update(weight, widen(grad.at[k]), average, square);
        narrow(weight, param.at[k]);
        if (!whole) params[from + k] = param.at[k];
        exp_avg[p][k] = average;
        exp_avg_sq[p][k] = square;
        largest = fmaxf(largest, fabsf(exp_avg[p][k]));
        largest_sq = fmaxf(largest_sq, exp_avg_sq[p][k]);
      }
      if (whole) pack_at(params, from) = param;
    }
    largest = warp_max(largest);
    largest_sq = warp_max(largest_sq);
    if (lane == 0) {
      exp_avg_scale = largest;
      exp_avg_sq_scale = largest_sq;
    }
    // The smallest normal number avoids a division by zero if all elements of the block are zero.
    const float inverse = 1 / fmaxf(largest, smallest_normal);
    const float sq_inverse = 1 / fmaxf(largest_sq, smallest_normal);
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const long long from = begin + first + (p * 32 + lane) * per_thread;
      Pack<unsigned char> codes, sq_codes;
      for (int k = 0; k < per_thread; ++k) {
        codes.at[k] = exp_avg_coder.of(exp_avg[p][k] * inverse);
        sq_codes.at[k] = exp_avg_sq_coder.of(exp_avg_sq[p][k] * sq_inverse);
      }
      pack_at(exp_avgs, from) = codes;
      pack_at(exp_avg_sqs, from) = sq_codes;
    }
  }
}
