// nn.Conv2d. In 16 bits the layer can compute in channels_last, the layout that tensor cores need. In any other layout
// cuDNN would convert each input, output and gradient to channels_last and back. On CUDA, a first layer with few
// channels is computed as a convolution with more channels (kernels/fold.cu). A convolution of adjacent patches is
// computed as a matrix product.

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <limits>
#include <memory>
#include <optional>

#include "cast.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/fold.cu.h"
#include "own_kernels.h"
#include "own_memory.h"

namespace amp::conv {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto dtype_key = "dtype";

// Converts the weight to the dtype and layout of the computation. The backward pass converts the gradient to the layout
// and dtype of the weight in one copy, where autograd would need two copies.
struct AmpFilter : torch::autograd::Function<AmpFilter> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight,
                            at::ScalarType dtype) {
    context->saved_data[dtype_key] = static_cast<int64_t>(weight.scalar_type());
    // Without this call, autograd would pass zeros to `backward` if the output has no gradient.
    context->set_materialize_grads(false);
    // The cast filter is kept for the whole autocast region and must not get an autograd history. Therefore the result
    // is a new handle.
    return amp::cast_filter(weight, dtype).variable_data();
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    if (!grads.at(0).defined()) return {at::Tensor(), at::Tensor()};
    const auto dtype = static_cast<at::ScalarType>(context->saved_data.at(dtype_key).toInt());
    return {grads.at(0).to(dtype, /*non_blocking=*/false, /*copy=*/false,
                           at::MemoryFormat::Contiguous),
            at::Tensor()};
  }
};

// Returns the 16-bit dtype of the computation, or nothing if the computation is not in 16 bits.
std::optional<at::ScalarType> half_of(const at::Tensor& input, const at::Tensor& weight) {
  const auto given = input.scalar_type(), own = weight.scalar_type();
  const auto device = input.device().type();
  if (!at::autocast::is_autocast_enabled(device)) {
    return given == own && amp::is_half(own) ? std::optional(own) : std::nullopt;
  }
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto narrows = [](at::ScalarType dtype) { return dtype == at::kFloat || amp::is_half(dtype); };
  return amp::is_half(dtype) && narrows(given) && narrows(own) ? std::optional(dtype) : std::nullopt;
}

#include "kernels/fold.h"

constexpr auto format = at::MemoryFormat::ChannelsLast;
constexpr int most_channels = folded_channels / 4;

// Computes a convolution of few channels with stride 2, such as the first layer of a network, as a convolution with
// stride 1 of blocks of 2×2 pixels. This is faster, because three channels do not fill a tensor core: cuDNN's
// convolution of the original images takes ten times as long as reading and writing the memory.
struct Fold {
  // `side` is the side length of the filter in pixels, and `taps` is the number of blocks that the filter covers along
  // a side. `before` is the number of blocks of padding above the image and to its left. `ahead` is the number of zeros
  // that precede the filter's first pixel in the first block that the filter covers. `out` are the height and width of
  // the output.
  int64_t side, before, ahead, taps, out[2];

  Fold(const at::Tensor& input, const at::Tensor& weight, int64_t padding) {
    side = weight.size(2);
    before = (padding + 1) / 2;
    ahead = 2 * before - padding;
    taps = (ahead + side + 1) / 2;
    for (int i = 0; i < 2; ++i) {
      const auto reach = input.size(2 + i) + 2 * padding - side;
      out[i] = reach < 0 ? 0 : reach / 2 + 1;
    }
  }

  // Returns the filter for an image in blocks, of the shape [filters, 16·taps, taps, 1]. A block of 2×2 pixels with 4
  // channels has 16 channels, and the blocks along a row of the filter become channels too.
  at::Tensor filter(const at::Tensor& weight, at::ScalarType dtype) const {
    const auto behind = 2 * taps - side - ahead, count = weight.size(0);
    return at::constant_pad_nd(weight, {ahead, behind, ahead, behind, 0,
                                        most_channels - weight.size(1)})
        .view({count, most_channels, taps, 2, taps, 2})
        .permute({0, 4, 3, 5, 1, 2})
        .reshape({count, taps * folded_channels, taps, 1})
        .to(dtype, /*non_blocking=*/false, /*copy=*/false, format);
  }

  // Converts the gradient of the filter for blocks to the gradient of the weight.
  at::Tensor weight_gradient(const at::Tensor& filter, const at::Tensor& weight) const {
    const auto count = weight.size(0);
    return filter.reshape({count, taps, 2, 2, most_channels, taps})
        .permute({0, 4, 5, 2, 1, 3})
        .reshape({count, most_channels, 2 * taps, 2 * taps})
        .narrow(1, 0, weight.size(1))
        .narrow(2, ahead, side)
        .narrow(3, ahead, side)
        .to(weight.scalar_type(), /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
  }

  // Returns the image in blocks, of the shape [N, 16·taps, out[0] + taps - 1, out[1]].
  at::Tensor image(const at::Tensor& input, at::ScalarType dtype) const {
    static amp::KernelSource source("fold.cu", amp_kernels_fold);
    const auto rows = out[0] + taps - 1;
    const auto folded = at::empty({input.size(0), taps * folded_channels, rows, out[1]},
                                  input.options().dtype(dtype), format);
    Folding folding{static_cast<int>(input.size(0)), static_cast<int>(input.size(1)),
                    {static_cast<int>(input.size(2)), static_cast<int>(input.size(3))},
                    {static_cast<int>(rows), static_cast<int>(out[1])},
                    static_cast<int>(before), static_cast<int>(taps), {}};
    for (int i = 0; i < 4; ++i) folding.strides[i] = input.stride(i);
    const void* from = input.const_data_ptr();
    void* to = folded.mutable_data_ptr();
    void* arguments[] = {&from, &to, &folding};
    constexpr int64_t threads = 256;
    const auto blocks = (folded.numel() / folded_channels + threads - 1) / threads;
    source.launch("fold", {amp::kernel_dtype(dtype), amp::kernel_dtype(input.scalar_type())},
                  input.device(), static_cast<unsigned>(blocks), threads, arguments);
    return folded;
  }
};

// Returns whether `Fold` can compute the convolution. The convolution must have few channels and stride 2, and its
// input must not need a gradient.
bool folds(const at::Tensor& input, const at::Tensor& weight, int64_t stride, int64_t padding) {
  const auto channels = input.size(1), side = weight.size(2);
  if (!input.is_cuda() || stride != 2 || channels > most_channels || channels != weight.size(1) ||
      side != weight.size(3) || side < 3 || side > 15 || padding < 0 || padding >= side ||
      (c10::GradMode::is_enabled() && input.requires_grad())) {
    return false;
  }
  const Fold fold(input, weight, padding);
  constexpr int64_t largest = std::numeric_limits<int>::max();
  const auto blocks = input.size(0) * fold.taps * (fold.out[0] + fold.taps) * fold.out[1];
  return input.numel() > 0 && fold.out[0] > 0 && fold.out[1] > 0 && blocks <= largest;
}

// Saves the original image for the backward pass, because the image in blocks takes several times as much memory.
struct AmpFolded : torch::autograd::Function<AmpFolded> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, int64_t padding, at::ScalarType dtype) {
    const Fold fold(input, weight, padding);
    context->save_for_backward({input, weight});
    context->saved_data["padding"] = padding;
    context->saved_data[dtype_key] = static_cast<int64_t>(dtype);
    return at::conv2d(fold.image(input, dtype), fold.filter(weight, dtype));
  }

  // Uses only operations that have derivatives, so that second derivatives can be computed.
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto &input = saved.at(0), &weight = saved.at(1);
    auto& kept = context->saved_data;
    const Fold fold(input, weight, kept.at("padding").toInt());
    const auto dtype = static_cast<at::ScalarType>(kept.at(dtype_key).toInt());
    const auto filter = std::get<1>(at::convolution_backward(
        grads.at(0), fold.image(input, dtype), fold.filter(weight, dtype), at::OptionalIntArrayRef(),
        {1, 1}, {0, 0}, {1, 1}, /*transposed=*/false, {0, 0}, /*groups=*/1, {false, true, false}));
    return {at::Tensor(), fold.weight_gradient(filter, weight), at::Tensor(), at::Tensor()};
  }
};

// Returns whether the filters read adjacent patches of at least 4×4 pixels, as in the first layer of a vision
// transformer. For smaller patches, copying the pixels into patches takes longer than cuDNN's convolution.
bool are_patches(const at::Tensor& input, const at::Tensor& weight, int64_t stride, int64_t padding) {
  constexpr int64_t smallest = 4;
  const auto side = weight.size(2);
  return input.is_cuda() && side >= smallest && side == weight.size(3) && stride == side && padding == 0 &&
         input.size(1) == weight.size(1) && input.size(2) >= side && input.size(3) >= side &&
         input.size(0) > 0;
}

// Computes the convolution as a matrix product of patches and filters, with operations that have derivatives.
at::Tensor of_patches(const at::Tensor& input, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias, at::ScalarType dtype) {
  const auto side = weight.size(2), count = weight.size(0), images = input.size(0);
  const auto rows = input.size(2) / side, columns = input.size(3) / side;
  const auto patches = input.narrow(2, 0, rows * side)
                           .narrow(3, 0, columns * side)
                           .reshape({images, input.size(1), rows, side, columns, side})
                           .permute({0, 2, 4, 1, 3, 5})
                           .to(dtype, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous)
                           .reshape({images * rows * columns, -1});
  std::optional<at::Tensor> addend;
  if (bias) addend = bias->to(dtype);
  return at::linear(patches, weight.reshape({count, -1}).to(dtype), addend)
      .view({images, rows, columns, count})
      .permute({0, 3, 1, 2});
}

// A convolution of an input that is used a second time, as at the start of a residual block. The gradients of both uses
// are added up. If the input's gradient is a matrix product, as for 1×1 filters with stride 1, the product is
// accumulated into the gradient of the second use.
struct AmpConvAndInput : torch::autograd::Function<AmpConvAndInput> {
  static variable_list forward(AutogradContext* context, const at::Tensor& input,
                               const at::Tensor& filter, int64_t stride, int64_t padding) {
    context->save_for_backward({input, filter});
    // Without this call, autograd would pass zeros to `backward` for an output that has no gradient.
    context->set_materialize_grads(false);
    context->saved_data["stride"] = stride;
    context->saved_data["padding"] = padding;
    const std::array<int64_t, 2> strides{stride, stride}, paddings{padding, padding};
    return {at::conv2d(input, filter, {}, at::IntArrayRef(strides), at::IntArrayRef(paddings)), input};
  }

  // If an autograd graph of the backward pass is built, uses only operations that have derivatives.
  static variable_list backward(AutogradContext* context, const variable_list& given) {
    const auto saved = context->get_saved_variables();
    const auto &input = saved.at(0), &filter = saved.at(1);
    const auto &grad = given.at(0), &other = given.at(1);
    if (!grad.defined()) return {other, at::Tensor(), at::Tensor(), at::Tensor()};
    const auto stride = context->saved_data.at("stride").toInt();
    const auto padding = context->saved_data.at("padding").toInt();
    const bool for_input = context->needs_input_grad(0), adds = for_input && other.defined();
    const bool is_product = !c10::GradMode::is_enabled() && filter.size(2) == 1 && filter.size(3) == 1 &&
                            stride == 1 && padding == 0;
    auto [of_input, of_filter, of_bias] = at::convolution_backward(
        grad, input, filter, at::OptionalIntArrayRef(), {stride, stride}, {padding, padding}, {1, 1},
        /*transposed=*/false, {0, 0}, /*groups=*/1,
        {for_input && !(adds && is_product), context->needs_input_grad(1), false});
    if (adds && is_product) {
      of_input = is_alone(other) ? other : other.clone(format);
      rows_of(of_input).addmm_(rows_of(grad.contiguous(format)), filter.reshape({filter.size(0), -1}));
    } else if (adds) {
      of_input = of_input + other;
    }
    return {of_input, of_filter, at::Tensor(), at::Tensor()};
  }

 private:
  // Returns whether the tensor's memory may be overwritten: nothing else refers to the tensor, and it is in
  // channels_last.
  static bool is_alone(const at::Tensor& tensor) {
    return tensor.use_count() == 1 && amp::has_own_memory(tensor) && tensor.is_contiguous(format);
  }

  // Returns the pixels of images in channels_last as rows, without a copy: [N·H·W, C].
  static at::Tensor rows_of(const at::Tensor& images) {
    return images.permute({0, 2, 3, 1}).view({-1, images.size(1)});
  }
};

}  // namespace

extern "C" {

// Computes a convolution of images [N, C, H, W] with square filters and without a bias, in channels_last, in the 16-bit
// dtype of the input. Writes the output, a new tensor, to `out`. Writes a new handle of the input, for the second use
// of the input, to `again`. Writes nothing for convolutions that are not supported.
int amp_conv2d_and_input(const at::Tensor* input, const at::Tensor* weight, int64_t stride,
                         int64_t padding, at::Tensor** out, at::Tensor** again) {
  return amp::guarded([&] {
    if (!amp::own_kernels() || !input->is_cuda() || input->dim() != 4 || input->numel() == 0) return;
    const auto dtype = half_of(*input, *weight);
    if (!dtype || *dtype != input->scalar_type() || !input->is_contiguous(format)) return;
    const auto made =
        AmpConvAndInput::apply(*input, AmpFilter::apply(*weight, *dtype), stride, padding);
    auto own = std::make_unique<at::Tensor>(made.at(0));
    *again = new at::Tensor(made.at(1));
    *out = own.release();
  });
}

// Computes a convolution of images [N, C, H, W] with square filters. `bias` may be null. If `channels_last` is not 0, a
// 16-bit computation and its output use channels_last. Writes a new tensor to `out`.
int amp_conv2d(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias,
               int64_t stride, int64_t padding, int channels_last, at::Tensor** out) {
  return amp::guarded([&] {
    std::optional<at::Tensor> addend;
    if (bias != nullptr) addend = *bias;
    const std::array<int64_t, 2> strides{stride, stride}, paddings{padding, padding};
    const auto run = [&](const at::Tensor& input, const at::Tensor& weight) {
      *out = new at::Tensor(at::conv2d(input, weight, addend, at::IntArrayRef(strides),
                                       at::IntArrayRef(paddings)));
    };
    const auto dtype =
        channels_last != 0 && amp::own_kernels() && input->dim() == 4 ? half_of(*input, *weight) : std::nullopt;
    if (!dtype) return run(*input, *weight);
    if (folds(*input, *weight, stride, padding)) {
      auto folded = AmpFolded::apply(*input, *weight, padding, *dtype);
      if (addend) folded = folded + addend->to(*dtype).view({1, -1, 1, 1});
      *out = new at::Tensor(folded);
      return;
    }
    if (are_patches(*input, *weight, stride, padding)) {
      *out = new at::Tensor(of_patches(*input, *weight, addend, *dtype));
      return;
    }
    // One call of `to` changes dtype and layout in a single copy. `contiguous(format)` would return an input with one
    // channel unchanged, because the strides of such an input fit both layouts.
    const auto given = input->to(*dtype, /*non_blocking=*/false, /*copy=*/false, format);
    run(given, AmpFilter::apply(*weight, *dtype));
  });
}

}  // extern "C"

}  // namespace amp::conv
