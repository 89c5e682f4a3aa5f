// Registers a recorder of this thread's operators with libtorch's profiler.
#pragma once

#include <ATen/record_function.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string_view>

namespace amp {

// Returns the operator of this name from a list of constants, or an empty name if the list does not contain it.
template <size_t N>
std::string_view among(const std::string_view (&names)[N], std::string_view name) {
  const auto* found = std::find(std::begin(names), std::end(names), name);
  return found == std::end(names) ? std::string_view() : *found;
}

// A function that runs at the beginning of each operator of this thread, and one that runs at its end. Each recorder has
// one object of this class per thread.
//
// libtorch also calls both functions on the threads that run a backward pass on CUDA for this thread. There, `are_on` of
// the recorder's object is false, and the function must do nothing: the recorder's other variables of that thread have
// not been set either.
class OperatorCallbacks {
 public:
  bool are_on() const { return handle_.has_value(); }
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
