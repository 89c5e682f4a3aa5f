// Dropout on CUDA devices (kernels/dropout.cu).

#include "dropout.h"

#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <stdexcept>

#include "guard.h"
#include "kernel.h"
#include "kernels/dropout.cu.h"

namespace amp::dropout {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Applies dropout to `given`. The random numbers and the index of an element in memory decide whether the element is
// dropped. A second call with the same random numbers therefore drops the same elements.
at::Tensor run(const at::Tensor& given, at::MemoryFormat format, int64_t together,
               amp::Dropout dropout) {
  static amp::KernelSource source("dropout.cu", amp_kernels_dropout);
  const auto in = given.contiguous(format);
  const auto out = at::empty_like(in);
  long long count = in.numel(), run = together;
  if (count == 0) return out;
  constexpr long long per_block = 256 * 4;
  const void* from = in.const_data_ptr();
  void* to = out.mutable_data_ptr();
  void* arguments[] = {&from, &to, &count, &run, &dropout};
  source.launch("apply", {amp::kernel_dtype(in.scalar_type())}, in.device(),
                static_cast<unsigned>((count + per_block - 1) / per_block), 256, arguments);
  return out;
}

struct AmpDropout : torch::autograd::Function<AmpDropout> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, double p,
                            int64_t together) {
    const amp::Dropout dropout(p, input.device());
    const auto format = input.suggest_memory_format();
    context->saved_data["p"] = p;
    context->saved_data["drawn"] = dropout.drawn();
    context->saved_data["format"] = static_cast<int64_t>(format);
    context->saved_data["together"] = together;
    return run(input, format, together, dropout);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    amp::refuse_second_derivative("dropout");
    const auto& saved = context->saved_data;
    const amp::Dropout dropout(saved.at("p").toDouble(), saved.at("drawn").toIntVector());
    const auto format = static_cast<at::MemoryFormat>(saved.at("format").toInt());
    const auto together = saved.at("together").toInt();
    return {run(grads.at(0), format, together, dropout), {}, {}};
  }
};

}  // namespace

extern "C" {

// Sets elements of a CUDA tensor to zero with probability p, above 0 and below 1. Each group of `together`
// neighbouring elements is set to zero or kept as a whole. Writes a new tensor to `out`.
int amp_dropout(const at::Tensor* input, double p, int64_t together, at::Tensor** out) {
  return amp::guarded([&] {
    if (amp::kernel_dtype(input->scalar_type()) == nullptr) {
      throw std::runtime_error("dropout needs a floating dtype");
    }
    *out = new at::Tensor(AmpDropout::apply(*input, p, together));
  });
}

}  // extern "C"

}  // namespace amp::dropout
