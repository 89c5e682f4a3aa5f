// Kernels of our own for CUDA devices, compiled where they run by the compiler that comes with
// libtorch (NVRTC), so that building needs no CUDA.
#pragma once

#include <c10/core/Device.h>

#include <map>
#include <mutex>

namespace amp {

// A source file of `kernels/`.
class KernelSource {
 public:
  // `text` must live as long as this does.
  KernelSource(const char* file, const char* text) : file_(file), text_(text) {}

  // Starts kernel `name` on the device's current stream. Its first start on a device compiles the
  // file, which cannot be done while a graph is captured.
  void launch(const char* name, c10::Device device, unsigned blocks, unsigned threads,
              void** arguments);

 private:
  void* module(c10::Device device);

  const char* file_;
  const char* text_;
  std::mutex mutex_;
  std::map<int, void*> modules_;
};

}  // namespace amp
