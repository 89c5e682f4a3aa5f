// Adam steps of our own on CUDA devices (kernels/adam.cu).

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <stdexcept>
#include <vector>

#include "adam.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/adam.cu.h"
#include "list.h"

namespace {

#include "kernels/adam.h"

using amp::Handle;

amp::KernelSource& source() {
  static amp::KernelSource source("adam.cu", amp_kernels_adam);
  return source;
}

}  // namespace

extern "C" {

// Makes `rates`, f64 [2] on the device, the learning rate and beta1.
int amp_adam_write_rates(const at::Tensor* rates, double lr, double beta1) {
  return amp::guarded([&] {
    double* data = rates->mutable_data_ptr<double>();
    void* arguments[] = {&data, &lr, &beta1};
    source().launch("write_rates", {"float"}, rates->device(), 1, 1, arguments);
  });
}

// params, grads, exp_avgs, exp_avg_sqs of one dtype and layout, steps (f32 scalars, counted here). The
// options' lr and beta1 are those of `rates`.
// Gradients are multiplied by `factor`, a scalar, if given; where `found_inf`, an f32 scalar, is not 0,
// nothing moves.
int amp_adam_on_device(const Handle* const* lists, size_t count, const AmpAdam* options,
                       Handle rates, Handle factor, Handle found_inf) {
  return amp::guarded([&] {
    const auto device = rates->device();
    const double* rates_data = rates->const_data_ptr<double>();
    const float* found_inf_data =
        found_inf == nullptr ? nullptr : found_inf->const_data_ptr<float>();
    Options given{options->beta2, options->eps, options->weight_decay, options->decoupled};
    if (count == 0) return;
    const auto dtype = lists[0][0]->scalar_type();
    const char* type = amp::kernel_dtype(dtype);
    if (type == nullptr) throw std::runtime_error("Adam is for floating dtypes");
    at::Tensor multiplier;
    if (factor != nullptr) multiplier = factor->to(dtype == at::kDouble ? at::kDouble : at::kFloat);
    const void* factor_data = factor == nullptr ? nullptr : multiplier.const_data_ptr();
    // Gradients of another layout than their parameter's are copied for the time of the step.
    std::vector<at::Tensor> copies;
    for (size_t begin = 0; begin < count; begin += max_tensors) {
      Tensors tensors{};
      int64_t blocks = 0;
      for (size_t i = begin; i < count && i < begin + max_tensors; ++i) {
        const auto& param = *lists[0][i];
        if (param.numel() == 0) continue;
        const at::Tensor* grad = lists[1][i];
        if (grad->strides() != param.strides()) {
          copies.push_back(at::empty_like(param));
          copies.back().copy_(*grad);
          grad = &copies.back();
        }
        const int at = tensors.count++;
        tensors.params[at] = param.data_ptr();
        tensors.grads[at] = grad->const_data_ptr();
        tensors.exp_avgs[at] = lists[2][i]->data_ptr();
        tensors.exp_avg_sqs[at] = lists[3][i]->data_ptr();
        tensors.steps[at] = lists[4][i]->mutable_data_ptr<float>();
        tensors.sizes[at] = param.numel();
        tensors.first_blocks[at] = static_cast<int>(blocks);
        blocks += (param.numel() + elements_per_block - 1) / elements_per_block;
      }
      if (tensors.count == 0) continue;
      void* counted[] = {&tensors, &found_inf_data};
      source().launch("count_steps", {type}, device, 1, max_tensors, counted);
      void* stepped[] = {&tensors, &rates_data, &given, &factor_data, &found_inf_data};
      source().launch("step", {type}, device, static_cast<unsigned>(blocks), 256, stepped);
    }
  });
}

}  // extern "C"
