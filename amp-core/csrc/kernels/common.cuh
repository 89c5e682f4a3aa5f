// Code that is placed before every kernel file: dtypes, vectors, lists of tensors, sums and random
// numbers.

struct bf16 {
  unsigned short bits;
};
struct f16 {
  unsigned short bits;
};

// The dtypes for which the file is compiled. T is the main dtype. P, Q and R are for weights, or for an optimizer's
// gradients and averages. A file uses as many of the three as it needs.
using T = AMP_T;
#ifdef AMP_P
using P = AMP_P;
#else
using P = T;
#endif
#ifdef AMP_Q
using Q = AMP_Q;
#else
using Q = T;
#endif
#ifdef AMP_R
using R = AMP_R;
#else
using R = T;
#endif

__device__ float widen(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ float widen(f16 x) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
}
__device__ float widen(float x) { return x; }
__device__ double widen(double x) { return x; }

// Rounds to the nearest number, with ties to even. An instruction that converts two numbers takes a quarter of the
// time of an instruction that converts one. Therefore a zero is converted as well and is not used.
__device__ void narrow(float x, bf16& out) {
#if __CUDA_ARCH__ >= 800
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(0.0f), "f"(x));
  out.bits = static_cast<unsigned short>(both);
#else
  const unsigned bits = __float_as_uint(x);
  out.bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}
__device__ void narrow(float x, f16& out) {
#if __CUDA_ARCH__ >= 800
  unsigned both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(0.0f), "f"(x));
  out.bits = static_cast<unsigned short>(both);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#endif
}
__device__ void narrow(float x, float& out) { out = x; }
__device__ void narrow(double x, double& out) { out = x; }
__device__ void narrow(double x, float& out) { out = static_cast<float>(x); }
__device__ void narrow(double x, bf16& out) { narrow(static_cast<float>(x), out); }
__device__ void narrow(double x, f16& out) { narrow(static_cast<float>(x), out); }

// Rounds stochastically: up with a probability equal to the fraction that is cut off, otherwise
// down. `noise` has 16 bits.
__device__ void narrow_at_random(float x, bf16& out, unsigned noise) {
  out.bits = x != x ? 0x7fc0 : (__float_as_uint(x) + noise) >> 16;
}

// The dtype in which the kernels compute with values of dtype U.
template <typename U>
using Wide = decltype(widen(U()));

constexpr int per_thread = 4;

template <typename U>
struct alignas(sizeof(U) * per_thread) Pack {
  U at[per_thread];
};

template <typename U>
__device__ bool is_aligned(const U* pointer) {
  return reinterpret_cast<unsigned long long>(pointer) % alignof(Pack<U>) == 0;
}

template <typename U>
__device__ Pack<U>& pack_at(U* data, long long at) {
  return *reinterpret_cast<Pack<U>*>(data + at);
}
template <typename U>
__device__ const Pack<U>& pack_at(const U* data, long long at) {
  return *reinterpret_cast<const Pack<U>*>(data + at);
}

// A line of 16 bytes, the largest vector that a thread reads or writes at once.
struct alignas(16) Line {
  static constexpr int length = 16 / sizeof(T);
  T at[length];
};

// The part of a list of tensors on which a block works.
struct Part {
  int tensor;
  long long begin;
  int count;
};

template <typename List>
__device__ Part part_of(const List& list) {
  constexpr int elements_per_block = List::elements_per_block;
  int at = 0;
  while (at + 1 < list.count && list.first_blocks[at + 1] <= static_cast<int>(blockIdx.x)) ++at;
  const long long begin =
      static_cast<long long>(static_cast<int>(blockIdx.x) - list.first_blocks[at]) *
      elements_per_block;
  const long long left = list.sizes[at] - begin;
  return {at, begin, left < elements_per_block ? static_cast<int>(left) : elements_per_block};
}

__device__ bool is_left_out(const OnDevice& known) {
  return known.found_inf != nullptr && *known.found_inf != 0;
}

// Returns the factor by which each gradient is multiplied before the update.
template <typename W>
__device__ W factor_of(const OnDevice& known) {
  return known.factor == nullptr ? 1 : *static_cast<const W*>(known.factor);
}

// Returns a product that is rounded before it is used further. The compiler must not combine it with an addition to a
// fused multiply-add.
__device__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ double product(double a, double b) { return __dmul_rn(a, b); }

__device__ float exponential(float x) { return expf(x); }
__device__ double exponential(double x) { return exp(x); }

// Load and store four neighbouring elements, or fewer at the end of a tensor. `whole` says whether there are four
// aligned elements.
template <typename U>
__device__ Pack<U> load(const U* data, int at, int count, bool whole) {
  if (whole) return pack_at(data, at);
  Pack<U> pack{};
  for (int k = 0; k < per_thread && at + k < count; ++k) pack.at[k] = data[at + k];
  return pack;
}
template <typename U>
__device__ void store(const Pack<U>& pack, U* data, int at, int count, bool whole) {
  if (whole) {
    pack_at(data, at) = pack;
  } else {
    for (int k = 0; k < per_thread && at + k < count; ++k) data[at + k] = pack.at[k];
  }
}

// Calls `update` for each element of the block's part of a tensor. `update` receives this element's values from the
// first `lists` lists, in the dtype of the computation: the parameter, its gradient (of dtype P) times the factor,
// and then the optimizer state. All values except the gradient are written back.
template <int lists, typename Update>
__device__ void step_elements(const StepTensors& tensors, const OnDevice& known,
                              const Update& update) {
  using W = Wide<T>;
  constexpr int gradient = 1;
  const auto [at, begin, count] = part_of(tensors);
  const W factor = factor_of<W>(known);
  T* data[lists];
  const P* grads = static_cast<const P*>(tensors.data[gradient][at]) + begin;
  bool packed = is_aligned(grads);
  for (int list = 0; list < lists; ++list) {
    data[list] = list == gradient ? nullptr : static_cast<T*>(tensors.data[list][at]);
    if (data[list] != nullptr) data[list] += begin;
    packed = packed && is_aligned(data[list]);
  }
  for (int i = threadIdx.x * per_thread; i < count; i += blockDim.x * per_thread) {
    const bool whole = packed && i + per_thread <= count;
    Pack<T> packs[lists]{};
    const Pack<P> grad = load(grads, i, count, whole);
    for (int list = 0; list < lists; ++list) {
      if (data[list] != nullptr) packs[list] = load(data[list], i, count, whole);
    }
    for (int k = 0; k < per_thread; ++k) {
      W values[lists];
      for (int list = 0; list < lists; ++list) values[list] = widen(packs[list].at[k]);
      values[gradient] = product(widen(grad.at[k]), factor);
      update(values);
      for (int list = 0; list < lists; ++list) narrow(values[list], packs[list].at[k]);
    }
    for (int list = 0; list < lists; ++list) {
      if (data[list] != nullptr) store(packs[list], data[list], i, count, whole);
    }
  }
}

// Computes a sum over a block of at most 1024 threads. The first thread gets the result.
__device__ double block_sum(double value) {
  __shared__ double sums[32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = threadIdx.x < (blockDim.x + 31) / 32 ? sums[threadIdx.x] : 0;
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(~0u, value, offset);
  }
  return value;
}

// Rounds the value to dtype U. Separate layers would pass the value on in this dtype, so with this rounding a fused
// kernel gives bit-identical results.
template <typename U>
__device__ Wide<U> rounded(Wide<U> x) {
  U out;
  narrow(x, out);
  return widen(out);
}

// Kernels that sum over the rows of a matrix have blocks of 512 threads for 32 columns. Eight threads process one
// row, with four columns per thread. A block processes 64 rows at a time.
constexpr int lanes = 8;
constexpr int columns_per_block = lanes * per_thread;
constexpr int rows_at_once = 64;

// Sums two values per column over the rows of the block. Then calls `finish` for each column with the two sums.
template <typename W, typename Finish>
__device__ void for_column_sums(const W (&first)[per_thread], const W (&second)[per_thread],
                                Finish finish) {
  constexpr int warps = lanes * rows_at_once / 32;
  __shared__ double sums[2][warps][columns_per_block];
  const int lane = threadIdx.x % lanes, warp = threadIdx.x / 32;
  for (int k = 0; k < per_thread; ++k) {
    double a = first[k], b = second[k];
    // The lanes of a warp belong to four rows, so their values are added up first.
    for (int offset = lanes; offset < 32; offset *= 2) {
      a += __shfl_xor_sync(~0u, a, offset);
      b += __shfl_xor_sync(~0u, b, offset);
    }
    if (threadIdx.x % 32 < lanes) {
      sums[0][warp][lane * per_thread + k] = a;
      sums[1][warp][lane * per_thread + k] = b;
    }
  }
  __syncthreads();
  if (threadIdx.x < columns_per_block) {
    double a = 0, b = 0;
    for (int w = 0; w < warps; ++w) {
      a += sums[0][w][threadIdx.x];
      b += sums[1][w][threadIdx.x];
    }
    finish(a, b);
  }
  __syncthreads();
}

// Returns four random words for the position `place` in a stream, by Philox4x32 with 7 rounds. 7 is the smallest
// number of rounds that passed BigCrush in Salmon et al. (2011, table 2).
__device__ uint4 philox(unsigned long long seed, unsigned long long stream,
                        unsigned long long place) {
  unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
  uint4 c = make_uint4(static_cast<unsigned>(place), static_cast<unsigned>(place >> 32),
                       static_cast<unsigned>(stream), static_cast<unsigned>(stream >> 32));
  for (int round = 0; round < 7; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    const unsigned high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// A position in the stream of libtorch's generator: at::PhiloxCudaState.
struct Random {
  union Number {
    unsigned long long value;
    const long long* place;
  };
  Number seed, offset;
  unsigned long long offset_in_graph;
  bool captured;
};

// The random words for one launch of a kernel. A default-constructed stream is for launches that use no random words.
struct Stream {
  unsigned long long seed = 0, stream = 0;

  Stream() = default;
  __device__ explicit Stream(const Random& random) {
    const auto& [from, offset, offset_in_graph, captured] = random;
    seed = captured ? *from.place : from.value;
    stream = captured ? *offset.place + offset_in_graph : offset.value;
  }

  // Returns four random words for a position. The caller numbers the positions.
  __device__ void words(long long place, unsigned (&out)[per_thread]) const {
    const uint4 drawn = philox(seed, stream, place);
    out[0] = drawn.x, out[1] = drawn.y, out[2] = drawn.z, out[3] = drawn.w;
  }
};

// The parameters of a dropout. `Dropout` in csrc/dropout.h has the same layout.
struct Dropout {
  Random random;
  // An element is dropped if its random word is below this number. If the number is 0, no element is dropped.
  unsigned threshold;
  // The factor by which elements that are not dropped are multiplied.
  float scale;
};

// Computes the factors by which dropout multiplies elements. The factor of a dropped element is 0.
struct Factors {
  Stream stream;
  unsigned threshold;
  float scale;

  __device__ explicit Factors(const Dropout& dropout)
      : threshold(dropout.threshold), scale(dropout.scale) {
    if (threshold != 0) stream = Stream(dropout.random);
  }

  // Returns the factors of four neighbouring elements. `group` is the index of the first element, divided by four.
  __device__ void of(long long group, float (&out)[per_thread]) const {
    if (threshold == 0) {
      for (float& factor : out) factor = scale;
      return;
    }
    unsigned words[per_thread];
    stream.words(group, words);
    for (int k = 0; k < per_thread; ++k) out[k] = words[k] < threshold ? 0 : scale;
  }

  // Returns the factor of the element with the index `place`.
  __device__ float at(long long place) const {
    float factors[per_thread];
    of(place / per_thread, factors);
    return factors[place % per_thread];
  }
};
