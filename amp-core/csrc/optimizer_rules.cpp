// Operations on single tensors that optimizers use.

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>

#include "guard.h"
#include "list.h"

extern "C" {

// Adds `factor` · `other` to `tensor` in place. `other` may have another dtype than `tensor`.
int amp_add_scaled(amp::Handle tensor, amp::Handle other, double factor) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    at::Tensor to = *tensor;
    to.add_(*other, factor);
  });
}

// Computes in bfloat16 a matrix with the same singular vectors as `update` and with singular values
// near 1. The operations follow _zeropower_via_newtonschulz in torch/optim/_muon.py. `coefficients`
// are the three coefficients of the polynomial that each step evaluates. Writes a new tensor to
// `out`.
int amp_newton_schulz(amp::Handle update, const double* coefficients, int64_t steps, double eps,
                      at::Tensor** out) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    const double a = coefficients[0], b = coefficients[1], c = coefficients[2];
    auto x = update->to(at::kBFloat16);
    const bool is_tall = update->size(0) > update->size(1);
    if (is_tall) x = x.t();
    x = x.div(at::linalg_vector_norm(x, 2).clamp_min(eps));
    for (int64_t step = 0; step < steps; ++step) {
      const auto gram = at::mm(x, x.t());
      const auto gram_update = at::addmm(gram, gram, gram, b, c);
      x = at::addmm(x, gram_update, x, a);
    }
    *out = new at::Tensor(is_tall ? x.t() : x);
  });
}

}  // extern "C"
