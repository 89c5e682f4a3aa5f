// The norm of gradients and their clipping factor on CUDA devices (kernels/gradient.cu).

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <memory>
#include <stdexcept>
#include <vector>

#include "guard.h"
#include "kernel.h"
#include "kernels/gradient.cu.h"
#include "list.h"
#include "launch_lists.h"

namespace amp::gradient {
namespace {

#include "kernels/gradient.h"

amp::KernelSource& source() {
  static amp::KernelSource source("gradient.cu", amp_kernels_gradient);
  return source;
}

}  // namespace

extern "C" {

// Computes the 2-norm of all `grads` together and the factor min(1, max_norm / (norm / scale +
// 1e-6)) / scale. There is at least one gradient, and all are on one device. Norm and factor are
// new scalars, in f64 if `wide` is not 0 and otherwise in f32. `scale` is the loss scale (f32), or
// null for 1. If the norm is not finite and `found_inf` (f32) is not null, `found_inf` becomes NaN.
int amp_clip_factor(const Handle* grads, size_t count, Handle scale, double max_norm,
                    Handle found_inf, int wide, at::Tensor** norm, at::Tensor** factor) {
  return amp::guarded([&] {
    const auto device = grads[0]->device();
    std::vector<at::Tensor> dense;
    std::vector<amp::Start<Tensors>> starts;
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor* grad = grads[i];
      if (grad->numel() == 0) continue;
      if (!grad->is_non_overlapping_and_dense()) {
        dense.push_back(grad->contiguous());
        grad = &dense.back();
      }
      const int at = amp::add(starts, *grad);
      starts.back().tensors.data[0][at] = const_cast<void*>(grad->const_data_ptr());
    }
    int blocks = 0;
    for (const auto& start : starts) blocks += static_cast<int>(start.blocks);
    const auto sums = at::empty({blocks}, at::TensorOptions(device).dtype(at::kDouble));
    double* data = sums.mutable_data_ptr<double>();
    for (auto& start : starts) {
      const char* type = amp::kernel_dtype(start.dtype);
      if (type == nullptr) throw std::runtime_error("gradients need a floating dtype");
      void* arguments[] = {&start.tensors, &data};
      source().launch("square_sums", {type}, device, start.blocks, 256, arguments);
      data += start.blocks;
    }
    const auto out = at::TensorOptions(device).dtype(wide != 0 ? at::kDouble : at::kFloat);
    auto total = std::make_unique<at::Tensor>(at::empty({}, out));
    auto clipped = std::make_unique<at::Tensor>(at::empty({}, out));
    const double* from = sums.const_data_ptr<double>();
    const float* by = scale == nullptr ? nullptr : scale->const_data_ptr<float>();
    float* found = found_inf == nullptr ? nullptr : found_inf->mutable_data_ptr<float>();
    void *norm_data = total->mutable_data_ptr(), *factor_data = clipped->mutable_data_ptr();
    void* arguments[] = {&from, &blocks, &by, &max_norm, &found, &norm_data, &factor_data};
    source().launch("clip_factor", {wide != 0 ? "double" : "float"}, device, 1, 1024, arguments);
    *norm = total.release();
    *factor = clipped.release();
  });
}

}  // extern "C"

}  // namespace amp::gradient
