// Lists of tensors cut into what one start of a kernel takes.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace amp {

#include "kernels/common.h"

template <typename List>
struct Start {
  at::ScalarType dtype;
  List tensors{};
  unsigned blocks = 0;
};

// Makes room for a tensor in the last start where it fits, and returns its place there.
template <typename List>
int add(std::vector<Start<List>>& starts, const at::Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  if (starts.empty() || starts.back().dtype != dtype ||
      starts.back().tensors.count == List::max_tensors) {
    starts.push_back({dtype});
  }
  auto& [_, tensors, blocks] = starts.back();
  const int at = tensors.count++;
  tensors.sizes[at] = tensor.numel();
  tensors.first_blocks[at] = static_cast<int>(blocks);
  blocks += (tensor.numel() + List::elements_per_block - 1) / List::elements_per_block;
  return at;
}

}  // namespace amp
