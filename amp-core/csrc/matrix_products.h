// Controls the recording of this thread's matrix products.
#pragma once

namespace amp::products {

// A guard. While the guard exists, matrix products of this thread are not recorded.
class Pause {
 public:
  Pause();
  ~Pause();
  Pause(const Pause&) = delete;
  Pause& operator=(const Pause&) = delete;
};

}  // namespace amp::products
