// The cross entropy of rows of logits, on any device.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp::classification {

// The options of a cross entropy: the fraction of the target that is divided among all classes, the
// ignored class, and the factor of the penalty (log Σ exp(logits))².
struct Options {
  double smoothing;
  long long left_out;
  double z;
};

// Returns the dtype in which the loss of these logits is computed: f64 for f64 logits, and
// otherwise f32.
at::ScalarType wide(const at::Tensor& logits);

// Writes the loss of each row of the logits [rows, classes] to `losses` [rows]. The loss of an
// ignored target is 0. If `factor` is not 0, the logits are replaced by the gradients of their
// rows' losses, times `factor`.
void row_losses(const at::Tensor& logits, const at::Tensor& targets, const Options& options, double factor,
                const at::Tensor& losses);

struct Mean {
  // `value` is the mean, a scalar in the dtype of the losses. `counted` is the number of targets
  // that are not ignored, an f64 scalar.
  at::Tensor value, counted;
};

// Computes the mean of the losses of those rows whose target is not ignored. `logits` is the dtype
// of the logits from which the losses were computed.
Mean mean_of_rows(const at::Tensor& losses, const at::Tensor& targets, const Options& options,
                  at::ScalarType logits);

// Computes the gradient of the mean loss with respect to the logits, with an autograd graph for
// second derivatives.
at::Tensor differentiable_gradient(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& grad,
                                   const Options& options);

}  // namespace amp::classification
