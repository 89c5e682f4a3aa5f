// The parameters of a dropout for the kernels.
#pragma once

#include <c10/core/Device.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "philox.h"

namespace amp {

// The parameters of a dropout. `Dropout` in kernels/common.cuh has the same layout.
struct Dropout {
  at::PhiloxCudaState random;
  unsigned threshold;
  float scale;

  // Makes a dropout with probability p, below 1. The dropout uses random numbers of libtorch's generator of the device.
  // In a CUDA graph, each replay uses new numbers.
  Dropout(double p, c10::Device device) : Dropout(p) {
    if (threshold != 0) random = draw_random(device);
  }

  // Makes a dropout for the backward pass. It drops the same elements as the dropout of the forward pass. `drawn` is
  // the result of the forward dropout's function `drawn`.
  Dropout(double p, const std::vector<int64_t>& drawn) : Dropout(p) {
    random.seed_.val = static_cast<uint64_t>(drawn.at(0));
    random.offset_.val = static_cast<uint64_t>(drawn.at(1));
    random.offset_intragraph_ = static_cast<uint64_t>(drawn.at(2));
    random.captured_ = drawn.at(3) != 0;
  }

  // Makes a dropout that drops no element, and multiplies every element by the scale for probability p. This dropout
  // uses no random numbers. It is for backward passes in which the layer's output shows which elements were dropped.
  static Dropout of_output(double p) {
    Dropout out(p);
    out.threshold = 0;
    return out;
  }

  // Makes a dropout that leaves every element unchanged.
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
