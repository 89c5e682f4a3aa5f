// Adam steps of our own on CUDA devices (kernels/adam.cu).

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <initializer_list>
#include <stdexcept>
#include <vector>

#include "adam.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/adam.cu.h"
#include "list.h"
#include "philox.h"

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
    source().launch("write_rates", {"float", "float"}, rates->device(), 1, 1, arguments);
  });
}

// params, grads, exp_avgs, exp_avg_sqs, steps (f32 scalars, counted here) and, where the averages have
// 8 bits, exp_avg_scales and exp_avg_sq_scales. Parameters and gradients are of one dtype; the averages
// of that or bfloat16, in their parameter's layout, or codes (u8), contiguous and in whole blocks of 256,
// whose `code` is the values (f32 [256]) and bounds (f32 [255]) of exp_avg and of exp_avg_sq. The
// options' lr and beta1 are those of `rates`.
// Gradients are multiplied by `factor`, a scalar, if given; where `found_inf`, an f32 scalar, is not 0,
// nothing moves.
int amp_adam_on_device(const Handle* const* lists, size_t count, const AmpAdam* options,
                       Handle rates, const Handle* code, Handle factor, Handle found_inf) {
  return amp::guarded([&] {
    const auto device = rates->device();
    const double* rates_data = rates->const_data_ptr<double>();
    const float* found_inf_data =
        found_inf == nullptr ? nullptr : found_inf->const_data_ptr<float>();
    Options given{options->beta2, options->eps, options->weight_decay, options->decoupled};
    if (count == 0) return;
    const auto dtype = lists[0][0]->scalar_type(), kept = lists[2][0]->scalar_type();
    const bool coded = kept == at::kByte;
    const char* type = amp::kernel_dtype(dtype);
    if (type == nullptr) throw std::runtime_error("Adam is for floating dtypes");
    const amp::Types types{type, coded ? type : amp::kernel_dtype(kept)};
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
        if (coded) {
          tensors.exp_avg_scales[at] = lists[5][i]->mutable_data_ptr<float>();
          tensors.exp_avg_sq_scales[at] = lists[6][i]->mutable_data_ptr<float>();
        }
        tensors.sizes[at] = param.numel();
        tensors.first_blocks[at] = static_cast<int>(blocks);
        blocks += (param.numel() + elements_per_block - 1) / elements_per_block;
      }
      if (tensors.count == 0) continue;
      void* counted[] = {&tensors, &found_inf_data};
      source().launch("count_steps", types, device, 1, max_tensors, counted);
      const auto step = [&](const char* kernel, std::initializer_list<void*> last) {
        std::vector<void*> all{&tensors, &rates_data, &given, &factor_data, &found_inf_data};
        all.insert(all.end(), last);
        source().launch(kernel, types, device, static_cast<unsigned>(blocks), 256, all.data());
      };
      if (coded) {
        const auto table = [&](int at) { return code[at]->const_data_ptr<float>(); };
        Code exp_avg_code{table(0), table(1)}, exp_avg_sq_code{table(2), table(3)};
        step("step_8bit", {&exp_avg_code, &exp_avg_sq_code});
      } else {
        // Averages narrower than their parameters are rounded at random.
        at::PhiloxCudaState random;
        if (kept != dtype) random = amp::draw_random(device);
        step("step", {&random});
      }
    }
  });
}

}  // extern "C"
