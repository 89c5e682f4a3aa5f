// nn.Linear under autocast on CUDA, where the product that gives the weight's gradient is written as
// f32: it is accumulated as that, and PyTorch rounds it to 16 bits to cast it back at once.

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include <optional>
#include <stdexcept>

#include "cast.h"
#include "guard.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto cuda = c10::DeviceType::CUDA;
constexpr auto weight_key = "weight";
constexpr auto bias_key = "bias";

struct AmpLinear : torch::autograd::Function<AmpLinear> {
  // The input in 16 bits.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    const auto dtype = input.scalar_type();
    const auto weight16 = amp::cast_weight(weight, dtype);
    std::optional<at::Tensor> bias16;
    if (bias) bias16 = amp::cast_weight(*bias, dtype);
    context->save_for_backward({input});
    context->saved_data[weight_key] = weight16;
    context->saved_data[bias_key] = bias.has_value();
    return at::linear(input, weight16, bias16);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto& grad = grads.at(0);
    const auto input = context->get_saved_variables().at(0);
    auto& saved = context->saved_data;
    if (saved.count(weight_key) == 0) {
      throw std::runtime_error("a linear layer's part of the graph was already run backward");
    }
    auto weight16 = saved.at(weight_key).toTensor();
    const auto rows = grad.reshape({-1, weight16.size(0)});
    const auto features = weight16.size(1);
    variable_list out(3);
    if (context->needs_input_grad(0)) out[0] = at::matmul(grad, weight16);
    // Goes before the weight's gradient comes, which is twice as large.
    weight16.reset();
    if (!torch::autograd::get_current_graph_task_keep_graph()) saved.erase(weight_key);
    if (context->needs_input_grad(1)) {
      out[1] = at::mm(rows.t(), input.reshape({-1, features}), at::kFloat);
    }
    if (saved.at(bias_key).toBool() && context->needs_input_grad(2)) {
      out[2] = at::sum(rows, {0}, /*keepdim=*/false, at::kFloat);
    }
    return out;
  }
};

bool wants_f32_gradient(const at::Tensor& input, const at::Tensor& weight) {
  if (!input.is_cuda() || !at::autocast::is_autocast_enabled(cuda)) return false;
  const auto dtype = at::autocast::get_autocast_dtype(cuda);
  return (dtype == at::kHalf || dtype == at::kBFloat16) && weight.scalar_type() == at::kFloat &&
         weight.requires_grad() && c10::GradMode::is_enabled() &&
         input.scalar_type() != at::kDouble;
}

}  // namespace

extern "C" {

// x·Wᵀ + b; `bias` may be null. The result is new.
int amp_linear(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias,
               at::Tensor** out) {
  return amp::guarded([&] {
    std::optional<at::Tensor> given;
    if (bias != nullptr) given = *bias;
    if (!wants_f32_gradient(*input, *weight)) {
      *out = new at::Tensor(at::linear(*input, *weight, given));
      return;
    }
    const auto dtype = at::autocast::get_autocast_dtype(cuda);
    const auto input16 = at::autocast::cached_cast(dtype, *input, cuda);
    *out = new at::Tensor(AmpLinear::apply(input16, *weight, given));
  });
}

}  // extern "C"
