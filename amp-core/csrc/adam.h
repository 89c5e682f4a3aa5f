// The options of an Adam step as they cross from Rust.
#pragma once

extern "C" struct AmpAdam {
  double lr, beta1, beta2, eps, weight_decay;
  int decoupled;
};
