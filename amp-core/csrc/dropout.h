// What the kernels need to know of a dropout.
#pragma once

#include <c10/core/Device.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "philox.h"

namespace amp {

// Laid out as in kernels/common.cuh.
struct Dropout {
  at::PhiloxCudaState random;
  unsigned threshold;
  float scale;

  // With probability p, below 1. Takes random numbers from libtorch's generator of the device, within
  // a graph anew at each replay.
  Dropout(double p, c10::Device device) : Dropout(p) {
    if (threshold != 0) random = draw_random(device);
  }

  // The same elements again, for the backward pass.
  Dropout(double p, const std::vector<int64_t>& drawn) : Dropout(p) {
    random.seed_.val = static_cast<uint64_t>(drawn.at(0));
    random.offset_.val = static_cast<uint64_t>(drawn.at(1));
    random.offset_intragraph_ = static_cast<uint64_t>(drawn.at(2));
    random.captured_ = drawn.at(3) != 0;
  }

  // The scale of dropout with probability p, for a backward pass that finds the dropped elements in the
  // output. It draws no random number.
  static Dropout of_output(double p) {
    Dropout out(p);
    out.threshold = 0;
    return out;
  }

  // None.
  Dropout() : Dropout(0) {}

  std::vector<int64_t> drawn() const {
    return {static_cast<int64_t>(random.seed_.val), static_cast<int64_t>(random.offset_.val),
            static_cast<int64_t>(random.offset_intragraph_), random.captured_};
  }

 private:
  explicit Dropout(double p)
      : threshold(static_cast<unsigned>(std::floor(p * 4294967296.0))),
        scale(static_cast<float>(1 / (1 - p))) {}
};

}  // namespace amp
