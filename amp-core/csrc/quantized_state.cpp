// Optimizer state in 8 bits on the CPU: a code for each element and an f32 scale for each block.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "guard.h"

namespace amp::moments {
namespace {

constexpr int64_t block = 256;
// The smallest number of blocks for which starting a thread is worthwhile.
constexpr int64_t grain = 64;

int64_t blocks_of(int64_t elements) { return (elements + block - 1) / block; }

}  // namespace

extern "C" {

// Decodes optimizer state: writes to `out` (f32) the element of `values` (f32 [256]) for each code in
// `codes` (u8), multiplied by the scale (f32) of the code's block.
int amp_moments_decode(const at::Tensor* codes, const at::Tensor* scales, const at::Tensor* values,
                       const at::Tensor* out) {
  return amp::guarded([&] {
    const auto* code = codes->const_data_ptr<uint8_t>();
    const auto* scale = scales->const_data_ptr<float>();
    const auto* value = values->const_data_ptr<float>();
    auto* to = out->mutable_data_ptr<float>();
    const int64_t count = out->numel();
    at::parallel_for(0, blocks_of(count), grain, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last; ++at) {
        const int64_t end = std::min(count, (at + 1) * block);
        for (int64_t i = at * block; i < end; ++i) to[i] = value[code[i]] * scale[at];
      }
    });
  });
}

// Encodes `from` (f32). The largest magnitude of each block becomes the scale of the block. Each element
// gets the code of the value that is nearest to element / scale. `bounds` (f32 [255]) are the bounds
// between neighbouring values. With `positive`, an element above zero gets at least code 1, so that it does
// not become zero. The rest of the last block is filled with zeros.
int amp_moments_encode(const at::Tensor* from, const at::Tensor* bounds, int positive,
                       const at::Tensor* codes, const at::Tensor* scales) {
  return amp::guarded([&] {
    const auto* value = from->const_data_ptr<float>();
    const auto* bound = bounds->const_data_ptr<float>();
    auto* code = codes->mutable_data_ptr<uint8_t>();
    auto* scale = scales->mutable_data_ptr<float>();
    const int64_t count = from->numel();
    const auto code_of = [&](float share) {
      // The number of bounds, out of 255, that are below the fraction. It is found by binary search.
      int below = 0;
      for (int step = 128; step > 0; step /= 2) {
        if (bound[below + step - 1] < share) below += step;
      }
      return static_cast<uint8_t>(positive != 0 && share > 0 ? std::max(below, 1) : below);
    };
    const uint8_t zero = code_of(0);
    at::parallel_for(0, blocks_of(count), grain, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last; ++at) {
        const int64_t begin = at * block, end = std::min(count, begin + block);
        float largest = 0;
        for (int64_t i = begin; i < end; ++i) largest = std::max(largest, std::abs(value[i]));
        scale[at] = largest;
        const float whole = std::max(largest, FLT_MIN);
        for (int64_t i = begin; i < end; ++i) code[i] = code_of(value[i] / whole);
        std::fill(code + end, code + begin + block, zero);
      }
    });
  });
}

}  // extern "C"

}  // namespace amp::moments
