// Copies many tensors with one kernel on CUDA devices (kernels/copy.cu).

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <vector>

#include "guard.h"
#include "kernel.h"
#include "kernels/copy.cu.h"
#include "list.h"
#include "launch_lists.h"

namespace amp::copy {
namespace {

#include "kernels/copy.h"

// Whether the bytes can be copied unchanged: dtypes and layouts are equal.
bool is_plain(const at::Tensor& to, const at::Tensor& from) {
  return to.is_cuda() && to.device() == from.device() && to.scalar_type() == from.scalar_type() &&
         to.sizes() == from.sizes() && to.strides() == from.strides() &&
         to.is_non_overlapping_and_dense();
}

}  // namespace

extern "C" {

// Copies each tensor of `from` to the tensor at the same index of `to`. Tensors on one CUDA device are
// copied together.
int amp_copy_each(const Handle* to, const Handle* from, size_t count) {
  return amp::guarded([&] {
    const c10::NoGradGuard no_grad;
    static amp::KernelSource source("copy.cu", amp_kernels_copy);
    std::vector<amp::Start<Bytes>> starts;
    for (size_t i = 0; i < count; ++i) {
      if (!is_plain(*to[i], *from[i]) || to[i]->device() != to[0]->device()) {
        to[i]->copy_(*from[i]);
        continue;
      }
      if (to[i]->numel() == 0) continue;
      const int at = amp::add(starts, at::kByte, static_cast<int64_t>(to[i]->nbytes()));
      auto& data = starts.back().tensors.data;
      data[0][at] = const_cast<void*>(from[i]->const_data_ptr());
      data[1][at] = to[i]->mutable_data_ptr();
      to[i]->unsafeGetTensorImpl()->bump_version();
    }
    for (auto& start : starts) {
      void* arguments[] = {&start.tensors};
      source.launch("copy", {"float"}, to[0]->device(), start.blocks, 256, arguments);
    }
  });
}

}  // extern "C"

}  // namespace amp::copy
