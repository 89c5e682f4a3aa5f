// nn.Linear on CUDA in training mode. Under autocast, the product for the weight's gradient accumulates in f32 and is
// written in f32. PyTorch rounds this gradient to 16 bits and then casts it back to f32. If a weight accepts gradients
// of any dtype (PyTorch's `grad_dtype`), its gradient stays in 16 bits. One kernel adds the bias and applies ReLU and
// dropout. Another kernel applies GELU and dropout. The kernel that sums the bias's gradient also applies the
// activation's derivative (activation.h).

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_addmm_activation.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/slice_scatter.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "activation.h"
#include "cast.h"
#include "column_sums.h"
#include "dropout.h"
#include "guard.h"
#include "kernel.h"
#include "cached_cast.h"
#include "own_kernels.h"

namespace amp::linear {
namespace {

using namespace amp::activation;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto cuda = c10::DeviceType::CUDA;
// The following constants are keys of `saved_data`, in which the forward pass stores values for the backward pass.

// The key of the weight in the dtype of the product.
constexpr auto factor_key = "factor";
// The key of the weight in its original dtype.
constexpr auto weight_key = "weight";
// The key of the value that says whether the layer has a bias.
constexpr auto bias_key = "bias";
// The key of the value that says whether the weight's gradient may have fewer bits than the weight.
constexpr auto narrow_key = "narrow";
// The keys of the four fields of `Options`.
constexpr auto first_key = "first";
constexpr auto count_key = "count";
constexpr auto activation_key = "activation";
constexpr auto p_key = "p";
// The key of the position of the random generator from which the dropout after GELU draws its mask.
constexpr auto drawn_key = "drawn";
// The key of the bias. The bias is kept only if second derivatives may need it.
constexpr auto addend_key = "addend";

const char* approximation(int activation) { return activation == gelu_tanh ? "tanh" : "none"; }

struct Options {
  // The outputs to compute: `count` outputs, from the output `first` on.
  int64_t first, count;
  // The activation after the product.
  int activation;
  // The probability of the dropout after the activation.
  double p;

  bool is_gelu() const { return activation == gelu || activation == gelu_tanh; }

  bool is_part_of(const at::Tensor& weight) const { return count < weight.size(0); }
  // Returns those rows of the weight, of the bias or of a gradient that belong to the computed outputs.
  at::Tensor rows_of(const at::Tensor& tensor) const {
    return is_part_of(tensor) ? tensor.narrow(0, first, count) : tensor;
  }
};

// Writes aᵀ·b to `out`, whose dtype may be wider than that of a and b.
void transposed_product(const at::Tensor& a, const at::Tensor& b, at::Tensor out) {
  const bool wider = out.scalar_type() != a.scalar_type();
  wider ? at::mm_out(out, a.t(), b, out.scalar_type()) : at::mm_out(out, a.t(), b);
}

// Computes x·Wᵀ + b, then the activation and dropout. In f64, and in f32 with few rows, the bias is added by a
// separate kernel. In these cases cuBLASLt's product with a bias takes up to twice as long as cuBLAS's product
// followed by an addition (H100).
at::Tensor output_of(const at::Tensor& input, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias, const Options& options) {
  constexpr int64_t few = 256;
  const auto dtype = input.scalar_type();
  const int64_t rows = input.numel() / std::max<int64_t>(1, input.size(-1));
  const bool apart = dtype == at::kDouble || (dtype == at::kFloat && rows <= few);
  const bool together = bias && !apart;
  if (options.activation != relu) {
    return together || !bias ? at::linear(input, weight, bias)
                             : at::linear(input, weight).add_(*bias);
  }
  at::Tensor out;
  if (together) {
    auto sizes = input.sizes().vec();
    sizes.back() = weight.size(0);
    const auto matrix = input.reshape({rows, input.size(-1)});
    out = at::_addmm_activation(*bias, matrix, weight.t()).view(sizes);
    if (options.p == 0) return out;
  } else {
    out = at::linear(input, weight);
  }
  activate(out, together ? at::Tensor() : bias.value_or(at::Tensor()),
           amp::Dropout(options.p, out.device()));
  return out;
}

struct AmpLinear : torch::autograd::Function<AmpLinear> {
  // The input has the dtype of the computation. The weight may have this dtype or be f32.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                            const Options& options) {
    const auto dtype = input.scalar_type();
    const bool casts = weight.scalar_type() != dtype, part = options.is_part_of(weight);
    const auto cast = [&](const at::Tensor& tensor) {
      if (!casts) return options.rows_of(tensor);
      return part ? options.rows_of(tensor).to(dtype) : amp::cast_weight(tensor, dtype);
    };
    const auto factor = cast(weight);
    std::optional<at::Tensor> addend;
    if (bias) addend = cast(*bias);
    auto out = output_of(input, factor, addend, options);
    at::Tensor behind;
    if (options.activation == relu) behind = out;
    if (options.is_gelu()) {
      behind = out;
      if (options.p > 0 || amp::is_half(dtype)) {
        const amp::Dropout dropout(options.p, out.device());
        if (options.p > 0) context->saved_data[drawn_key] = dropout.drawn();
        out = gelu_and_dropout(behind, options.activation, dropout);
      } else {
        out = at::gelu(behind, approximation(options.activation));
      }
      if (bias) context->saved_data[addend_key] = *bias;
    }
    // If the weight was cast, `save_for_backward` does not get the weight. Autograd refuses to use saved tensors that
    // were changed in place, but this weight may be changed before the backward pass, as in PyTorch.
    context->save_for_backward({input, casts ? at::Tensor() : weight, behind});
    auto& kept = context->saved_data;
    // The backward pass needs the cast of the weight only for the gradient of the input. If the input needs no
    // gradient, as in a first layer, the cast is therefore freed at the end of the autocast region.
    if (input.requires_grad()) kept[factor_key] = factor.detach();
    kept[weight_key] = weight;
    kept[bias_key] = bias.has_value();
    kept[narrow_key] = weight.is_leaf() && !weight.grad_dtype().has_value();
    kept[first_key] = options.first;
    kept[count_key] = options.count;
    kept[activation_key] = options.activation;
    kept[p_key] = options.p;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto& input = saved.at(0);
    auto& kept = context->saved_data;
    if (kept.count(weight_key) == 0) {
      throw std::runtime_error(
          "a linear layer's backward pass ran before and freed the tensors that it needs: keep the graph "
          "(retain_graph), or compute the loss again");
    }
    at::Tensor factor;
    if (context->needs_input_grad(0)) factor = kept.at(factor_key).toTensor();
    const auto weight = kept.at(weight_key).toTensor();
    const bool wants_bias = kept.at(bias_key).toBool() && context->needs_input_grad(2);
    const bool narrow = kept.at(narrow_key).toBool();
    const Options options{kept.at(first_key).toInt(), kept.at(count_key).toInt(),
                          static_cast<int>(kept.at(activation_key).toInt()),
                          kept.at(p_key).toDouble()};
    const bool drops_gelu = kept.count(drawn_key) > 0;
    const amp::Dropout dropout = drops_gelu
                                     ? amp::Dropout(options.p, kept.at(drawn_key).toIntVector())
                                     : amp::Dropout::of_output(options.p);
    std::optional<at::Tensor> addend;
    if (kept.count(addend_key) > 0) addend = kept.at(addend_key).toTensor();
    if (!torch::autograd::get_current_graph_task_keep_graph()) kept.clear();
    const int64_t features = weight.size(1);
    auto rows = grads.at(0).reshape({-1, options.count});
    const auto inputs = input.reshape({-1, features});
    if (c10::GradMode::is_enabled()) {
      if (drops_gelu) amp::refuse_second_derivative("GELU and dropout behind a linear layer");
      if (options.activation == relu) {
        rows = rows * (saved.at(2).reshape_as(rows).ne(0) * (1 / (1 - options.p)));
      }
      if (options.is_gelu()) {
        // Computes the input of the activation again, with an autograd graph.
        const auto dtype = input.scalar_type();
        if (addend) addend = addend->to(dtype);
        const auto given = at::linear(input, weight.to(dtype), addend);
        rows = at::gelu_backward(grads.at(0), given, approximation(options.activation))
                   .reshape({-1, options.count});
      }
      return differentiable(context, rows.view_as(grads.at(0)), rows, inputs, weight, wants_bias,
                            options);
    }
    variable_list out(4);
    const bool part = options.is_part_of(weight);
    at::Tensor known;
    if (wants_bias && !part && options.activation == none) known = amp::take_column_sums(grads.at(0));
    if (known.defined()) {
      out[2] = known.to(weight.scalar_type());
    } else if (wants_bias) {
      out[2] = part ? at::zeros({weight.size(0)}, weight.options())
                    : at::empty({options.count}, weight.options());
    }
    if ((wants_bias && !known.defined()) || options.activation != none) {
      rows = rows.contiguous();
      Activated activated;
      if (options.activation != none) {
        activated = {options.activation, saved.at(2), at::empty_like(rows), dropout};
      }
      column_sums(rows, activated, wants_bias ? options.rows_of(out[2]) : at::Tensor());
      if (options.activation != none) rows = activated.passed;
    }
    if (context->needs_input_grad(0)) out[0] = at::matmul(rows, factor).view(input.sizes());
    // The cast of the weight is freed before memory for the weight's gradient is allocated. The gradient may be twice
    // as large as the cast.
    factor.reset();
    if (context->needs_input_grad(1)) {
      const auto dtype = narrow ? rows.scalar_type() : weight.scalar_type();
      out[1] = at::empty(weight.sizes(), weight.options().dtype(dtype));
      if (part) {
        const int64_t end = options.first + options.count;
        out[1].narrow(0, 0, options.first).zero_();
        out[1].narrow(0, end, weight.size(0) - end).zero_();
      }
      transposed_product(rows, inputs, options.rows_of(out[1]));
    }
    return out;
  }

  // Computes the gradients with operations that build an autograd graph, for second derivatives.
  static variable_list differentiable(AutogradContext* context, const at::Tensor& grad,
                                      const at::Tensor& rows, const at::Tensor& inputs,
                                      const at::Tensor& weight, bool wants_bias,
                                      const Options& options) {
    const auto dtype = weight.scalar_type();
    // Places a gradient of the computed outputs among zeros for the remaining outputs.
    const auto placed = [&](const at::Tensor& part, const at::Tensor& all) {
      if (!options.is_part_of(weight)) return part;
      return at::slice_scatter(all, part, 0, options.first, options.first + options.count);
    };
    variable_list out(4);
    if (context->needs_input_grad(0)) {
      out[0] = at::matmul(grad, options.rows_of(weight).to(grad.scalar_type()));
    }
    if (context->needs_input_grad(1)) {
      out[1] = placed(at::mm(rows.t(), inputs).to(dtype), at::zeros_like(weight));
    }
    if (wants_bias) {
      const auto all = at::zeros({weight.size(0)}, weight.options());
      out[2] = placed(at::sum(rows, {0}, /*keepdim=*/false, dtype), all);
    }
    return out;
  }
};

// Returns the dtype in which the layer computes. Returns nothing if this code does not support the layer.
std::optional<at::ScalarType> dtype_of(const at::Tensor& input, const at::Tensor& weight,
                                       const std::optional<at::Tensor>& bias) {
  const auto own = weight.scalar_type();
  if (!amp::own_kernels() || !input.is_cuda() || !weight.is_cuda() || input.dim() == 0 ||
      (bias && bias->scalar_type() != own)) {
    return std::nullopt;
  }
  if (!at::autocast::is_autocast_enabled(cuda)) {
    const bool alike = input.scalar_type() == own && amp::kernel_dtype(own) != nullptr;
    return alike ? std::optional(own) : std::nullopt;
  }
  const auto dtype = at::autocast::get_autocast_dtype(cuda);
  const bool narrows = amp::is_half(dtype) && own == at::kFloat &&
                       input.scalar_type() != at::kDouble;
  return narrows ? std::optional(dtype) : std::nullopt;
}

at::Tensor in_dtype(const at::Tensor& input, at::ScalarType dtype) {
  if (input.scalar_type() == dtype) return input;
  const auto twin = amp::twin_of(input, dtype);
  return twin ? *twin : at::autocast::cached_cast(dtype, input, cuda);
}

}  // namespace

extern "C" {

struct AmpLinearOptions {
  // The outputs to compute: `count` outputs, from the output `first` on. If `count` is 0, all outputs are computed.
  int64_t first, count;
  double p;
  int activation;
};

// Computes x·Wᵀ + b, then an activation, then dropout with probability p below 1. `bias` may be null. Computes `count`
// of the outputs, from the output `first` on. Writes a new tensor to `out`.
int amp_linear(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias,
               const AmpLinearOptions* options, at::Tensor** out) {
  return amp::guarded([&] {
    std::optional<at::Tensor> given;
    if (bias != nullptr) given = *bias;
    const Options wanted{options->first, options->count > 0 ? options->count : weight->size(0),
                         options->activation, options->p};
    const auto dtype = dtype_of(*input, *weight, given);
    if (dtype) {
      *out = new at::Tensor(AmpLinear::apply(in_dtype(*input, *dtype), *weight, given, wanted));
      return;
    }
    if (given) given = wanted.rows_of(*given);
    auto result = at::linear(*input, wanted.rows_of(*weight), given);
    if (wanted.activation == relu) result = at::dropout(at::relu(result), wanted.p, /*train=*/true);
    if (wanted.is_gelu()) {
      result = at::gelu(result, approximation(wanted.activation));
      if (wanted.p > 0) result = at::dropout(result, wanted.p, /*train=*/true);
    }
    *out = new at::Tensor(std::move(result));
  });
}

}  // extern "C"

}  // namespace amp::linear
