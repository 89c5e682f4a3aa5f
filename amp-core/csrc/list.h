// Converts lists of tensor handles, as Rust passes them, to vectors.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace amp {

using Handle = at::Tensor*;
using Tensors = std::vector<at::Tensor>;

inline Tensors list(const Handle* tensors, size_t count) {
  Tensors out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i) out.push_back(*tensors[i]);
  return out;
}

}  // namespace amp
