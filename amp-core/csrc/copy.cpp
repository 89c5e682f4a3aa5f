// Copies many tensors with one kernel on CUDA devices (kernels/copy.cu).

#include "copy.h"

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <stdexcept>
#include <vector>

#include "guard.h"
#include "kernel.h"
#include "kernels/copy.cu.h"
#include "list.h"
#include "launch_lists.h"

namespace amp::copy {
namespace {

#include "kernels/copy.h"

// Returns whether the tensor can be copied byte by byte: both tensors have the same dtype and layout.
bool is_plain(const at::Tensor& to, const at::Tensor& from) {
  return to.is_cuda() && to.device() == from.device() && to.scalar_type() == from.scalar_type() &&
         to.sizes() == from.sizes() && to.strides() == from.strides() &&
         to.is_non_overlapping_and_dense();
}

amp::KernelSource& source() {
  static amp::KernelSource source("copy.cu", amp_kernels_copy);
  return source;
}

void add(std::vector<amp::Start<Bytes>>& starts, void* to, const void* from, size_t bytes) {
  const int at = amp::add(starts, at::kByte, static_cast<int64_t>(bytes));
  auto& data = starts.back().tensors.data;
  data[0][at] = const_cast<void*>(from);
  data[1][at] = to;
}

void launch(std::vector<amp::Start<Bytes>>& starts, c10::Device device) {
  for (auto& start : starts) {
    void* arguments[] = {&start.tensors};
    source().launch("copy", {"float"}, device, start.blocks, 256, arguments);
  }
}

}  // namespace

void to_pinned(const at::Tensor& to, const at::Tensor& from) {
  if (!from.is_contiguous() || !to.is_contiguous() || !to.is_cpu() || from.nbytes() != to.nbytes()) {
    throw std::runtime_error("a copy to pinned memory needs contiguous tensors of one size");
  }
  // A device reads and writes pinned memory by its host address.
  std::vector<amp::Start<Bytes>> starts;
  add(starts, to.mutable_data_ptr(), from.const_data_ptr(), from.nbytes());
  launch(starts, from.device());
}

extern "C" {

// Copies each tensor of `from` to the tensor at the same index of `to`. One kernel copies all tensors
// that are on the same CUDA device.
int amp_copy_each(const Handle* to, const Handle* from, size_t count) {
  return amp::guarded([&] {
    const c10::NoGradGuard no_grad;
    std::vector<amp::Start<Bytes>> starts;
    for (size_t i = 0; i < count; ++i) {
      if (!is_plain(*to[i], *from[i]) || to[i]->device() != to[0]->device()) {
        to[i]->copy_(*from[i]);
        continue;
      }
      if (to[i]->numel() == 0) continue;
      add(starts, to[i]->mutable_data_ptr(), from[i]->const_data_ptr(), to[i]->nbytes());
      to[i]->unsafeGetTensorImpl()->bump_version();
    }
    if (count > 0) launch(starts, to[0]->device());
  });
}

}  // extern "C"

}  // namespace amp::copy
