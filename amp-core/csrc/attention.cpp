// The memory layout of the gradient of attention's output.

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <string>

#include "guard.h"

namespace amp::attention {
namespace {

// Returns a gradient [N, heads, L, width] whose elements lie in memory in the order [N, L, heads, width].
at::Tensor by_word(const at::Tensor& grad) {
  return grad.defined() ? grad.transpose(1, 2).contiguous().transpose(1, 2) : grad;
}

}  // namespace

extern "C" {

// Ensures, if cuDNN computed `attended`, [N, heads, L, width], that the gradient of `attended` has the same memory
// layout in every backward pass. cuDNN compiles a backward pass for the strides of all tensors. libtorch 2.11 caches
// the compiled backward passes, but the key of this cache lacks the strides of the gradient: it contains the sizes of
// all tensors, and the strides of queries, keys, values and mask (aten/src/ATen/native/cudnn/MHA.cpp,
// MHACacheKeyWrapper). If the strides of the gradient differ from those at the first call, the results are wrong.
// Gradients from layers that join heads already have this layout.
int amp_attention_gradient_layout(const at::Tensor* attended) {
  return amp::guarded([&] {
    if (!attended->is_cuda() || !attended->requires_grad()) return;
    const auto& node = attended->grad_fn();
    if (attended->dim() != 4 || node == nullptr || node->name().find("CudnnAttention") == std::string::npos) return;
    attended->register_hook(by_word);
  });
}

}  // extern "C"

}  // namespace amp::attention
