// Activations after linear layers, and the column sums of their gradients (kernels/linear.cu).
#pragma once

#include <ATen/core/Tensor.h>

#include "dropout.h"

namespace amp::activation {

// The activations. kernels/linear.cu uses the same numbers.
enum Activation : int { none, relu, gelu, gelu_tanh };

// An activation after a layer, and the values that its backward pass needs. The kernel writes the gradient of the
// activation's input to `passed`. For ReLU with dropout, `kept` is the output after both operations: where `kept` is
// not 0, the gradient is multiplied by the dropout's scale, and elsewhere the gradient is 0. For GELU, `kept` is the
// input of GELU, and `dropout` draws the dropout mask of the forward pass again.
struct Activated {
  int activation = none;
  at::Tensor kept, passed;
  amp::Dropout dropout;
};

// Sums up the columns of `matrix` and writes the sums to `out`, which may be undefined. If `activated` has an
// activation, `matrix` is the gradient of the activation's output. In this case the function computes the gradient of
// the activation's input, and sums up the columns of that gradient.
void column_sums(const at::Tensor& matrix, const Activated& activated, const at::Tensor& out);

// Adds `bias`, if it is defined, to `values`, and applies ReLU and dropout. Works in place, so nothing else may refer
// to the memory of `values`.
void activate(at::Tensor& values, const at::Tensor& bias, amp::Dropout dropout);

// Computes GELU of `values`, and applies dropout if its probability is above 0.
at::Tensor gelu_and_dropout(const at::Tensor& values, int activation, amp::Dropout dropout);

}  // namespace amp::activation
