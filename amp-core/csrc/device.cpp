// Memory statistics, the switches for TF32 and deterministic algorithms, and device properties.

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Logging.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "allocator.h"
#include "driver.h"
#include "guard.h"

namespace amp::device {
namespace {

// Counts the bytes of CPU tensors. libtorch's CPU allocator reports each allocation to the debug info of
// the thread that allocates. libtorch's worker threads inherit the debug info of the thread that started
// them.
struct HostMemory final : c10::MemoryReportingInfoBase {
  std::atomic<int64_t> live{0};
  std::atomic<int64_t> peak{0};

  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device device) override {
    if (!device.is_cpu()) return;
    const int64_t now = live.fetch_add(size) + size;
    int64_t seen = peak.load();
    while (now > seen && !peak.compare_exchange_weak(seen, now)) {
    }
  }
  bool memoryProfilingEnabled() const override { return true; }
};

struct HostMemoryGuard {
  std::shared_ptr<HostMemory> memory = std::make_shared<HostMemory>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, memory};
};

// By default, libtorch allows TF32 in cuDNN but not in matrix products: an f32 convolution computes with 10 bits of
// mantissa, and an f32 matrix product computes with 23. This program starts with TF32 off for both.
[[maybe_unused]] const bool cudnn_starts_in_f32 = [] {
  at::globalContext().setAllowTF32CuDNN(false);
  return true;
}();

}  // namespace

extern "C" {

// Starts counting the bytes of CPU tensors that this thread allocates.
int amp_host_memory_start(void** out) {
  return amp::guarded([&] {
    // The allocator warns if a block is freed that was allocated before counting started. This is normal
    // here, so the warning is silenced.
    FLAGS_caffe2_log_level = std::max(FLAGS_caffe2_log_level, static_cast<int>(c10::GLOG_ERROR));
    *out = new HostMemoryGuard();
  });
}

void amp_host_memory_read(const void* guard, int64_t* live, int64_t* peak) {
  const auto& memory = *static_cast<const HostMemoryGuard*>(guard)->memory;
  *live = memory.live.load();
  *peak = memory.peak.load();
}

// Stops counting the bytes of CPU tensors. Must be called on the thread that called amp_host_memory_start.
int amp_host_memory_stop(void* guard) {
  return amp::guarded([&] { delete static_cast<HostMemoryGuard*>(guard); });
}

// Writes three numbers of bytes: the bytes that the existing tensors have requested, the peak of this
// number, and the peak of reserved bytes. The allocator's statistic allocated_bytes is not used, because it
// counts whole blocks: a block may be up to 1 MiB larger than requested, depending on what was cached before.
int amp_cuda_memory(int index, int64_t* requested, int64_t* peak, int64_t* reserved_peak) {
  return amp::guarded([&] {
    using c10::CachingAllocator::StatType;
    const auto all = static_cast<size_t>(StatType::AGGREGATE);
    const auto stats = cuda_allocator()->getDeviceStats(index);
    *requested = stats.requested_bytes[all].current;
    *peak = stats.requested_bytes[all].peak;
    *reserved_peak = stats.reserved_bytes[all].peak;
  });
}

// Makes sure that amp_cuda_memory counts no freed tensors afterwards. If a freed tensor was used on a second stream,
// the allocator counts it until this stream has finished its work and another tensor is allocated. Therefore this
// function waits for the device and then allocates a tensor.
int amp_cuda_memory_settle(int index) {
  return amp::guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    const c10::DeviceGuard guard(device);
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
    const auto block = cuda_allocator()->allocate(1);
  });
}

int amp_cuda_memory_reset_peak(int index) {
  return amp::guarded([&] { cuda_allocator()->resetPeakStats(index); });
}

int amp_cuda_empty_cache(void) {
  return amp::guarded([&] { cuda_allocator()->emptyCache(); });
}

int amp_set_numerics(int tf32, int deterministic) {
  return amp::guarded([&] {
    auto& context = at::globalContext();
    context.setAllowTF32CuBLAS(tf32 != 0);
    context.setAllowTF32CuDNN(tf32 != 0);
    context.setDeterministicCuDNN(deterministic != 0);
    context.setDeterministicAlgorithms(deterministic != 0, /*warn_only=*/true);
    // By default, libtorch would fill every new tensor if deterministic algorithms are on, so that reads of
    // uninitialised memory are deterministic. The following call switches the filling off.
    context.setDeterministicFillUninitializedMemory(false);
  });
}

int amp_get_numerics(int* tf32, int* deterministic) {
  return amp::guarded([&] {
    const auto& context = at::globalContext();
    *tf32 = context.allowTF32CuBLAS() || context.allowTF32CuDNN();
    *deterministic = at::globalContext().deterministicAlgorithms();
  });
}

// Writes the name of the CPU kernels that ATen chose, such as `AVX2`. The name is truncated to fit and
// ends with a NUL.
int amp_cpu_capability(char* out, size_t capacity) {
  return amp::guarded([&] {
    const std::string name = at::get_cpu_capability();
    const size_t length = std::min(name.size(), capacity - 1);
    std::memcpy(out, name.data(), length);
    out[length] = 0;
  });
}

struct AmpCudaDevice {
  char name[256];
  int major, minor, multiprocessors, driver;
  size_t memory;
};

int amp_cuda_device(int index, AmpCudaDevice* out) {
  return amp::guarded([&] {
    static const amp::Library driver = amp::driver();
    // The values of CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, _COMPUTE_CAPABILITY_MAJOR and
    // _COMPUTE_CAPABILITY_MINOR in cuda.h.
    constexpr int multiprocessor_count = 16, capability_major = 75, capability_minor = 76;
    auto init = driver.find<int(unsigned)>("cuInit");
    auto version = driver.find<int(int*)>("cuDriverGetVersion");
    auto get = driver.find<int(int*, int)>("cuDeviceGet");
    auto name = driver.find<int(char*, int, int)>("cuDeviceGetName");
    auto memory = driver.find<int(size_t*, int)>("cuDeviceTotalMem_v2");
    auto attribute = driver.find<int(int*, int, int)>("cuDeviceGetAttribute");
    int device = 0;
    if (!init || !version || !get || !name || !memory || !attribute || init(0) != 0 ||
        version(&out->driver) != 0 || get(&device, index) != 0 ||
        name(out->name, sizeof(out->name), device) != 0 || memory(&out->memory, device) != 0 ||
        attribute(&out->major, capability_major, device) != 0 ||
        attribute(&out->minor, capability_minor, device) != 0 ||
        attribute(&out->multiprocessors, multiprocessor_count, device) != 0) {
      throw std::runtime_error("the CUDA driver does not describe device " +
                               std::to_string(index));
    }
  });
}

}  // extern "C"

}  // namespace amp::device
