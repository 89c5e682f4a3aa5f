// Branches of a CUDA graph: work that runs at the same time.
#pragma once

#include <c10/core/Device.h>

#include <functional>

namespace amp {

// Whether what this thread starts on the device goes into a graph.
bool is_captured(c10::Device device);

// The device's multiprocessors, each of which works on a part of a kernel.
int multiprocessors(c10::Device device);

// Captures both so that they run at the same time; what comes afterwards waits for both. Tensors that
// `side` makes and keeps must be used here alone.
void run_beside(c10::Device device, const std::function<void()>& side,
                const std::function<void()>& main);

}  // namespace amp
