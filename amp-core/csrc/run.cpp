// What belongs to a run as a whole: its random generators and the times of its steps.

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "guard.h"
#include "random.h"

namespace {

c10::Device device(int cuda) {
  return cuda < 0 ? c10::Device(c10::DeviceType::CPU)
                  : c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(cuda));
}

}  // namespace

extern "C" {

// `cuda` is a device's index, or -1 for the CPU. The new tensor is the caller's.
int amp_random_get(int cuda, at::Tensor** out) {
  return amp::guarded([&] { *out = new at::Tensor(amp::Random(device(cuda)).state); });
}

int amp_random_set(int cuda, const at::Tensor* state) {
  return amp::guarded([&] { amp::Random(device(cuda)).write(*state); });
}

// Notes on the device's current stream that everything before has been done by now. The event
// goes to amp_event_drop.
int amp_event_record(int cuda, void** out) {
  return amp::guarded([&] {
    // The flag that keeps times; PyTorch's own events do not.
    auto event = std::make_unique<c10::Event>(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT);
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    event->record(guard.getStream(device(cuda)));
    *out = event.release();
  });
}

// Milliseconds between two events of one device; waits for the later one.
int amp_event_elapsed(const void* from, const void* to, double* milliseconds) {
  return amp::guarded([&] {
    const auto& end = *static_cast<const c10::Event*>(to);
    end.synchronize();
    *milliseconds = static_cast<const c10::Event*>(from)->elapsedTime(end);
  });
}

int amp_event_synchronize(const void* event) {
  return amp::guarded([&] { static_cast<const c10::Event*>(event)->synchronize(); });
}

void amp_event_drop(void* event) { delete static_cast<c10::Event*>(event); }

}  // extern "C"
