// Batch normalisation of images in channels_last and 16 bits on CUDA devices, followed by ReLU, or
// by adding a residual and ReLU (kernels/batch_norm_images.cu).

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "guard.h"
#include "images.h"
#include "kernel.h"
#include "kernels/batch_norm_images.cu.h"

namespace amp::batch_norm_images {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

#include "kernels/batch_norm_images.h"
#include "own_kernels.h"

using namespace amp::images;

constexpr unsigned threads = 256, finishing_threads = 512;
// The number of blocks: three for each of the 132 multiprocessors of a Hopper GPU. The number is the same on
// every GPU, because the order of the sums, and so their rounding, depends on it.
constexpr int blocks = 396;

struct Options {
  double momentum, eps;
  bool relu;
};

// The running statistics, and the number of batches that they contain. Each may be undefined.
struct Statistics {
  at::Tensor mean, var, tracked;
};

Shape shape_of(const at::Tensor& images) {
  const auto columns = static_cast<int>(images.size(1));
  const auto rows = static_cast<int>(images.numel() / columns);
  const int lanes = std::min(columns / eight, 64), rows_at_once = static_cast<int>(threads) / lanes;
  const int tiles = (columns + lanes * eight - 1) / (lanes * eight);
  const int groups = (rows + rows_at_once - 1) / rows_at_once;
  return {rows, columns, lanes, rows_at_once, tiles, std::clamp(blocks / tiles, 1, groups)};
}

void start(const std::string& name, const at::Tensor& images, const at::Tensor& weight,
           unsigned blocks, unsigned threads, void** arguments) {
  static amp::KernelSource source("batch_norm_images.cu", amp_kernels_batch_norm_images);
  const amp::Types types{amp::kernel_dtype(images.scalar_type()),
                         amp::kernel_dtype(weight.scalar_type())};
  source.launch(name.c_str(), types, images.device(), blocks, threads, arguments);
}

// Launches the kernel `name` over the images. Each block processes one chunk of rows (pixels) in one tile of
// columns (channels).
void pass(const std::string& name, const at::Tensor& images, const at::Tensor& weight,
          const Shape& shape, void** arguments) {
  start(name, images, weight, static_cast<unsigned>(shape.tiles * shape.chunks), threads, arguments);
}

// Launches the kernel `name`, which computes results for each column from the sums that another kernel has
// written.
void finish(const char* name, const at::Tensor& images, const at::Tensor& weight,
            const Shape& shape, void** arguments) {
  start(name, images, weight, static_cast<unsigned>(shape.columns / eight), finishing_threads,
        arguments);
}

struct AmpBatchNormImages : torch::autograd::Function<AmpBatchNormImages> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const at::Tensor& bias,
                            const std::optional<at::Tensor>& residual, const Statistics& running,
                            const Options& options) {
    auto shape = shape_of(input);
    const auto wide = at::TensorOptions(input.device()).dtype(at::kFloat);
    const auto sums = at::empty({shape.chunks, 2, shape.columns}, wide);
    const auto known = at::empty({known_rows, shape.columns}, wide);
    const auto out = at::empty_like(input, input.options(), format);
    at::Tensor mask;
    if (residual) mask = at::empty({input.numel() / eight}, input.options().dtype(at::kByte));
    const void *in = input.const_data_ptr(), *w = weight.const_data_ptr(),
               *b = bias.const_data_ptr(), *r = residual ? residual->const_data_ptr() : nullptr;
    void *rm = amp::data(running.mean), *rv = amp::data(running.var), *t = amp::data(running.tracked),
         *s = amp::data(sums), *k = amp::data(known), *o = amp::data(out), *m = amp::data(mask);
    double momentum = options.momentum, eps = options.eps;
    void* for_sums[] = {&in, &s, &shape};
    pass("statistics", input, weight, shape, for_sums);
    void* for_known[] = {&in, &s, &w, &b, &rm, &rv, &t, &k, &shape, &momentum, &eps};
    finish("normalise", input, weight, shape, for_known);
    void* for_output[] = {&in, &r, &k, &o, &m, &shape};
    pass(std::string("apply") + behind(residual.has_value(), options.relu), input, weight, shape,
         for_output);
    context->save_for_backward({input, weight, known, mask});
    context->saved_data["relu"] = options.relu;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto &input = saved.at(0), &weight = saved.at(1), &known = saved.at(2), &mask = saved.at(3);
    const bool relu = context->saved_data.at("relu").toBool();
    if (c10::GradMode::is_enabled()) return differentiable(grads.at(0), saved, relu);
    auto shape = shape_of(input);
    const auto grad = in_layout(grads.at(0));
    const auto sums = at::empty({shape.chunks, 2, shape.columns}, known.options());
    const auto line = at::empty({slope_rows, shape.columns}, known.options());
    variable_list out(6);
    out[1] = at::empty_like(weight);
    out[2] = at::empty_like(weight);
    if (mask.defined()) out[3] = at::empty_like(input, input.options(), format);
    const void *in = input.const_data_ptr(), *g = grad.const_data_ptr(), *k = known.const_data_ptr(),
               *m = amp::const_data(mask);
    void *s = amp::data(sums), *l = amp::data(line), *gw = amp::data(out[1]), *gb = amp::data(out[2]),
         *p = amp::data(out[3]);
    void* for_sums[] = {&in, &g, &m, &k, &p, &s, &shape};
    pass(std::string("gradient_sums") + behind(mask.defined(), relu), input, weight, shape, for_sums);
    void* for_line[] = {&s, &k, &gw, &gb, &l, &shape};
    finish("slopes", input, weight, shape, for_line);
    if (!context->needs_input_grad(0)) return out;
    out[0] = at::empty_like(input, input.options(), format);
    // With a residual, `p` is the gradient of the residual. ReLU's mask was already applied to this gradient.
    const void* passed = mask.defined() ? p : g;
    void* gi = amp::data(out[0]);
    void* for_input[] = {&in, &passed, &k, &l, &gi, &shape};
    pass(std::string("input_gradient") + behind(false, relu && !mask.defined()), input, weight, shape,
         for_input);
    return out;
  }

 private:
  static const char* behind(bool adds, bool relu) {
    return adds ? "_add_relu" : relu ? "_relu" : "";
  }

  // Computes the gradients with operations that build an autograd graph, for second derivatives. The second
  // derivative of ReLU is 0.
  static variable_list differentiable(const at::Tensor& grad, const variable_list& saved,
                                      bool relu) {
    const auto &input = saved.at(0), &weight = saved.at(1), &known = saved.at(2), &mask = saved.at(3);
    auto passed = grad;
    if (relu) {
      at::Tensor positive;
      {
        const c10::NoGradGuard no_grad;
        positive = mask.defined() ? unpacked(mask, input) : is_passed(input, known);
      }
      passed = grad * positive;
    }
    // In training mode, libtorch's kernel does not use epsilon, so 0 is passed.
    auto [input_grad, weight_grad, bias_grad] = at::native_batch_norm_backward(
        passed, input, weight, {}, {}, known[mean_row], known[inverse_row], /*train=*/true,
        /*eps=*/0, {true, true, true});
    return {input_grad, weight_grad, bias_grad, mask.defined() ? passed : at::Tensor(), {}, {}};
  }

  // Returns a mask that is true where the input of ReLU is above 0 or NaN, so that ReLU passes the gradient
  // on.
  static at::Tensor is_passed(const at::Tensor& input, const at::Tensor& known) {
    const auto of_channels = [&](Known row) { return known[row].view({1, -1, 1, 1}); };
    const auto y = input.to(at::kFloat) * of_channels(scale_row) + of_channels(shift_row);
    return (y.to(input.scalar_type()) <= 0).logical_not();
  }

  // Unpacks the bits of the mask to the shape of the input. The mask has one bit for each element, in the
  // order of the elements in memory.
  static at::Tensor unpacked(const at::Tensor& mask, const at::Tensor& input) {
    const auto places = at::arange(eight, mask.options());
    const auto bits = at::bitwise_and(at::bitwise_right_shift(mask.unsqueeze(1), places), 1);
    return bits.view({input.size(0), input.size(2), input.size(3), input.size(1)})
        .permute({0, 3, 1, 2})
        .to(at::kBool);
  }
};

bool fits(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
          const at::Tensor* residual) {
  constexpr int64_t largest = std::numeric_limits<int>::max();
  const auto own = weight.scalar_type();
  return amp::own_kernels() && input.is_cuda() && input.dim() == 4 && amp::is_half(input.scalar_type()) &&
         (own == at::kFloat || own == input.scalar_type()) && bias.scalar_type() == own &&
         weight.device() == input.device() && input.size(1) % eight == 0 &&
         input.size(1) == weight.numel() && input.numel() / input.size(1) >= 2 &&
         input.numel() / input.size(1) <= largest && input.size(1) <= largest &&
         weight.is_contiguous() && bias.is_contiguous() && has_layout(input) &&
         (residual == nullptr ||
          (residual->sizes() == input.sizes() && residual->device() == input.device() &&
           residual->scalar_type() == input.scalar_type() && has_layout(*residual)));
}

}  // namespace

extern "C" {

struct AmpImageNormOptions {
  double momentum, eps;
  int relu;
};

// Computes batch norm of images [N, C, H, W] over all dimensions except the channels, in training mode. Then
// adds the residual, if it is given. Applies ReLU if it is requested or a residual is given. The running
// statistics and the count of batches may be null. Writes a new tensor to `out`. Writes nothing if the
// kernels do not support these arguments.
int amp_batch_norm_images(const at::Tensor* input, const at::Tensor* residual,
                          const at::Tensor* weight, const at::Tensor* bias,
                          const at::Tensor* running_mean, const at::Tensor* running_var,
                          const at::Tensor* tracked, const AmpImageNormOptions* options,
                          at::Tensor** out) {
  return amp::guarded([&] {
    if (!fits(*input, *weight, *bias, residual)) return;
    const auto maybe = [](const at::Tensor* tensor) {
      return tensor == nullptr ? at::Tensor() : *tensor;
    };
    const Statistics running{maybe(running_mean), maybe(running_var), maybe(tracked)};
    std::optional<at::Tensor> addend;
    if (residual != nullptr) addend = *residual;
    const Options given{options->momentum, options->eps, options->relu != 0 || residual != nullptr};
    *out = new at::Tensor(
        AmpBatchNormImages::apply(*input, *weight, *bias, addend, running, given));
  });
}

}  // extern "C"

}  // namespace amp::batch_norm_images
