// The cross entropy of rows of logits, on any device.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp::classification {

// The options of a cross entropy: the share of the target that is spread over all classes, the ignored class,
// and the factor of log²Σexp(logits).
struct Options {
  double smoothing;
  long long left_out;
  double z;
};

// The dtype in which the loss of these logits is computed: f32 or f64.
at::ScalarType wide(const at::Tensor& logits);

// Writes the loss of each row of the logits [rows, classes] to `losses` [rows], which are 0 where the target is
// the ignored class. With a `factor` other than 0 the logits become their rows' gradients times `factor`.
void row_losses(const at::Tensor& logits, const at::Tensor& targets, const Options& options, double factor,
                const at::Tensor& losses);

struct Mean {
  // A scalar of the losses' dtype, and the number of targets that count, a scalar of f64.
  at::Tensor value, counted;
};

// The mean of the losses of rows whose target is not the ignored class; `logits` is the dtype of their logits.
Mean mean_of_rows(const at::Tensor& losses, const at::Tensor& targets, const Options& options,
                  at::ScalarType logits);

// The gradient of the mean loss with respect to the logits, with an autograd graph for second derivatives.
at::Tensor differentiable_gradient(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& grad,
                                   const Options& options);

}  // namespace amp::classification
