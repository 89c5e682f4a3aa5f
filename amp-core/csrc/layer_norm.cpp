// Layer normalisation on CUDA devices, fused with the residual and dropout before it and with the GELU and
// dropout after it (kernels/layer_norm.cu). The backward pass uses norm_rows.h if its kernels support the
// arguments.

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <optional>

#include "column_sums.h"
#include "dropout.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/layer_norm.cu.h"
#include "norm_rows.h"
#include "cached_cast.h"
#include "own_kernels.h"

namespace amp::layer_norm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The arguments of the kernels. This struct and the structs below have the same layout as those in
// kernels/layer_norm.cu.
struct Layer {
  int rows, columns, gelu;
  double eps;
  amp::Dropout before, after;
};

struct Behind {
  const void *sums, *grads, *twin_grads, *weights, *biases, *means, *inverses;
};

struct Gradients {
  void *sum, *in, *weight, *bias, *parts;
};

struct Options {
  double eps, before, after;
  bool gelu;
};

// Returns the names that these dtypes have in the kernels: the dtypes of the input, the sum, the output and
// the cached cast.
amp::Types types_of(std::initializer_list<at::ScalarType> dtypes) {
  amp::Types out;
  for (const auto dtype : dtypes) out.push_back(amp::kernel_dtype(dtype));
  return out;
}

// Returns the dtype of the cached cast of the output, which following layers read under autocast. Without
// autocast no cast is made, and the function returns the dtype of the output.
at::ScalarType twin_dtype(at::ScalarType out) {
  constexpr auto cuda = c10::DeviceType::CUDA;
  return at::autocast::is_autocast_enabled(cuda) ? at::autocast::get_autocast_dtype(cuda) : out;
}

amp::KernelSource& source() {
  static amp::KernelSource source("layer_norm.cu", amp_kernels_layer_norm);
  return source;
}

// The largest number of threads in a block.
constexpr int most_threads = 512;

unsigned threads_for(int columns) {
  const int packs = (columns + 3) / 4, warps = (packs + 31) / 32;
  return static_cast<unsigned>(std::min(32 * warps, most_threads));
}

struct AmpLayerNorm : torch::autograd::Function<AmpLayerNorm> {
  // Returns the output and, if a cast is made, the cached cast of the output.
  static variable_list forward(AutogradContext* context, const at::Tensor& input,
                               const at::Tensor& weight, const at::Tensor& bias,
                               const std::optional<at::Tensor>& residual, const Options& options) {
    const auto cast = twin_dtype(weight.scalar_type());
    const auto columns = weight.numel();
    const auto wide = weight.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const auto means = at::empty({input.numel() / columns}, weight.options().dtype(wide));
    const auto inverses = at::empty_like(means);
    const auto sums = residual ? at::empty_like(*residual) : input;
    variable_list out{at::empty(input.sizes(), weight.options())};
    if (cast != weight.scalar_type()) {
      out.push_back(at::empty(input.sizes(), weight.options().dtype(cast)));
    }
    const amp::Dropout before(options.before, input.device()),
        after(options.after, input.device());
    Layer layer{static_cast<int>(means.numel()), static_cast<int>(columns), options.gelu,
                options.eps, before, after};
    const void *in = input.const_data_ptr(), *w = weight.const_data_ptr(),
               *b = bias.const_data_ptr(),
               *r = residual ? residual->const_data_ptr() : nullptr;
    // Without a residual `sums` is the input, which the kernel only reads.
    void *s = const_cast<void*>(sums.const_data_ptr()), *m = amp::data(means), *i = amp::data(inverses),
         *o = amp::data(out[0]), *twin = out.size() > 1 ? amp::data(out[1]) : nullptr;
    void* arguments[] = {&in, &r, &w, &b, &s, &m, &i, &o, &twin, &layer};
    if (layer.rows > 0) {
      const auto types = types_of(
          {input.scalar_type(), sums.scalar_type(), weight.scalar_type(), cast});
      source().launch("forward", types, input.device(), static_cast<unsigned>(layer.rows),
                      threads_for(layer.columns), arguments);
    }
    context->save_for_backward({sums, weight, bias, means, inverses});
    // The output or its cached cast may have no gradient. The missing gradient then stays undefined, and
    // autograd does not fill it with zeros.
    context->set_materialize_grads(false);
    auto& kept = context->saved_data;
    kept["cast"] = static_cast<int64_t>(cast);
    kept["given"] = static_cast<int64_t>(input.scalar_type());
    kept["drawn_before"] = before.drawn();
    kept["drawn_after"] = after.drawn();
    kept["before"] = options.before;
    kept["after"] = options.after;
    kept["gelu"] = options.gelu;
    kept["residual"] = residual.has_value();
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto &sums = saved.at(0), &weight = saved.at(1), &bias = saved.at(2),
               &means = saved.at(3), &inverses = saved.at(4);
    auto& kept = context->saved_data;
    const auto given = static_cast<at::ScalarType>(kept.at("given").toInt());
    const auto cast = static_cast<at::ScalarType>(kept.at("cast").toInt());
    const auto twin_grads = grads.size() > 1 ? grads.at(1) : at::Tensor();
    if (!grads.at(0).defined() && !twin_grads.defined()) return variable_list(5);
    const double before = kept.at("before").toDouble(), after = kept.at("after").toDouble();
    Layer layer{static_cast<int>(means.numel()),
                static_cast<int>(weight.numel()),
                kept.at("gelu").toBool(),
                0,
                {before, kept.at("drawn_before").toIntVector()},
                {after, kept.at("drawn_after").toIntVector()}};
    if (c10::GradMode::is_enabled()) {
      const bool alone = !kept.at("residual").toBool() && after == 0 && !layer.gelu;
      if (!alone) amp::refuse_second_derivative("layer normalisation with the operations around it");
      auto whole = grads.at(0);
      if (twin_grads.defined()) {
        const auto wide = twin_grads.to(weight.scalar_type());
        whole = whole.defined() ? whole + wide : wide;
      }
      return differentiable(whole, saved, given);
    }
    // If nothing is dropped and nothing is rounded, the gradient of the residual equals the gradient of the
    // input.
    const bool alike = before == 0 && given == sums.scalar_type();
    const bool for_weights = context->needs_input_grad(1) || context->needs_input_grad(2);
    if (context->needs_input_grad(0) && for_weights && layer.rows > 0 && !layer.gelu && after == 0 &&
        (alike || given == cast) && amp::norm_rows::fits(weight.numel())) {
      const auto found = amp::norm_rows::backward({sums, weight, means, inverses, cast},
                                                  {{}, grads.at(0), twin_grads}, layer.before, !alike);
      if (!alike) amp::note_column_sums(found.branch, found.column_sums);
      const bool for_residual = kept.at("residual").toBool() && context->needs_input_grad(3);
      return {alike ? found.in : found.branch, found.weight, found.bias,
              for_residual ? found.in : at::Tensor(), {}};
    }
    const auto grad = amp::aligned(grads.at(0)), twin_grad = amp::aligned(twin_grads);
    const Behind behind{sums.const_data_ptr(),      amp::const_data(grad),
                        amp::const_data(twin_grad), weight.const_data_ptr(),
                        bias.const_data_ptr(),      means.const_data_ptr(),
                        inverses.const_data_ptr()};
    variable_list out(5);
    if (context->needs_input_grad(0)) {
      out[0] = at::empty(sums.sizes(), sums.options().dtype(given));
    }
    if (kept.at("residual").toBool() && context->needs_input_grad(3)) {
      out[3] = alike && out[0].defined() ? out[0] : at::empty_like(sums);
    }
    if (for_weights) {
      out[1] = at::empty_like(weight);
      out[2] = at::empty_like(bias);
    }
    // The number of rows that a block sums up. It is large enough to keep the threads of the block busy.
    int part = 512;
    int parts = std::max(1, (layer.rows + part - 1) / part);
    at::Tensor sums_of_parts;
    if (for_weights && parts > 1) {
      sums_of_parts = at::empty({parts, 2, layer.columns}, means.options());
    }
    Gradients to{out[3].is_same(out[0]) ? nullptr : amp::data(out[3]), amp::data(out[0]),
                 amp::data(out[1]), amp::data(out[2]), amp::data(sums_of_parts)};
    constexpr int columns_per_block = 32;
    const int across = (layer.columns + columns_per_block - 1) / columns_per_block;
    int row_blocks = to.sum != nullptr || to.in != nullptr ? layer.rows : 0;
    const int blocks = row_blocks + (for_weights ? parts * across : 0);
    if (blocks == 0) return out;
    const auto types = types_of({given, sums.scalar_type(), weight.scalar_type(), cast});
    void* arguments[] = {const_cast<Behind*>(&behind), &to, &row_blocks, &part, &layer};
    source().launch("backward", types, sums.device(), static_cast<unsigned>(blocks), most_threads,
                    arguments);
    if (sums_of_parts.defined()) {
      void* rest[] = {&to, &parts, &layer};
      source().launch("add_parts", types, sums.device(),
                      static_cast<unsigned>((layer.columns + most_threads - 1) / most_threads),
                      most_threads, rest);
    }
    return out;
  }

  // Computes the gradients with operations that build an autograd graph, for second derivatives.
  static variable_list differentiable(const at::Tensor& grad, const variable_list& saved,
                                      at::ScalarType given) {
    const auto &weight = saved.at(1), &bias = saved.at(2);
    const auto input = saved.at(0).to(weight.scalar_type());
    auto sizes = input.sizes().vec();
    sizes.back() = 1;
    const auto [input_grad, weight_grad, bias_grad] = at::native_layer_norm_backward(
        grad, input, weight.sizes(), saved.at(3).view(sizes), saved.at(4).view(sizes), weight, bias,
        {true, true, true});
    return {input_grad.to(given), weight_grad, bias_grad, {}, {}};
  }
};

// Returns whether the kernels support these arguments: rows on a CUDA device, with a multiple of four columns.
bool fits(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
          const std::optional<at::Tensor>& residual) {
  constexpr int64_t largest = std::numeric_limits<int>::max();
  const auto columns = weight.numel();
  if (!amp::own_kernels() || !input.is_cuda() || input.dim() == 0 || columns == 0 || columns % 4 != 0 ||
      input.size(-1) != columns || columns > largest || input.numel() / columns > largest ||
      weight.device() != input.device() || !amp::is_aligned(input) || !amp::is_aligned(weight) ||
      !amp::is_aligned(bias) || bias.scalar_type() != weight.scalar_type()) {
    return false;
  }
  if (residual && (residual->device() != input.device() || !amp::is_aligned(*residual) ||
                   residual->sizes() != input.sizes())) {
    return false;
  }
  const auto given = input.scalar_type(), out = weight.scalar_type();
  const auto sum = residual ? residual->scalar_type() : given;
  if (amp::kernel_dtype(out) == nullptr) return false;
  const bool autocast = at::autocast::is_autocast_enabled(c10::DeviceType::CUDA);
  // Autocast runs layer norm in f32, with f32 weights.
  if (autocast && out != at::kFloat) return false;
  const bool sums = sum == given || (amp::is_half(given) && sum == at::kFloat);
  const bool normalises = sum == out || (autocast && amp::is_half(sum));
  return sums && normalises;
}

}  // namespace

extern "C" {

struct AmpLayerNormOptions {
  double eps, before, after;
  int gelu;
};

// Normalises along the last dimension. Without a residual, normalises `input`. With a residual, normalises the
// sum of the residual and of `input` after dropout with probability `before`. Then applies GELU, if requested,
// and dropout with probability `after`. Both probabilities are below 1. Writes a new tensor to `out`. Writes
// nothing if the kernels do not support these arguments.
int amp_layer_norm(const at::Tensor* input, const at::Tensor* residual, const at::Tensor* weight,
                   const at::Tensor* bias, const AmpLayerNormOptions* options, at::Tensor** out) {
  return amp::guarded([&] {
    std::optional<at::Tensor> around;
    if (residual != nullptr) around = *residual;
    if (!fits(*input, *weight, *bias, around)) return;
    const Options given{options->eps, options->before, options->after, options->gelu != 0};
    const auto made = AmpLayerNorm::apply(*input, *weight, *bias, around, given);
    if (made.size() > 1) amp::note_twin(made.at(0), made.at(1));
    *out = new at::Tensor(made.at(0));
  });
}

}  // extern "C"

}  // namespace amp::layer_norm
