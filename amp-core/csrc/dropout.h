// What the kernels need to know of a dropout.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/randint.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace amp {

// Laid out as in kernels/common.cuh.
struct Dropout {
  const int64_t* key;
  unsigned threshold;
  float scale;
};

// A new key, drawn from libtorch's generator of the device; nothing where nothing is dropped.
inline at::Tensor dropout_key(double p, c10::Device device) {
  if (p == 0) return {};
  return at::randint(std::numeric_limits<int64_t>::max(), {1},
                     at::TensorOptions(device).dtype(at::kLong));
}

// Drops with probability p, below 1.
inline Dropout dropout(double p, const at::Tensor& key) {
  if (!key.defined()) return {nullptr, 0, 1};
  return {key.const_data_ptr<int64_t>(), static_cast<unsigned>(std::floor(p * 4294967296.0)),
          static_cast<float>(1 / (1 - p))};
}

}  // namespace amp
