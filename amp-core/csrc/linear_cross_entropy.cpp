// A linear layer and the cross entropy of its outputs, computed in chunks of rows. Only the logits of one chunk are in
// memory at a time.
//
// The forward pass also computes the gradients. For each chunk, it computes the logits and replaces them by their
// gradients. Before the next chunk, it multiplies these gradients with the weight and with the input. Computing the
// logits in the backward pass instead would not save memory, because all activations are still in memory when the
// backward pass starts. It would also take a third more operations, because the logits would be computed twice.
//
// The gradient of the mean loss is known only in the backward pass. The forward pass therefore computes the gradients
// of the sum of the losses, and neither multiplies by the gradient of the mean nor divides by the number of targets.
// The gradient of a logit is then between -1 and 1, whatever the loss scale and the batch are. In f16 this gradient is
// multiplied by a power of two that brings it close to the largest f16 number. The products of the logits' gradients
// with the weight and with the input are accumulated in f32. The backward pass scales these products once, before they
// are rounded to 16 bits.

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <stdexcept>
#include <utility>

#include "activation.h"
#include "cached_cast.h"
#include "cast.h"
#include "classification.h"
#include "guard.h"
#include "matrix_products.h"

namespace amp::linear_cross_entropy {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The following constants are keys of `saved_data`, in which the forward pass stores values for the backward pass.

// The keys of the sums of gradients with respect to input, weight and bias. If a sum is not needed, its key is absent.
constexpr const char* sums_keys[] = {"of_input", "of_weight", "of_bias"};
// The key of the number of targets that are not ignored.
constexpr auto counted_key = "counted";
// The key of the factor by which the gradients of the logits were multiplied (`factor_for`).
constexpr auto factor_key = "factor";
// The key of the value that says whether the weight's gradient may have fewer bits than the weight.
constexpr auto narrow_key = "narrow";
// The keys of the weight, of the bias, and of the three fields of `classification::Options`.
constexpr auto weight_key = "weight";
constexpr auto bias_key = "bias";
constexpr auto smoothing_key = "smoothing";
constexpr auto left_out_key = "left_out";
constexpr auto z_key = "z";

struct Settings {
  classification::Options loss;
  // The number of rows in a chunk.
  int64_t rows;
  // Whether the forward pass computes gradients.
  bool trains;
  // Is called with the logits of each chunk and the index of the chunk's first row, before the gradients replace the
  // logits. May be empty.
  std::function<void(const at::Tensor&, int64_t)> each;
};

// Returns the power of two by which the gradients of logits are multiplied. In f16 it is the largest power of two that
// cannot cause an overflow. This assumes that no logit, and therefore no log-sum-exp, is much larger than the largest
// f16 number.
double factor_for(at::ScalarType dtype, double z) {
  if (dtype != at::kHalf) return 1;
  constexpr double largest = 65504, largest_logarithm = 65600;
  return std::exp2(std::floor(std::log2(largest / (1 + 2 * z * largest_logarithm))));
}

// Writes the product a·b to `out`, or adds it to `out`. The dtype of `out` may have more bits than the dtype of a and
// b.
void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b, bool adds) {
  const auto dtype = out.scalar_type();
  if (a.scalar_type() == dtype) {
    adds ? at::addmm_out(out, out, a, b) : at::mm_out(out, a, b);
  } else if (out.is_cuda()) {
    adds ? at::addmm_out(out, out, a, b, dtype) : at::mm_out(out, a, b, dtype);
  } else {
    // On the CPU libtorch has no product whose output has a wider dtype than its factors, so the factors are widened
    // first.
    multiply(std::move(out), a.to(dtype), b.to(dtype), adds);
  }
}

void add_columns(const at::Tensor& sums, const at::Tensor& rows, bool adds) {
  if (!rows.is_cuda()) {
    const auto columns = at::sum(rows, {0}, /*keepdim=*/false, sums.scalar_type());
    adds ? sums.add_(columns) : sums.copy_(columns);
    return;
  }
  const auto columns = adds ? at::empty_like(sums) : sums;
  activation::column_sums(rows, {}, columns);
  if (adds) sums.add_(columns);
}

struct AmpLinearCrossEntropy : torch::autograd::Function<AmpLinearCrossEntropy> {
  // The input [rows, features] has the dtype of the computation. Weight and bias may have this dtype or be f32.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const at::Tensor& targets,
                            const Settings& settings) {
    const auto dtype = input.scalar_type();
    const auto cast = [&](const at::Tensor& tensor) {
      if (tensor.scalar_type() == dtype) return tensor.detach();
      return tensor.is_cuda() ? amp::cast_weight(tensor, dtype) : tensor.detach().to(dtype);
    };
    const auto matrix = cast(weight), given = input.detach().contiguous();
    at::Tensor addend;
    if (bias) addend = cast(*bias);
    const int64_t rows = given.size(0), features = given.size(1), classes = weight.size(0);
    const auto wide = classification::wide(given);
    const auto options = given.options().dtype(wide);
    const auto sums = [&](bool wanted, at::IntArrayRef sizes) {
      return wanted && settings.trains ? at::empty(sizes, options) : at::Tensor();
    };
    const at::Tensor of_gradients[] = {
        sums(input.requires_grad(), {rows, features}), sums(weight.requires_grad(), {classes, features}),
        sums(bias && bias->requires_grad(), {classes})};
    const auto& [of_input, of_weight, of_bias] = of_gradients;
    const double factor = settings.trains ? factor_for(dtype, settings.loss.z) : 0;
    const auto losses = at::empty({rows}, options);
    const auto buffer = at::empty({std::min(rows, settings.rows), classes}, given.options());
    for (int64_t first = 0; first < rows; first += settings.rows) {
      const int64_t count = std::min(settings.rows, rows - first);
      const auto part = given.narrow(0, first, count);
      auto logits = buffer.narrow(0, 0, count);
      bias ? at::addmm_out(logits, addend, part, matrix.t()) : at::mm_out(logits, part, matrix.t());
      if (settings.each) settings.each(logits, first);
      classification::row_losses(logits, targets.narrow(0, first, count), settings.loss, factor,
                                 losses.narrow(0, first, count));
      // These products belong to the backward pass, so the recording of matrix products is paused.
      const products::Pause pause;
      if (of_input.defined()) multiply(of_input.narrow(0, first, count), logits, matrix, false);
      if (of_weight.defined()) multiply(of_weight, logits.t(), part, first > 0);
      if (of_bias.defined()) add_columns(of_bias, logits, first > 0);
    }
    const auto [mean, counted] = classification::mean_of_rows(losses, targets, settings.loss, dtype);
    if (!settings.trains) return mean;
    context->save_for_backward({input, targets});
    auto& kept = context->saved_data;
    for (size_t at = 0; at < std::size(of_gradients); ++at) {
      if (of_gradients[at].defined()) kept[sums_keys[at]] = of_gradients[at];
    }
    kept[counted_key] = counted;
    kept[factor_key] = factor;
    kept[narrow_key] = weight.is_leaf() && !weight.grad_dtype().has_value();
    kept[weight_key] = weight;
    if (bias) kept[bias_key] = *bias;
    kept[smoothing_key] = settings.loss.smoothing;
    kept[left_out_key] = static_cast<int64_t>(settings.loss.left_out);
    kept[z_key] = settings.loss.z;
    return mean;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto& input = saved.at(0);
    auto& kept = context->saved_data;
    if (kept.count(weight_key) == 0) {
      throw std::runtime_error(
          "the backward pass of a linear layer's cross entropy ran before and freed the tensors that it needs");
    }
    if (c10::GradMode::is_enabled()) return differentiable(context, input, saved.at(1), grads.at(0));
    const bool keeps = torch::autograd::get_current_graph_task_keep_graph();
    const auto weight = kept.at(weight_key).toTensor();
    const auto counted = kept.at(counted_key).toTensor();
    // If all targets are ignored, the gradient is 0 and the loss is NaN.
    const auto scale = (grads.at(0).to(at::kDouble) / counted / kept.at(factor_key).toDouble())
                           .masked_fill(counted.eq(0), 0);
    const at::ScalarType dtypes[] = {
        input.scalar_type(),
        kept.at(narrow_key).toBool() ? input.scalar_type() : weight.scalar_type(),
        kept.count(bias_key) > 0 ? kept.at(bias_key).toTensor().scalar_type() : weight.scalar_type()};
    variable_list out(5);
    for (size_t at = 0; at < std::size(sums_keys); ++at) {
      if (kept.count(sums_keys[at]) == 0) continue;
      const auto sums = kept.at(sums_keys[at]).toTensor();
      const auto by = scale.to(sums.scalar_type());
      if (!keeps && dtypes[at] == sums.scalar_type()) {
        out[at] = sums.mul_(by);
      } else {
        out[at] = at::empty(sums.sizes(), sums.options().dtype(dtypes[at]));
        at::mul_out(out[at], sums, by);
      }
      if (!keeps) kept.erase(sums_keys[at]);
    }
    if (!keeps) kept.clear();
    return out;
  }

  // Computes the gradients with operations that build an autograd graph, for second derivatives. Computes all logits at
  // once.
  static variable_list differentiable(AutogradContext* context, const at::Tensor& input,
                                      const at::Tensor& targets, const at::Tensor& grad) {
    const auto& kept = context->saved_data;
    const classification::Options options{kept.at(smoothing_key).toDouble(), kept.at(left_out_key).toInt(),
                                          kept.at(z_key).toDouble()};
    const auto weight = kept.at(weight_key).toTensor();
    const auto matrix = weight.to(input.scalar_type());
    std::optional<at::Tensor> bias, addend;
    if (kept.count(bias_key) > 0) bias = kept.at(bias_key).toTensor();
    if (bias) addend = bias->to(input.scalar_type());
    const auto logits = at::linear(input, matrix, addend);
    const auto gradient = classification::differentiable_gradient(logits, targets, grad, options);
    variable_list out(5);
    if (kept.count(sums_keys[0]) > 0) out[0] = at::matmul(gradient, matrix);
    if (kept.count(sums_keys[1]) > 0) out[1] = at::mm(gradient.t(), input).to(weight.scalar_type());
    if (kept.count(sums_keys[2]) > 0) {
      out[2] = at::sum(gradient, {0}, /*keepdim=*/false, bias->scalar_type());
    }
    return out;
  }
};

}  // namespace

extern "C" {

struct AmpLinearCrossEntropyOptions {
  double smoothing;
  int64_t left_out;
  double z;
  int64_t rows;
};

// Computes the mean cross entropy of input·Wᵀ + b against int64 classes, for `rows` rows of logits at a time. `bias`
// may be null. Computes in the autocast dtype, or without autocast in the dtype of the weight. For each chunk calls
// `each`, which may be null, with `state`, the logits and the index of the first row. Writes a new tensor to `out`.
int amp_linear_cross_entropy(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias,
                             const at::Tensor* targets, const AmpLinearCrossEntropyOptions* options,
                             void (*each)(void*, const at::Tensor*, int64_t), void* state, at::Tensor** out) {
  return amp::guarded([&] {
    const auto device = input->device().type();
    const auto dtype = at::autocast::is_autocast_enabled(device) ? at::autocast::get_autocast_dtype(device)
                                                                 : weight->scalar_type();
    const auto twin = amp::twin_of(*input, dtype);
    const auto matrix = (twin ? *twin : input->to(dtype)).reshape({-1, weight->size(1)});
    std::optional<at::Tensor> given;
    if (bias != nullptr) given = *bias;
    const bool wants = matrix.requires_grad() || weight->requires_grad() || (given && given->requires_grad());
    Settings settings{{options->smoothing, options->left_out, options->z},
                      options->rows,
                      wants && c10::GradMode::is_enabled(),
                      {}};
    if (each != nullptr) {
      settings.each = [each, state](const at::Tensor& logits, int64_t first) {
        each(state, &logits, first);
      };
    }
    const auto targets_of_rows = targets->reshape({-1}).contiguous();
    *out = new at::Tensor(
        AmpLinearCrossEntropy::apply(matrix, *weight, given, targets_of_rows, settings));
  });
}

}  // extern "C"

}  // namespace amp::linear_cross_entropy
