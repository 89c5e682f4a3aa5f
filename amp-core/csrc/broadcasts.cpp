// Detects operators that combine a column [N, 1] with a vector [N], with libtorch's profiling callbacks.

#include <ATen/record_function.h>

#include <memory>
#include <sstream>
#include <string>
#include <string_view>

#include "guard.h"
#include "operator_callbacks.h"

namespace amp::broadcasts {
namespace {

// The operators that broadcast their first two arguments and compute each element of the result from one element of
// each.
constexpr std::string_view kOps[] = {
    "aten::add",
    "aten::sub",
    "aten::rsub",
    "aten::mul",
    "aten::div",
    "aten::true_divide",
    "aten::pow",
    "aten::maximum",
    "aten::minimum",
    "aten::fmax",
    "aten::fmin",
    "aten::xlogy",
    "aten::atan2",
    "aten::mse_loss",
    "aten::l1_loss",
    "aten::smooth_l1_loss",
    "aten::huber_loss",
    "aten::soft_margin_loss",
    "aten::hinge_embedding_loss",
    "aten::binary_cross_entropy_with_logits",
    "aten::poisson_nll_loss",
    "aten::kl_div",
};

thread_local OperatorCallbacks callbacks;
thread_local std::string_view seen;
thread_local std::string shapes;

// Returns whether `tall` has the shape of `flat` with an additional last dimension of size 1.
bool is_column(const at::Tensor& tall, const at::Tensor& flat) {
  return flat.dim() > 0 && flat.size(0) > 1 && tall.dim() == flat.dim() + 1 && tall.size(-1) == 1 &&
      tall.sizes().slice(0, flat.dim()) == flat.sizes();
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  if (!seen.empty()) return nullptr;
  const std::string_view name = function.name();
  for (const std::string_view op : kOps) {
    if (name != op) continue;
    const auto inputs = function.inputs();
    if (inputs.size() < 2 || !inputs[0].isTensor() || !inputs[1].isTensor()) return nullptr;
    const at::Tensor &a = inputs[0].toTensor(), &b = inputs[1].toTensor();
    if (!a.defined() || !b.defined()) return nullptr;
    // A table of all pairs is often meant if both operands are data, as in relative positions, or if both depend on
    // the weights, as in distances between outputs.
    if (a.requires_grad() == b.requires_grad() || !(is_column(a, b) || is_column(b, a))) return nullptr;
    std::ostringstream text;
    text << a.sizes() << " and " << b.sizes();
    shapes = text.str();
    seen = op;
    return nullptr;
  }
  return nullptr;
}

}  // namespace

extern "C" {

int amp_broadcasts_start() {
  return amp::guarded([] {
    seen = {};
    callbacks.start(at::RecordFunctionCallback(begin)
                        .needsInputs(true)
                        .scopes({at::RecordScope::FUNCTION}));
  });
}

int amp_broadcasts_stop() {
  return amp::guarded([] {
    callbacks.stop();
  });
}

// Returns the first such operator since the start, and the shapes of its operands. The name is never freed; the text
// is valid until the next start on this thread. If there was none, the name is null.
int amp_broadcasts_seen(const char** op, const char** operands) {
  return amp::guarded([&] {
    *op = seen.data();
    *operands = shapes.c_str();
  });
}

}  // extern "C"
}  // namespace amp::broadcasts
