// nn.Conv2d. In 16 bits it can compute in channels_last, the layout that tensor cores need:
// otherwise cuDNN would convert each input, output and gradient to this layout and back. On CUDA a
// first layer with few channels is computed as a layer with more channels (kernels/fold.cu).

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <limits>
#include <optional>

#include "cast.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/fold.cu.h"

namespace amp::conv {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto dtype_key = "dtype";

// The weight in the dtype and layout of the computation. One copy converts its gradient to the
// weight's dtype and layout; otherwise autograd would make a second copy.
struct AmpFilter : torch::autograd::Function<AmpFilter> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight,
                            at::ScalarType dtype) {
    context->saved_data[dtype_key] = static_cast<int64_t>(weight.scalar_type());
    // Another handle, because the cached one has no history.
    return amp::cast_filter(weight, dtype).variable_data();
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto dtype = static_cast<at::ScalarType>(context->saved_data.at(dtype_key).toInt());
    return {grads.at(0).to(dtype, /*non_blocking=*/false, /*copy=*/false,
                           at::MemoryFormat::Contiguous),
            at::Tensor()};
  }
};

// The 16-bit dtype of the convolution, if it has one.
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

// Computes a convolution with stride 2 and few channels, such as a network's first layer, as one
// with stride 1 on blocks of 2×2 pixels. Three channels do not fill a tensor core: cuDNN takes ten
// times as long as the memory traffic requires.
struct Fold {
  // For each dimension: blocks of padding before the image, zeros before the filter in its first
  // block, the number of blocks that the filter covers, and the size of the output.
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

  // The filter for blocks: [out, 16·taps, taps, 1]; the taps along a row are channels.
  at::Tensor filter(const at::Tensor& weight, at::ScalarType dtype) const {
    const auto behind = 2 * taps - side - ahead, count = weight.size(0);
    return at::constant_pad_nd(weight, {ahead, behind, ahead, behind, 0,
                                        most_channels - weight.size(1)})
        .view({count, most_channels, taps, 2, taps, 2})
        .permute({0, 4, 3, 5, 1, 2})
        .reshape({count, taps * folded_channels, taps, 1})
        .to(dtype, /*non_blocking=*/false, /*copy=*/false, format);
  }

  // The weight's gradient from the filter's gradient.
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

  // The image in blocks: [N, 16·taps, out + taps - 1, out].
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

// Whether it has few channels and an input without a gradient.
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

// Keeps the original image, because the image in blocks needs several times the memory.
struct AmpFolded : torch::autograd::Function<AmpFolded> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, int64_t padding, at::ScalarType dtype) {
    const Fold fold(input, weight, padding);
    context->save_for_backward({input, weight});
    context->saved_data["padding"] = padding;
    context->saved_data[dtype_key] = static_cast<int64_t>(dtype);
    return at::conv2d(fold.image(input, dtype), fold.filter(weight, dtype));
  }

  // Built from operations that have derivatives themselves.
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

}  // namespace

extern "C" {

// A square convolution of [N, C, H, W]; `bias` may be null. With `channels_last` it uses this
// layout if it computes in 16 bits, and so does its output. The result is new.
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
        channels_last != 0 && input->dim() == 4 ? half_of(*input, *weight) : std::nullopt;
    if (!dtype) return run(*input, *weight);
    if (folds(*input, *weight, stride, padding)) {
      auto folded = AmpFolded::apply(*input, *weight, padding, *dtype);
      if (addend) folded = folded + addend->to(*dtype).view({1, -1, 1, 1});
      *out = new at::Tensor(folded);
      return;
    }
    // One copy, even if dtype and layout change. `contiguous` would keep the strides of a single
    // channel, which are ambiguous.
    const auto given = input->to(*dtype, /*non_blocking=*/false, /*copy=*/false, format);
    run(given, AmpFilter::apply(*weight, *dtype));
  });
}

}  // extern "C"

}  // namespace amp::conv
