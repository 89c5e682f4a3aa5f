// Max pooling of images in channels_last and 16 bits on CUDA devices (kernels/max_pool.cu). For the backward pass the
// layer keeps one byte per output, and does not keep the input.

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <ATen/native/Pool.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>
#include <vector>

#include "guard.h"
#include "images.h"
#include "kernel.h"
#include "kernels/max_pool.cu.h"

namespace amp::max_pool {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

#include "kernels/max_pool.h"
#include "own_kernels.h"

using namespace amp::images;

constexpr int64_t threads = 256;

struct Pool {
  Windows windows;
  bool ceil_mode;
};

Images images_of(at::IntArrayRef sizes, const Pool& pool) {
  Images images{static_cast<int>(sizes[0]), static_cast<int>(sizes[1]), {}, {}};
  for (int side = 0; side < 2; ++side) {
    const auto& windows = pool.windows;
    images.in[side] = static_cast<int>(sizes[2 + side]);
    images.out[side] = at::native::pooling_output_shape<int>(
        images.in[side], windows.size[side], windows.padding[side], windows.stride[side],
        windows.dilation[side], pool.ceil_mode);
  }
  return images;
}

void start(const char* name, const at::Tensor& tensor, void** arguments) {
  static amp::KernelSource source("max_pool.cu", amp_kernels_max_pool);
  const auto blocks = (tensor.numel() / eight + threads - 1) / threads;
  source.launch(name, {amp::kernel_dtype(tensor.scalar_type())}, tensor.device(),
                static_cast<unsigned>(blocks), threads, arguments);
}

std::vector<int64_t> pair(const int (&values)[2]) { return {values[0], values[1]}; }

struct AmpMaxPool : torch::autograd::Function<AmpMaxPool> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const Pool& pool) {
    auto images = images_of(input.sizes(), pool);
    auto windows = pool.windows;
    const std::vector<int64_t> sizes{images.count, images.channels, images.out[0], images.out[1]};
    const auto out = at::empty(sizes, input.options(), format);
    const auto places = at::empty({out.numel()}, input.options().dtype(at::kByte));
    const void* in = input.const_data_ptr();
    void *o = amp::data(out), *p = amp::data(places);
    void* arguments[] = {&in, &o, &p, &images, &windows};
    start("forward", out, arguments);
    context->save_for_backward({places});
    auto& kept = context->saved_data;
    kept["sizes"] = input.sizes();
    kept["size"] = pair(windows.size);
    kept["stride"] = pair(windows.stride);
    kept["padding"] = pair(windows.padding);
    kept["dilation"] = pair(windows.dilation);
    kept["ceil_mode"] = pool.ceil_mode;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto places = context->get_saved_variables().at(0);
    const auto& given = grads.at(0);
    auto& kept = context->saved_data;
    const auto list = [&](const char* name) { return kept.at(name).toIntVector(); };
    const auto sizes = list("sizes");
    Pool pool{{}, kept.at("ceil_mode").toBool()};
    for (int side = 0; side < 2; ++side) {
      pool.windows.size[side] = static_cast<int>(list("size")[side]);
      pool.windows.stride[side] = static_cast<int>(list("stride")[side]);
      pool.windows.padding[side] = static_cast<int>(list("padding")[side]);
      pool.windows.dilation[side] = static_cast<int>(list("dilation")[side]);
    }
    auto images = images_of(sizes, pool);
    const auto out = at::empty(sizes, given.options(), format);
    if (c10::GradMode::is_enabled()) {
      // Computes the gradient with an operation that builds an autograd graph, for second derivatives. The operation
      // reads only the sizes of the input.
      return {at::max_pool2d_with_indices_backward(
                  given, out, list("size"), list("stride"), list("padding"), list("dilation"),
                  pool.ceil_mode, indices(places, images, pool.windows)),
              {}};
    }
    const auto grad = in_layout(given);
    const void *g = grad.const_data_ptr(), *p = places.const_data_ptr();
    void* o = amp::data(out);
    void* arguments[] = {&g, &p, &o, &images, &pool.windows};
    start("backward", out, arguments);
    return {out, {}};
  }

 private:
  // Returns the indices of the largest values as libtorch defines them: positions within one channel of an image.
  static at::Tensor indices(const at::Tensor& places, const Images& images, const Windows& windows) {
    const auto taps = places.view({images.count, images.out[0], images.out[1], images.channels})
                          .permute({0, 3, 1, 2})
                          .to(at::kLong);
    const auto along = [&](int side, const at::Tensor& tap) {
      const auto from = at::arange(images.out[side], taps.options()) * windows.stride[side] -
                        windows.padding[side];
      return (side == 0 ? from.view({-1, 1}) : from.view({1, -1})) +
             tap * windows.dilation[side];
    };
    const auto column = taps.remainder(windows.size[1]);
    const auto row = (taps - column).floor_divide(windows.size[1]);
    return (along(0, row) * images.in[1] + along(1, column)).contiguous(format);
  }
};

// Returns whether the kernels support these arguments. Padding may make the output larger than the input, but less than
// eight times as large. A thread processes eight channels, so the number of threads fits into 32 bits.
bool fits(const at::Tensor& input, const Windows& windows) {
  constexpr int64_t largest = std::numeric_limits<int>::max();
  if (!amp::own_kernels() || !input.is_cuda() || input.dim() != 4 || !amp::is_half(input.scalar_type()) ||
      input.numel() == 0 || input.size(1) % eight != 0 || input.numel() > largest ||
      !has_layout(input) || windows.size[0] * windows.size[1] > 255) {
    return false;
  }
  for (int side = 0; side < 2; ++side) {
    const int size = windows.size[side], dilation = windows.dilation[side];
    if (size < 1 || windows.stride[side] < 1 || dilation < 1 || windows.padding[side] < 0 ||
        2 * windows.padding[side] > size || input.size(2 + side) + 2 * windows.padding[side] < dilation * (size - 1) + 1) {
      return false;
    }
  }
  return true;
}

}  // namespace

extern "C" {

// Computes max pooling: the largest value of each window of [N, C, H, W]. `windows` has sizes, strides, padding and
// dilation, each for rows and columns. Writes a new tensor to `out`. Writes nothing if the kernels do not support these
// arguments.
int amp_max_pool2d(const at::Tensor* input, const int64_t* windows, int ceil_mode, at::Tensor** out) {
  return amp::guarded([&] {
    Pool pool{{}, ceil_mode != 0};
    constexpr int64_t largest = 1 << 20;
    for (int side = 0; side < 2; ++side) {
      for (int option = 0; option < 4; ++option) {
        if (windows[2 * option + side] > largest) return;
      }
      pool.windows.size[side] = static_cast<int>(windows[side]);
      pool.windows.stride[side] = static_cast<int>(windows[2 + side]);
      pool.windows.padding[side] = static_cast<int>(windows[4 + side]);
      pool.windows.dilation[side] = static_cast<int>(windows[6 + side]);
    }
    if (!fits(*input, pool.windows)) return;
    *out = new at::Tensor(AmpMaxPool::apply(*input, pool));
  });
}

}  // extern "C"

}  // namespace amp::max_pool
