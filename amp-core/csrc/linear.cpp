// nn.Linear on CUDA during training. Under autocast the product for the weight's gradient is
// written in f32, in which it is accumulated; PyTorch rounds it to 16 bits and casts it back. A
// weight that accepts gradients of any dtype gets 16 bits, like PyTorch's. ReLU and dropout after a
// layer are fused with its bias, and an activation's gradient with the bias's gradient
// (kernels/linear.cu).

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

#include "cast.h"
#include "column_sums.h"
#include "dropout.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/linear.cu.h"
#include "cached_cast.h"

namespace amp::linear {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto cuda = c10::DeviceType::CUDA;
// The weight as used in the product, and the original.
constexpr auto factor_key = "factor";
constexpr auto weight_key = "weight";
// Whether there is a bias.
constexpr auto bias_key = "bias";
// Whether the weight's gradient may be narrower than the weight.
constexpr auto narrow_key = "narrow";
// The first requested output and their number, the activation, and the factor of the dropout after
// it.
constexpr auto first_key = "first";
constexpr auto count_key = "count";
constexpr auto activation_key = "activation";
constexpr auto scale_key = "scale";
// The bias, if second derivatives need it.
constexpr auto addend_key = "addend";

// The same values as in the kernels.
enum Activation : int { none, relu, gelu, gelu_tanh };

const char* approximation(int activation) { return activation == gelu_tanh ? "tanh" : "none"; }

struct Options {
  // The requested outputs: this many, from the first one on.
  int64_t first, count;
  // The activation after them, and after ReLU dropout with this probability.
  int activation;
  double p;

  bool is_gelu() const { return activation == gelu || activation == gelu_tanh; }

  bool is_part_of(const at::Tensor& weight) const { return count < weight.size(0); }
  // The rows of the weight, of the bias or of a gradient that belong to the requested outputs.
  at::Tensor rows_of(const at::Tensor& tensor) const {
    return is_part_of(tensor) ? tensor.narrow(0, first, count) : tensor;
  }
};

amp::KernelSource& source() {
  static amp::KernelSource source("linear.cu", amp_kernels_linear);
  return source;
}

// An activation after a layer; the gradient before it is written to `passed`. ReLU and dropout pass
// the elements whose output is not 0, times `scale`; GELU needs its input.
struct Activated {
  int activation = none;
  at::Tensor kept, passed;
  float scale = 1;
};

void column_sums(const at::Tensor& matrix, const Activated& activated, const at::Tensor& out);

// Whether a matrix is so large that memory traffic matters, and consists of lines of 16 bytes.
bool is_large(const at::Tensor& matrix) {
  constexpr int64_t large = 1 << 21;
  const auto line = 16 / matrix.element_size();
  return matrix.numel() >= large && matrix.size(1) % line == 0 &&
         reinterpret_cast<uintptr_t>(matrix.const_data_ptr()) % 16 == 0;
}

// column_sums of a large matrix.
void large_column_sums(const at::Tensor& matrix, const Activated& activated, const at::Tensor& out) {
  constexpr int64_t rows_per_block = 256;
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const int64_t columns_per_block = 32 * (16 / matrix.element_size());
  const int64_t parts = (rows + rows_per_block - 1) / rows_per_block;
  const int64_t blocks = parts * ((columns + columns_per_block - 1) / columns_per_block);
  const auto wide = matrix.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor sums;
  if (out.defined()) sums = at::empty({parts, columns}, matrix.options().dtype(wide));
  const void *from = matrix.const_data_ptr(), *kept = amp::const_data(activated.kept);
  void *to = amp::data(sums), *passed = amp::data(activated.passed);
  int activation = activated.activation;
  float scale = activated.scale;
  long long height = rows, width = columns, part = rows_per_block;
  void* arguments[] = {&from, &kept, &activation, &scale, &passed, &to, &height, &width, &part};
  source().launch("large_column_sums", {amp::kernel_dtype(matrix.scalar_type())}, matrix.device(),
                  static_cast<unsigned>(blocks), 256, arguments);
  if (out.defined()) column_sums(sums, {}, out);
}

// The sums of the columns of `matrix`, or of the gradient that passes `activated`, in `out`, which
// may be undefined.
void column_sums(const at::Tensor& matrix, const Activated& activated, const at::Tensor& out) {
  if (is_large(matrix)) {
    large_column_sums(matrix, activated, out);
    return;
  }
  constexpr int64_t rows_per_block = 1024, columns_per_block = 32;
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const int64_t parts = std::max<int64_t>(1, (rows + rows_per_block - 1) / rows_per_block);
  const int64_t blocks = parts * ((columns + columns_per_block - 1) / columns_per_block);
  if (blocks == 0) return;
  // The sums of each part, which are then summed.
  const bool in_parts = out.defined() && parts > 1;
  const auto wide = matrix.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto sums = in_parts ? at::empty({parts, columns}, matrix.options().dtype(wide)) : out;
  const void *from = matrix.const_data_ptr(), *kept = amp::const_data(activated.kept);
  void *to = amp::data(sums), *passed = amp::data(activated.passed);
  int activation = activated.activation;
  float scale = activated.scale;
  long long height = rows, width = columns, part = rows_per_block;
  void* arguments[] = {&from, &kept, &activation, &scale, &passed, &to, &height, &width, &part};
  const auto summed = sums.defined() ? sums.scalar_type() : matrix.scalar_type();
  const amp::Types types{amp::kernel_dtype(matrix.scalar_type()), amp::kernel_dtype(summed)};
  source().launch("column_sums", types, matrix.device(), static_cast<unsigned>(blocks), 512,
                  arguments);
  if (in_parts) column_sums(sums, {}, out);
}

// Adds `bias`, if it is defined, to `values`, which has no other owner, and applies ReLU and
// dropout, all in place.
void activate(at::Tensor& values, const at::Tensor& bias, amp::Dropout dropout) {
  long long count = values.numel(), columns = values.size(-1);
  if (count == 0) return;
  constexpr long long per_block = 256 * 4;
  void* at = values.mutable_data_ptr();
  const void* addend = amp::const_data(bias);
  void* arguments[] = {&at, &addend, &count, &columns, &dropout};
  source().launch("activate", {amp::kernel_dtype(values.scalar_type())}, values.device(),
                  static_cast<unsigned>((count + per_block - 1) / per_block), 256, arguments);
}

// aᵀ·b in `out`, whose dtype may be wider than theirs.
void transposed_product(const at::Tensor& a, const at::Tensor& b, at::Tensor out) {
  const bool wider = out.scalar_type() != a.scalar_type();
  wider ? at::mm_out(out, a.t(), b, out.scalar_type()) : at::mm_out(out, a.t(), b);
}

// x·Wᵀ + b, with the operations after it. In f64, and in f32 with few rows, cuBLASLt's kernel for a
// product with a bias takes up to twice as long as cuBLAS's product followed by a sum (H100).
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
  // The input in the dtype of the computation; the weight may be f32.
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
      out = at::gelu(behind, approximation(options.activation));
      if (bias) context->saved_data[addend_key] = *bias;
    }
    // A weight that is cast may be modified before the backward pass, as in PyTorch.
    context->save_for_backward({input, casts ? at::Tensor() : weight, behind});
    auto& kept = context->saved_data;
    // If the input needs no gradient, as in a first layer, the cast is freed with the region.
    if (input.requires_grad()) kept[factor_key] = factor.detach();
    kept[weight_key] = weight;
    kept[bias_key] = bias.has_value();
    kept[narrow_key] = weight.is_leaf() && !weight.grad_dtype().has_value();
    kept[first_key] = options.first;
    kept[count_key] = options.count;
    kept[activation_key] = options.activation;
    kept[scale_key] = 1 / (1 - options.p);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto& input = saved.at(0);
    auto& kept = context->saved_data;
    if (kept.count(weight_key) == 0) {
      throw std::runtime_error("a linear layer's part of the graph was already run backward");
    }
    at::Tensor factor;
    if (context->needs_input_grad(0)) factor = kept.at(factor_key).toTensor();
    const auto weight = kept.at(weight_key).toTensor();
    const bool wants_bias = kept.at(bias_key).toBool() && context->needs_input_grad(2);
    const bool narrow = kept.at(narrow_key).toBool();
    const Options options{kept.at(first_key).toInt(), kept.at(count_key).toInt(),
                          static_cast<int>(kept.at(activation_key).toInt()), 0};
    const double scale = kept.at(scale_key).toDouble();
    std::optional<at::Tensor> addend;
    if (kept.count(addend_key) > 0) addend = kept.at(addend_key).toTensor();
    if (!torch::autograd::get_current_graph_task_keep_graph()) kept.clear();
    const int64_t features = weight.size(1);
    auto rows = grads.at(0).reshape({-1, options.count});
    const auto inputs = input.reshape({-1, features});
    if (c10::GradMode::is_enabled()) {
      if (options.activation == relu) rows = rows * (saved.at(2).reshape_as(rows).ne(0) * scale);
      if (options.is_gelu()) {
        // For second derivatives, the layer computes its output again, with a graph.
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
        activated = {options.activation, saved.at(2), at::empty_like(rows), static_cast<float>(scale)};
      }
      column_sums(rows, activated, wants_bias ? options.rows_of(out[2]) : at::Tensor());
      if (options.activation != none) rows = activated.passed;
    }
    if (context->needs_input_grad(0)) out[0] = at::matmul(rows, factor).view(input.sizes());
    // Freed before the weight's gradient is allocated, which may be twice as large.
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

  // With a graph of its own, for second derivatives.
  static variable_list differentiable(AutogradContext* context, const at::Tensor& grad,
                                      const at::Tensor& rows, const at::Tensor& inputs,
                                      const at::Tensor& weight, bool wants_bias,
                                      const Options& options) {
    const auto dtype = weight.scalar_type();
    // At the position of the requested outputs among all.
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

// The dtype of the layer's computation, if this code supports it.
std::optional<at::ScalarType> dtype_of(const at::Tensor& input, const at::Tensor& weight,
                                       const std::optional<at::Tensor>& bias) {
  const auto own = weight.scalar_type();
  if (!input.is_cuda() || !weight.is_cuda() || input.dim() == 0 ||
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
  const auto cached = amp::cached_cast_of(input, dtype);
  return cached ? *cached : at::autocast::cached_cast(dtype, input, cuda);
}

}  // namespace

extern "C" {

struct AmpLinearOptions {
  // For all outputs.
  int64_t first, count;
  double p;
  int activation;
};

// x·Wᵀ + b; `bias` may be null. Computes `count` outputs from `first` on, followed by an
// activation, and after ReLU by dropout with probability p below 1. The result is new.
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
    if (wanted.is_gelu()) result = at::gelu(result, approximation(wanted.activation));
    *out = new at::Tensor(std::move(result));
  });
}

}  // extern "C"

}  // namespace amp::linear
