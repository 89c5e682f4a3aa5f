// Registers a recorder of this thread's operators with libtorch's profiler.
#pragma once

#include <ATen/record_function.h>

#include <optional>

namespace amp {

// A function that runs at the beginning of each operator of this thread, and one that runs at its end.
class OperatorCallbacks {
 public:
  void start(const at::RecordFunctionCallback& callback) {
    stop();
    handle_ = at::addThreadLocalCallback(callback);
  }
  void stop() {
    if (handle_) at::removeCallback(*handle_);
    handle_.reset();
  }

 private:
  std::optional<at::CallbackHandle> handle_;
};

}  // namespace amp
