// Writes zeros to the outputs of attention for queries whose keys are all masked (kernels/masked_rows.cu).

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <limits>

#include "guard.h"
#include "kernel.h"
#include "kernels/masked_rows.cu.h"
#include "own_kernels.h"
#include "own_memory.h"

namespace amp::masked_rows {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int dimensions = 3;

// The sizes of [N, heads, L], and for each of these dimensions the stride of the values and the stride of
// the mask. The stride `masked` is 0 if the mask is broadcast along the dimension. `width` and `step` are the
// size and the stride of the values' last dimension. `Rows` in kernels/masked_rows.cu has the same layout.
struct Rows {
  unsigned size[dimensions];
  int64_t stride[dimensions], masked[dimensions], width, step;
};

// Writes zeros to the rows of [N, heads, L, width] where `masked`, [N or 1, heads or 1, L or 1, 1], is
// true.
void clear(const at::Tensor& values, const at::Tensor& masked) {
  static amp::KernelSource source("masked_rows.cu", amp_kernels_masked_rows);
  Rows rows{};
  unsigned count = 1;
  for (int dimension = 0; dimension < dimensions; ++dimension) {
    rows.size[dimension] = static_cast<unsigned>(values.size(dimension));
    rows.stride[dimension] = values.stride(dimension);
    rows.masked[dimension] = masked.size(dimension) == 1 ? 0 : masked.stride(dimension);
    count *= rows.size[dimension];
  }
  rows.width = values.size(dimensions);
  rows.step = values.stride(dimensions);
  if (count == 0) return;
  void* at = values.mutable_data_ptr();
  const void* of = masked.const_data_ptr();
  void* arguments[] = {&at, &of, &count, &rows};
  constexpr unsigned threads = 256;
  source.launch("clear", {amp::kernel_dtype(values.scalar_type())}, values.device(),
                (count + threads - 1) / threads, threads, arguments);
}

// Changes the output of attention in place although the backward pass of attention reads the output. This
// is correct: that backward pass uses only the product of each query's output with its gradient. For a
// masked query the gradient is zero, so the product is zero too.
struct AmpMaskedRows : torch::autograd::Function<AmpMaskedRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& attended,
                            const at::Tensor& masked) {
    context->save_for_backward({masked});
    clear(attended, masked);
    return attended;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto masked = context->get_saved_variables().at(0);
    const auto& grad = grads.at(0);
    if (c10::GradMode::is_enabled()) return {grad.masked_fill(masked, 0), at::Tensor()};
    const bool is_alone =
        grad.use_count() == 1 && amp::has_own_memory(grad) && grad.is_non_overlapping_and_dense();
    const auto out = is_alone ? grad : grad.clone();
    clear(out, masked);
    return {out, at::Tensor()};
  }
};

}  // namespace

extern "C" {

// Writes zeros to the output of attention, [N, heads, L, width], where the boolean `masked`, [N or 1, heads
// or 1, L or 1, 1], is true. Works in place. Writes a new handle to `out`. Writes nothing if the kernel
// does not support these arguments.
int amp_masked_rows(const at::Tensor* attended, const at::Tensor* masked, at::Tensor** out) {
  return amp::guarded([&] {
    if (!amp::own_kernels() || !attended->is_cuda() || masked->device() != attended->device() || attended->dim() != 4 ||
        masked->dim() != 4 || masked->scalar_type() != at::kBool || masked->size(3) != 1 ||
        amp::kernel_dtype(attended->scalar_type()) == nullptr ||
        attended->size(0) * attended->size(1) * attended->size(2) > std::numeric_limits<int>::max() ||
        !attended->is_non_overlapping_and_dense()) {
      return;
    }
    *out = new at::Tensor(AmpMaskedRows::apply(*attended, *masked));
  });
}

}  // extern "C"

}  // namespace amp::masked_rows
