// Batch normalisation with ReLU and dropout on CUDA devices (kernels/batch_norm.cu).

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>
#include <string>

#include "column_sums.h"
#include "dropout.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/batch_norm.cu.h"
#include "own_kernels.h"

namespace amp::batch_norm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t columns_per_block = 32;
constexpr unsigned threads = 512;

// The arguments of a batch norm. `Layer` in kernels/batch_norm.cu has the same layout.
struct Layer {
  int rows, columns, relu;
  double momentum, eps;
  amp::Dropout dropout;
};

struct Options {
  double momentum, eps, p;
  bool relu;
};

// The running statistics, and the number of batches that they contain. Each may be undefined.
struct Statistics {
  at::Tensor mean, var, tracked;
};

void start(const char* pass, const at::Tensor& input, const at::Tensor& weight, void** arguments) {
  static amp::KernelSource source("batch_norm.cu", amp_kernels_batch_norm);
  const amp::Types types{amp::kernel_dtype(input.scalar_type()),
                         amp::kernel_dtype(weight.scalar_type())};
  const auto blocks = (input.size(1) + columns_per_block - 1) / columns_per_block;
  source.launch(pass, types, input.device(), static_cast<unsigned>(blocks), threads, arguments);
}

Layer layer_of(const at::Tensor& input, const Options& options, const amp::Dropout& dropout) {
  return {static_cast<int>(input.size(0)), static_cast<int>(input.size(1)), options.relu,
          options.momentum, options.eps, dropout};
}

bool is_known(at::ScalarType input, at::ScalarType weight) {
  return (input == weight && amp::kernel_dtype(input) != nullptr) ||
         (amp::is_half(input) && weight == at::kFloat);
}

struct AmpBatchNorm : torch::autograd::Function<AmpBatchNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const at::Tensor& bias,
                            const Statistics& running, const Options& options) {
    const auto wide = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const auto statistics = at::TensorOptions(input.device()).dtype(wide);
    const auto means = at::empty({input.size(1)}, statistics), inverses = at::empty_like(means);
    const auto out = at::empty_like(input);
    const amp::Dropout dropout(options.p, input.device());
    auto layer = layer_of(input, options, dropout);
    const void *in = input.const_data_ptr(), *w = weight.const_data_ptr(),
               *b = bias.const_data_ptr();
    void *rm = amp::data(running.mean), *rv = amp::data(running.var), *t = amp::data(running.tracked),
         *m = amp::data(means), *i = amp::data(inverses), *o = amp::data(out);
    void* arguments[] = {&in, &w, &b, &rm, &rv, &t, &m, &i, &o, &layer};
    start("forward", input, weight, arguments);
    context->save_for_backward({input, weight, bias, means, inverses});
    context->saved_data["drawn"] = dropout.drawn();
    context->saved_data["p"] = options.p;
    context->saved_data["relu"] = options.relu;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    if (c10::GradMode::is_enabled()) {
      if (context->saved_data.at("p").toDouble() > 0) {
        amp::refuse_second_derivative("batch normalisation with dropout");
      }
      return differentiable(grads.at(0), saved, context->saved_data.at("relu").toBool());
    }
    const auto &input = saved.at(0), &weight = saved.at(1), &bias = saved.at(2),
               &means = saved.at(3), &inverses = saved.at(4);
    auto& kept = context->saved_data;
    // The backward pass does not use the momentum and epsilon, so they are 0 here.
    const Options options{0, 0, kept.at("p").toDouble(), kept.at("relu").toBool()};
    const auto grad = amp::aligned(grads.at(0));
    variable_list out(5);
    at::Tensor input_sums;
    if (context->needs_input_grad(0)) {
      out[0] = at::empty_like(input);
      input_sums = at::empty_like(weight);
    }
    out[1] = at::empty_like(weight);
    out[2] = at::empty_like(bias);
    auto layer = layer_of(input, options, {options.p, kept.at("drawn").toIntVector()});
    const void *in = input.const_data_ptr(), *g = grad.const_data_ptr(),
               *w = weight.const_data_ptr(), *b = bias.const_data_ptr(),
               *m = means.const_data_ptr(), *i = inverses.const_data_ptr();
    void *gi = amp::data(out[0]), *gw = amp::data(out[1]), *gb = amp::data(out[2]),
         *sums = amp::data(input_sums);
    void* arguments[] = {&in, &g, &w, &b, &m, &i, &gi, &gw, &gb, &sums, &layer};
    start("backward", input, weight, arguments);
    if (out[0].defined()) amp::note_column_sums(out[0], input_sums);
    return out;
  }

  // Computes the gradients with operations that build an autograd graph, for second derivatives. The second
  // derivative of ReLU is 0.
  static variable_list differentiable(const at::Tensor& grad, const variable_list& saved,
                                      bool relu) {
    const auto &input = saved.at(0), &weight = saved.at(1), &bias = saved.at(2),
               &means = saved.at(3), &inverses = saved.at(4);
    auto passed = grad;
    if (relu) {
      at::Tensor positive;
      {
        const c10::NoGradGuard no_grad;
        positive = ((input - means) * inverses * weight + bias) > 0;
      }
      passed = grad * positive;
    }
    // In training mode, libtorch's kernel does not use epsilon, so 0 is passed.
    auto [input_grad, weight_grad, bias_grad] = at::native_batch_norm_backward(
        passed, input, weight, {}, {}, means, inverses, /*train=*/true, /*eps=*/0,
        {true, true, true});
    return {input_grad, weight_grad, bias_grad, {}, {}};
  }
};

// Returns whether the kernels support these arguments: a matrix [rows, columns] on a CUDA device, with at least two
// rows and a multiple of four columns.
bool fits(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
  constexpr int64_t largest = std::numeric_limits<int>::max();
  return amp::own_kernels() && input.is_cuda() && input.dim() == 2 && input.size(0) >= 2 && input.size(0) <= largest &&
         input.size(1) <= largest && input.size(1) % 4 == 0 && input.size(1) == weight.numel() &&
         weight.device() == input.device() && is_known(input.scalar_type(), weight.scalar_type()) &&
         amp::is_aligned(input) && amp::is_aligned(weight) && amp::is_aligned(bias);
}

}  // namespace

extern "C" {

struct AmpBatchNormOptions {
  double momentum, eps, p;
  int relu;
};

// Computes batch norm over the rows in training mode, then applies ReLU if requested, then dropout with probability
// p below 1. The running statistics and the count of batches may be null. Writes a new tensor to `out`. Writes
// nothing if the kernels do not support these arguments.
int amp_batch_norm(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias,
                   const at::Tensor* running_mean, const at::Tensor* running_var,
                   const at::Tensor* tracked, const AmpBatchNormOptions* options,
                   at::Tensor** out) {
  return amp::guarded([&] {
    if (!fits(*input, *weight, *bias)) return;
    const auto maybe = [](const at::Tensor* tensor) {
      return tensor == nullptr ? at::Tensor() : *tensor;
    };
    const Statistics running{maybe(running_mean), maybe(running_var), maybe(tracked)};
    const Options given{options->momentum, options->eps, options->p, options->relu != 0};
    *out = new at::Tensor(AmpBatchNorm::apply(*input, *weight, *bias, running, given));
  });
}

}  // extern "C"

}  // namespace amp::batch_norm
