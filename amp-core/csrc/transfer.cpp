// Functions that copy tensors to a CUDA device on a separate stream, and functions for the thread
// state that a loader thread inherits from the thread for which it loads batches. The code uses
// c10's virtual guards, because they need no CUDA headers.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "allocator.h"
#include "guard.h"

namespace amp::transfer {
namespace {

c10::Device cuda(int index) {
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
}

using DebugInfo = std::shared_ptr<c10::ThreadLocalDebugInfo>;

}  // namespace

extern "C" {

// Returns the number of bytes of a CUDA device that the driver reports as free.
int amp_cuda_free_memory(int index, size_t* bytes) {
  return amp::guarded([&] {
    *bytes = cuda_allocator()->getMemoryInfo(cuda(index).index()).first;
  });
}

// Copies a tensor to pinned memory, which a CUDA device can read and write while the host
// continues.
int amp_pinned(const at::Tensor* host, at::Tensor** out) {
  return amp::guarded([&] { *out = new at::Tensor(host->pin_memory()); });
}

// Returns the id of a side stream of the device. The default stream does not wait for this stream.
int amp_side_stream(int index, int64_t* id) {
  return amp::guarded([&] {
    const c10::impl::VirtualGuardImpl device(c10::DeviceType::CUDA);
    *id = device.getStreamFromGlobalPool(cuda(index)).id();
  });
}

// Starts to copy `count` host tensors to the device on a side stream. The tensors in `out` must not
// be used before amp_copy_arrive is called. The caller passes `event` to amp_copy_arrive or to
// amp_copy_drop.
int amp_copy_start(int index, int64_t stream_id, const at::Tensor* const* host, size_t count,
                   at::Tensor** out, void** event) {
  return amp::guarded([&] {
    const c10::NoGradGuard no_grad;
    const c10::Stream stream(c10::Stream::UNSAFE, cuda(index), stream_id);
    const c10::StreamGuard guard(stream);
    // The pinned copies may be freed immediately, because their allocator waits for the transfer
    // before it reuses the memory.
    auto copy = [&](const at::Tensor& tensor) {
      auto to = tensor.options().device(stream.device());
      return std::make_unique<at::Tensor>(
          tensor.pin_memory().to(to, /*non_blocking=*/true, /*copy=*/true));
    };
    std::vector<std::unique_ptr<at::Tensor>> copies;
    for (size_t at = 0; at < count; ++at) copies.push_back(copy(*host[at]));
    auto done = std::make_unique<c10::Event>(c10::DeviceType::CUDA);
    done->record(stream);
    for (size_t at = 0; at < count; ++at) out[at] = copies[at].release();
    *event = done.release();
  });
}

// Makes this thread's current stream wait for the copy. The host does not wait.
int amp_copy_arrive(void* event, const at::Tensor* const* tensors, size_t count) {
  return amp::guarded([&] {
    const c10::impl::VirtualGuardImpl device(c10::DeviceType::CUDA);
    if (count == 0) return;
    const auto stream = device.getStream(tensors[0]->device());
    static_cast<c10::Event*>(event)->block(stream);
    // The memory of the tensors belongs to the side stream. Without this call, a tensor might be
    // freed while a computation on it is still queued, and the next copy would overwrite its
    // memory.
    for (size_t at = 0; at < count; ++at) tensors[at]->record_stream(stream);
  });
}

// Copies `count` tensors to host memory, on a side stream and after the event `ready`. Waits for
// the copies. Tensors that are already on the host are not copied. The copies go through a pinned
// buffer of 32 MiB.
int amp_copies_to_host(int index, int64_t stream_id, const void* ready, const at::Tensor* const* tensors,
                       size_t count, at::Tensor** out) {
  return amp::guarded([&] {
    const c10::NoGradGuard no_grad;
    const c10::Stream stream(c10::Stream::UNSAFE, cuda(index), stream_id);
    const c10::StreamGuard guard(stream);
    static_cast<const c10::Event*>(ready)->block(stream);
    constexpr int64_t buffer_bytes = int64_t{32} << 20;
    const auto buffer = at::empty({buffer_bytes}, at::kByte).pin_memory();
    const auto copy = [&](const at::Tensor& tensor) {
      if (tensor.is_cpu()) return std::make_unique<at::Tensor>(tensor);
      const auto host = at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
      const auto bytes = tensor.contiguous().view({-1}).view(at::kByte);
      const auto total = static_cast<int64_t>(bytes.nbytes());
      for (int64_t start = 0; start < total; start += buffer_bytes) {
        const auto part = std::min(buffer_bytes, total - start);
        buffer.narrow(0, 0, part).copy_(bytes.narrow(0, start, part), /*non_blocking=*/true);
        c10::Event copied(c10::DeviceType::CUDA);
        copied.record(stream);
        copied.synchronize();
        std::memcpy(static_cast<char*>(host.data_ptr()) + start, buffer.const_data_ptr(), part);
      }
      return std::make_unique<at::Tensor>(host);
    };
    std::vector<std::unique_ptr<at::Tensor>> copies;
    for (size_t at = 0; at < count; ++at) copies.push_back(copy(*tensors[at]));
    for (size_t at = 0; at < count; ++at) out[at] = copies[at].release();
  });
}

void amp_copy_drop(void* event) { delete static_cast<c10::Event*>(event); }

// Returns the debug info of this thread, to which libtorch's allocator reports memory, for example
// to count the bytes of CPU tensors (amp_host_memory_start). The caller frees the debug info with
// amp_debug_info_drop.
int amp_debug_info_current(void** out) {
  return amp::guarded([&] { *out = new DebugInfo(c10::ThreadLocalDebugInfo::current()); });
}

// Makes `info` the debug info of this thread until the thread ends.
int amp_debug_info_enter(const void* info) {
  return amp::guarded([&] {
    c10::ThreadLocalDebugInfo::_forceCurrentDebugInfo(*static_cast<const DebugInfo*>(info));
  });
}

void amp_debug_info_drop(void* info) { delete static_cast<DebugInfo*>(info); }

}  // extern "C"

}  // namespace amp::transfer
