// The state of a device's random generator.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <mutex>

namespace amp {

// A random generator, and the state that the generator had when this object was made. If the state is
// set again, dropout drops the same elements again.
struct Random {
  at::Generator generator;
  at::Tensor state;

  static at::Tensor read(at::Generator& generator) {
    std::lock_guard<std::mutex> lock(generator.mutex());
    return generator.get_state();
  }
  void write(const at::Tensor& to) {
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(to);
  }
  explicit Random(c10::Device device)
      : generator(at::globalContext().defaultGenerator(device)), state(read(generator)) {}
};

}  // namespace amp
