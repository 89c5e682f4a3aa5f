#include "branch.h"

#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <mutex>
#include <stdexcept>

#include "driver.h"

namespace {

// One for each device, since cuBLAS keeps a workspace for each that it has worked on.
c10::Stream side_stream(c10::Device device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, c10::Stream> streams;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = streams.find(device.index());
  if (found != streams.end()) return found->second;
  const c10::impl::VirtualGuardImpl impl(device.type());
  return streams.emplace(device.index(), impl.getStreamFromGlobalPool(device)).first->second;
}

}  // namespace

namespace amp {

bool is_captured(c10::Device device) {
  static const auto ask = driver().find<int(void*, int*)>("cuStreamIsCapturing");
  const c10::impl::VirtualGuardImpl impl(device.type());
  int status = 0;
  if (ask == nullptr || ask(impl.getStream(device).native_handle(), &status) != 0) return false;
  // CU_STREAM_CAPTURE_STATUS_ACTIVE
  return status == 1;
}

int multiprocessors(c10::Device device) {
  static const auto get = driver().find<int(int*, int)>("cuDeviceGet");
  static const auto attribute = driver().find<int(int*, int, int)>("cuDeviceGetAttribute");
  // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
  constexpr int count_attribute = 16;
  int handle = 0, count = 0;
  if (get == nullptr || attribute == nullptr || get(&handle, device.index()) != 0 ||
      attribute(&count, count_attribute, handle) != 0) {
    throw std::runtime_error("the CUDA driver does not say how many multiprocessors there are");
  }
  return count;
}

void run_beside(c10::Device device, const std::function<void()>& side,
                const std::function<void()>& main) {
  const c10::impl::VirtualGuardImpl impl(device.type());
  const auto here = impl.getStream(device), there = side_stream(device);
  c10::Event forked(device.type()), joined(device.type());
  forked.record(here);
  forked.block(there);
  {
    const c10::StreamGuard guard(there);
    side();
  }
  joined.record(there);
  main();
  joined.block(here);
}

}  // namespace amp
