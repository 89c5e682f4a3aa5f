// nn.Conv2d. Where it computes in 16 bits it can do so in channels_last, the layout that tensor cores
// take: cuDNN would bring another to it and back, for each input, output and gradient.

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/conv2d.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>

#include "cast.h"
#include "guard.h"
#include "kernel.h"

namespace amp::conv {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto dtype_key = "dtype";

// The weight as it is computed with. Its gradient comes back as the weight lies, cast in the same
// copy: otherwise autograd would make another.
struct AmpFilter : torch::autograd::Function<AmpFilter> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight,
                            at::ScalarType dtype) {
    context->saved_data[dtype_key] = static_cast<int64_t>(weight.scalar_type());
    // Another handle, since the region's has no history.
    return amp::cast_filter(weight, dtype).variable_data();
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto dtype = static_cast<at::ScalarType>(context->saved_data.at(dtype_key).toInt());
    return {grads.at(0).to(dtype, /*non_blocking=*/false, /*copy=*/false,
                           at::MemoryFormat::Contiguous),
            at::Tensor()};
  }
};

// The 16-bit dtype that the convolution computes in, if it does.
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

}  // namespace

extern "C" {

// A square convolution of [N, C, H, W]; `bias` may be null. `channels_last` wants that layout where it
// computes in 16 bits: the output has it too. The result is new.
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
    constexpr auto format = at::MemoryFormat::ChannelsLast;
    // One copy, also where dtype and layout change. `contiguous` would leave a single channel as it
    // lies, which says nothing of the layout.
    const auto given = input->to(*dtype, /*non_blocking=*/false, /*copy=*/false, format);
    run(given, AmpFilter::apply(*weight, *dtype));
  });
}

}  // extern "C"

}  // namespace amp::conv
