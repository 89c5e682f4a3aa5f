// Optimizer steps by this crate's own kernels on CUDA devices. `lists` are pointers to `count`
// handles each, in the kernels' order. A list that the optimizer does not need is null.

#include "step.h"

#include <ATen/ops/empty_like.h>

#include <stdexcept>

#include "guard.h"
#include "kernels/lion.cu.h"
#include "kernels/rates.cu.h"
#include "kernels/rmsprop.cu.h"
#include "kernels/sgd.cu.h"
#include "options.h"

namespace amp {

Step::Step(const Handle* const* lists, size_t count, const AmpOnDevice& known)
    : device_(known.rates->device()) {
  constexpr int gradient = 1;
  if (count > 0) {
    dtype_ = lists[0][0]->scalar_type();
    grad_dtype_ = lists[gradient][0]->scalar_type();
  }
  if (kernel_dtype(dtype_) == nullptr || kernel_dtype(grad_dtype_) == nullptr) {
    throw std::runtime_error("optimizers need a floating dtype");
  }
  for (size_t i = 0; i < count; ++i) {
    const auto& param = *lists[0][i];
    const int at = add(starts_, param);
    auto& data = starts_.back().tensors.data;
    for (size_t list = 0; list < std::size(data); ++list) {
      if (lists[list] == nullptr) continue;
      const at::Tensor* tensor = lists[list][i];
      if (list == gradient && tensor->strides() != param.strides()) {
        copies_.push_back(at::empty_like(param, param.options().dtype(grad_dtype_)));
        copies_.back().copy_(*tensor);
        tensor = &copies_.back();
      }
      data[list][at] = list == gradient ? const_cast<void*>(tensor->const_data_ptr())
                                        : tensor->mutable_data_ptr();
    }
  }
  known_.rates = known.rates->const_data_ptr<double>();
  if (known.found_inf != nullptr) known_.found_inf = known.found_inf->const_data_ptr<float>();
  if (known.factor != nullptr && !starts_.empty()) {
    factor_ = known.factor->to(dtype_ == at::kDouble ? at::kDouble : at::kFloat);
    known_.factor = factor_.const_data_ptr();
  }
}

void Step::run(KernelSource& source, const void* options) {
  for (auto& start : starts_) on_elements(source, types(dtype_), "step", start, {options});
}

Types Step::types(at::ScalarType averages) const {
  return {kernel_dtype(dtype_), kernel_dtype(grad_dtype_), kernel_dtype(averages)};
}

void Step::on_tensors(KernelSource& source, const Types& types, const char* name,
                      Start<StepTensors>& start) {
  void* arguments[] = {&start.tensors, &known_};
  source.launch(name, types, device_, 1, StepTensors::max_tensors, arguments);
}

void Step::on_elements(KernelSource& source, const Types& types, const char* name,
                       Start<StepTensors>& start, std::initializer_list<const void*> last) {
  // If no tensor has elements, no kernel is needed for the elements.
  if (start.blocks == 0) return;
  std::vector<void*> arguments{&start.tensors, &known_};
  for (const void* argument : last) arguments.push_back(const_cast<void*>(argument));
  source.launch(name, types, device_, start.blocks, 256, arguments.data());
}

}  // namespace amp

extern "C" {

// Writes `lr` and `momentum` to `rates`, f64 [2] on the device.
int amp_write_rates(const at::Tensor* rates, double lr, double momentum) {
  return amp::guarded([&] {
    static amp::KernelSource source("rates.cu", amp_kernels_rates);
    double* data = rates->mutable_data_ptr<double>();
    void* arguments[] = {&data, &lr, &momentum};
    source.launch("write_rates", {"float"}, rates->device(), 1, 1, arguments);
  });
}

int amp_sgd_on_device(const amp::Handle* const* lists, size_t count, const AmpSgd* options,
                      const AmpOnDevice* known) {
  return amp::guarded([&] {
    static amp::KernelSource source("sgd.cu", amp_kernels_sgd);
    amp::Step(lists, count, *known).run(source, options);
  });
}

int amp_rmsprop_on_device(const amp::Handle* const* lists, size_t count,
                          const AmpRmsprop* options, const AmpOnDevice* known) {
  return amp::guarded([&] {
    static amp::KernelSource source("rmsprop.cu", amp_kernels_rmsprop);
    amp::Step(lists, count, *known).run(source, options);
  });
}

int amp_lion_on_device(const amp::Handle* const* lists, size_t count, const AmpLion* options,
                       const AmpOnDevice* known) {
  return amp::guarded([&] {
    static amp::KernelSource source("lion.cu", amp_kernels_lion);
    amp::Step(lists, count, *known).run(source, options);
  });
}

}  // extern "C"
