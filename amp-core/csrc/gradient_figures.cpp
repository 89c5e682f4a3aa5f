// Functions for gradients that the backward pass computes but does not keep: statistics of such a gradient, and its
// rounding.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "guard.h"
#include "cached_cast.h"

namespace amp::watch {
namespace {

// Writes four f64 numbers to `figures`: the number 1 (a gradient was computed), the number of NaNs in `grad`, the
// number of infinities, and the largest magnitude. Until a gradient is computed, all four numbers are 0.
void note(const at::Tensor& figures, const at::Tensor& grad) {
  const c10::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below;
  if (!grad.defined() || grad.numel() == 0) return;
  auto count = [](const at::Tensor& mask) { return mask.sum().to(at::kDouble); };
  auto largest = grad.abs().max().to(at::kDouble);
  figures.copy_(
      at::stack({at::ones_like(largest), count(grad.isnan()), count(grad.isinf()), largest}));
}

}  // namespace

extern "C" {

// Returns a new f64 tensor for four statistics of the gradient of `tensor`. The backward pass writes the statistics
// (see `note`).
int amp_watch_gradient(const at::Tensor* tensor, at::Tensor** out) {
  return amp::guarded([&] {
    auto figures = at::zeros({4}, tensor->options().dtype(at::kDouble).requires_grad(false));
    tensor->register_hook([figures](const at::Tensor& grad) { note(figures, grad); });
    *out = new at::Tensor(figures);
  });
}

// Returns an alias of `tensor`. The backward pass rounds the gradient of the alias to `dtype` and passes the rounded
// gradient on to `tensor`.
int amp_round_gradient(const at::Tensor* tensor, int dtype, at::Tensor** out) {
  return amp::guarded([&] {
    auto alias = tensor->alias();
    if (alias.requires_grad()) {
      const auto to = static_cast<at::ScalarType>(dtype);
      alias.register_hook([to](const at::Tensor& grad) { return grad.defined() ? grad.to(to).to(grad.scalar_type()) : grad; });
    }
    *out = new at::Tensor(alias);
  });
}

// Makes all later layers read `tensor` instead of its cached cast. The gradient of `tensor` then includes the gradients
// from these layers.
int amp_forget_twin(const at::Tensor* tensor) {
  return amp::guarded([&] {
    const at::TensorBase& whole = tensor->is_view() ? tensor->_base() : *tensor;
    if (amp::known_beside<amp::Twin>(whole).defined()) {
      whole.unsafeGetTensorImpl()->set_backend_meta(nullptr);
    }
  });
}

}  // extern "C"

}  // namespace amp::watch
