// Activations after linear layers, and the column sums of their gradients (kernels/linear.cu).
#pragma once

#include <ATen/core/Tensor.h>

#include "dropout.h"

namespace amp::activation {

// kernels/linear.cu has the same numbers.
enum Activation : int { none, relu, gelu, gelu_tanh };

// An activation after a layer. The kernel writes the gradient of the activation's input to `passed`. For ReLU and
// dropout, `kept` is their output: where it is not 0, the gradient passes, multiplied by the dropout's scale. For GELU,
// `kept` is its input, and the dropout after GELU drops the same elements as in the forward pass.
struct Activated {
  int activation = none;
  at::Tensor kept, passed;
  amp::Dropout dropout;
};

// Sums up the columns of `matrix` and writes the sums to `out`, which may be undefined. If `activated` has an
// activation, `matrix` is the gradient of its output, and the columns of the gradient of its input are summed up
// instead.
void column_sums(const at::Tensor& matrix, const Activated& activated, const at::Tensor& out);

// Adds `bias`, if it is defined, and applies ReLU and dropout, all in place. Nothing else may refer
// to `values`.
void activate(at::Tensor& values, const at::Tensor& bias, amp::Dropout dropout);

// Computes GELU of `values`, and dropout after it, if there is any.
at::Tensor gelu_and_dropout(const at::Tensor& values, int activation, amp::Dropout dropout);

}  // namespace amp::activation
