// Activations behind linear layers, and the sums that go with their gradients (kernels/linear.cu).
#pragma once

#include <ATen/core/Tensor.h>

#include "dropout.h"

namespace amp::activation {

// As in the kernels.
enum Activation : int { none, relu, gelu, gelu_tanh };

// An activation behind a layer, whose gradient before it goes to `passed`. ReLU and dropout let through
// what is not 0 in their output, times the dropout's scale; GELU has the input that it was given, and the dropout
// behind it drops the same elements again.
struct Activated {
  int activation = none;
  at::Tensor kept, passed;
  amp::Dropout dropout;
};

// The sums of `matrix`'s columns, or of what passes `activated`, in `out`, which may be undefined.
void column_sums(const at::Tensor& matrix, const Activated& activated, const at::Tensor& out);

// Adds `bias`, if it is defined, to what is `values`' alone, and applies ReLU and dropout, all in place.
void activate(at::Tensor& values, const at::Tensor& bias, amp::Dropout dropout);

// GELU of `values` with dropout behind it, if there is any.
at::Tensor gelu_and_dropout(const at::Tensor& values, int activation, amp::Dropout dropout);

}  // namespace amp::activation
