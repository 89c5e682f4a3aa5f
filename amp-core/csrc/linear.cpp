// nn.Linear on CUDA while training. Under autocast the product that gives the weight's gradient is
// written as f32: it is accumulated as that, and PyTorch rounds it to 16 bits to cast it back at
// once. A weight that takes gradients of any dtype is given PyTorch's 16 bits instead.

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "cast.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/column_sums.cu.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto cuda = c10::DeviceType::CUDA;
// The weight as it is multiplied with, and as it is.
constexpr auto factor_key = "factor";
constexpr auto weight_key = "weight";
// Whether there is one.
constexpr auto bias_key = "bias";
// Whether the weight's gradient may be narrower than the weight.
constexpr auto narrow_key = "narrow";

void column_sums(const at::Tensor& matrix, at::Tensor& out) {
  static amp::KernelSource source("column_sums.cu", amp_kernels_column_sums);
  constexpr int64_t rows_per_block = 1024, columns_per_block = 32;
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const int64_t parts = std::max<int64_t>(1, (rows + rows_per_block - 1) / rows_per_block);
  const int64_t blocks = parts * ((columns + columns_per_block - 1) / columns_per_block);
  if (blocks == 0) return;
  // Those of each part, which are summed in turn.
  const bool in_parts = parts > 1;
  const auto wide = matrix.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  auto sums = in_parts ? at::empty({parts, columns}, out.options().dtype(wide)) : out;
  const auto given = matrix.contiguous();
  const void* from = given.const_data_ptr();
  void* to = sums.mutable_data_ptr();
  long long height = rows, width = columns, part = rows_per_block;
  void* arguments[] = {&from, &to, &height, &width, &part};
  const amp::Types types{amp::kernel_dtype(matrix.scalar_type()),
                         amp::kernel_dtype(sums.scalar_type())};
  source.launch("column_sums", types, matrix.device(), static_cast<unsigned>(blocks), 512,
                arguments);
  if (in_parts) column_sums(sums, out);
}

// aᵀ·b in `out`, whose dtype may be wider than theirs.
void transposed_product(const at::Tensor& a, const at::Tensor& b, at::Tensor& out) {
  const bool wider = out.scalar_type() != a.scalar_type();
  wider ? at::mm_out(out, a.t(), b, out.scalar_type()) : at::mm_out(out, a.t(), b);
}

// x·Wᵀ + b. In f64, and in f32 with few rows, what cuBLASLt chooses for a product with a bias takes up
// to twice as long as cuBLAS's product and a sum (H100).
at::Tensor product_and_bias(const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
  constexpr int64_t few = 256;
  const auto dtype = input.scalar_type();
  const int64_t rows = input.numel() / std::max<int64_t>(1, input.size(-1));
  const bool apart = dtype == at::kDouble || (dtype == at::kFloat && rows <= few);
  if (!bias || !apart) return at::linear(input, weight, bias);
  return at::linear(input, weight).add_(*bias);
}

struct AmpLinear : torch::autograd::Function<AmpLinear> {
  // The input in the dtype that is computed in; the weight's may be f32 instead.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    const auto dtype = input.scalar_type();
    const bool casts = weight.scalar_type() != dtype;
    const auto factor = casts ? amp::cast_weight(weight, dtype) : weight;
    auto addend = bias;
    if (bias && casts) addend = amp::cast_weight(*bias, dtype);
    // A weight that is cast may be written to before the backward pass, as in PyTorch.
    context->save_for_backward({input, casts ? at::Tensor() : weight});
    context->saved_data[factor_key] = factor.detach();
    context->saved_data[weight_key] = weight;
    context->saved_data[bias_key] = bias.has_value();
    context->saved_data[narrow_key] = weight.is_leaf() && !weight.grad_dtype().has_value();
    return product_and_bias(input, factor, addend);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto& grad = grads.at(0);
    const auto input = context->get_saved_variables().at(0);
    auto& kept = context->saved_data;
    if (kept.count(factor_key) == 0) {
      throw std::runtime_error("a linear layer's part of the graph was already run backward");
    }
    auto factor = kept.at(factor_key).toTensor();
    const auto weight = kept.at(weight_key).toTensor();
    const bool wants_bias = kept.at(bias_key).toBool() && context->needs_input_grad(2);
    const bool narrow = kept.at(narrow_key).toBool();
    if (!torch::autograd::get_current_graph_task_keep_graph()) kept.clear();
    const int64_t features = weight.size(1), outputs = weight.size(0);
    const auto rows = grad.reshape({-1, outputs}), inputs = input.reshape({-1, features});
    if (c10::GradMode::is_enabled()) {
      return differentiable(context, grad, rows, inputs, weight, wants_bias);
    }
    variable_list out(3);
    if (context->needs_input_grad(0)) out[0] = at::matmul(grad, factor);
    // Goes before the weight's gradient comes, which may be twice as large.
    factor.reset();
    if (wants_bias) {
      out[2] = at::empty({outputs}, weight.options());
      column_sums(rows, out[2]);
    }
    if (context->needs_input_grad(1)) {
      const auto dtype = narrow ? grad.scalar_type() : weight.scalar_type();
      out[1] = at::empty({outputs, features}, weight.options().dtype(dtype));
      transposed_product(rows, inputs, out[1]);
    }
    return out;
  }

  // With a graph of its own, for second derivatives.
  static variable_list differentiable(AutogradContext* context, const at::Tensor& grad,
                                      const at::Tensor& rows, const at::Tensor& inputs,
                                      const at::Tensor& weight, bool wants_bias) {
    const auto dtype = weight.scalar_type();
    variable_list out(3);
    if (context->needs_input_grad(0)) out[0] = at::matmul(grad, weight.to(grad.scalar_type()));
    if (context->needs_input_grad(1)) out[1] = at::mm(rows.t(), inputs).to(dtype);
    if (wants_bias) out[2] = at::sum(rows, {0}, /*keepdim=*/false, dtype);
    return out;
  }
};

// The dtype that the layer computes in, if this backward pass is for it.
std::optional<at::ScalarType> dtype_of(const at::Tensor& input, const at::Tensor& weight,
                                       const std::optional<at::Tensor>& bias) {
  const auto own = weight.scalar_type();
  if (!input.is_cuda() || !weight.is_cuda() || !weight.requires_grad() ||
      !c10::GradMode::is_enabled() || input.dim() == 0 ||
      (bias && bias->scalar_type() != own)) {
    return std::nullopt;
  }
  if (!at::autocast::is_autocast_enabled(cuda)) {
    const bool alike = input.scalar_type() == own && amp::kernel_dtype(own) != nullptr;
    return alike ? std::optional(own) : std::nullopt;
  }
  const auto dtype = at::autocast::get_autocast_dtype(cuda);
  const bool narrows = (dtype == at::kHalf || dtype == at::kBFloat16) && own == at::kFloat &&
                       input.scalar_type() != at::kDouble;
  return narrows ? std::optional(dtype) : std::nullopt;
}

}  // namespace

extern "C" {

// x·Wᵀ + b; `bias` may be null. The result is new.
int amp_linear(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias,
               at::Tensor** out) {
  return amp::guarded([&] {
    std::optional<at::Tensor> given;
    if (bias != nullptr) given = *bias;
    const auto dtype = dtype_of(*input, *weight, given);
    if (!dtype) {
      // What is not trained, or is computed again later, has the same bits.
      const bool plain = input->is_cuda() && input->dim() > 0 &&
                         !at::autocast::is_autocast_enabled(cuda);
      *out = new at::Tensor(plain ? product_and_bias(*input, *weight, given)
                                  : at::linear(*input, *weight, given));
      return;
    }
    const bool as_it_is = input->scalar_type() == *dtype;
    *out = new at::Tensor(AmpLinear::apply(
        as_it_is ? *input : at::autocast::cached_cast(*dtype, *input, cuda), *weight, given));
  });
}

}  // extern "C"
