// Optimizer steps with libtorch's kernels. The fused functions call ATen's fused kernels. The foreach
// functions run the operations of torch/optim/*.py (_multi_tensor_*) in the same order, so that results
// are bit-identical to PyTorch's. The gradients belong to the caller and are not changed. `lists` are
// pointers to `count` handles each, in the order that the comment of each function gives.

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcdiv.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sign.h>
#include <ATen/ops/_foreach_sqrt.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <optional>
#include <vector>

#include "guard.h"
#include "list.h"
#include "options.h"

namespace amp::optim {
namespace {

using MaybeTensor = std::optional<at::Tensor>;

MaybeTensor maybe(Handle tensor) {
  return tensor == nullptr ? MaybeTensor() : MaybeTensor(*tensor);
}

// Returns the gradients plus `weight_decay` times the parameters (L2 decay). Without decay, returns the
// caller's tensors.
Tensors decayed(const Tensors& grads, const Tensors& params, double weight_decay) {
  if (weight_decay == 0) return grads;
  return at::_foreach_add(grads, params, weight_decay);
}

}  // namespace

extern "C" {

// Runs a fused Adam step. `lists` are params, grads, exp_avgs, exp_avg_sqs and steps (already
// incremented). If `found_inf` is not null and its value is 1, nothing changes, and the steps are
// decremented again.
int amp_fused_adam(const Handle* const* lists, size_t count, const AmpAdam* options,
                   Handle found_inf) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    const auto& o = *options;
    auto steps = list(lists[4], count);
    using Fused = void (*)(at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                           at::TensorList, at::TensorList, double, double, double, double, double,
                           bool, bool, const MaybeTensor&, const MaybeTensor&);
    // at::_fused_adamw_ and at::_fused_adam_ have two overloads each, which differ in the type of the learning rate.
    // The type `Fused` selects the overload for a number.
    Fused adamw = at::_fused_adamw_, adam = at::_fused_adam_;
    auto fused = o.decoupled != 0 ? adamw : adam;
    fused(list(lists[0], count), list(lists[1], count), list(lists[2], count),
          list(lists[3], count), {}, steps, o.lr, o.beta1, o.beta2, o.weight_decay, o.eps, false,
          false, std::nullopt, maybe(found_inf));
    if (found_inf != nullptr) at::_foreach_add_(steps, *found_inf, -1);
  });
}

// Runs an Adam step with foreach operations. `lists` are as for amp_fused_adam, but the steps are on
// the CPU.
int amp_foreach_adam(const Handle* const* lists, size_t count, const AmpAdam* options) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    const auto& o = *options;
    auto params = list(lists[0], count), grads = list(lists[1], count);
    auto exp_avgs = list(lists[2], count), exp_avg_sqs = list(lists[3], count);
    if (o.decoupled != 0) {
      if (o.weight_decay != 0) at::_foreach_mul_(params, 1 - o.lr * o.weight_decay);
    } else {
      grads = decayed(grads, params, o.weight_decay);
    }
    at::_foreach_lerp_(exp_avgs, grads, 1 - o.beta1);
    at::_foreach_mul_(exp_avg_sqs, o.beta2);
    at::_foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - o.beta2);
    std::vector<at::Scalar> step_sizes, corrections;
    for (size_t i = 0; i < count; ++i) {
      const double step = lists[4][i]->item<double>();
      step_sizes.emplace_back((o.lr / (1 - std::pow(o.beta1, step))) * -1);
      corrections.emplace_back(std::pow(1 - std::pow(o.beta2, step), 0.5));
    }
    auto denominators = at::_foreach_sqrt(exp_avg_sqs);
    at::_foreach_div_(denominators, corrections);
    at::_foreach_add_(denominators, o.eps);
    at::_foreach_addcdiv_(params, exp_avgs, denominators, step_sizes);
  });
}

// Runs a fused SGD step. `lists` are params, grads and, with momentum, momentum buffers. `found_inf`
// has the same effect as in amp_fused_adam.
int amp_fused_sgd(const Handle* const* lists, size_t count, const AmpSgd* options,
                  Handle found_inf) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    const auto& o = *options;
    auto buffers = o.momentum != 0 ? list(lists[2], count) : Tensors();
    at::_fused_sgd_(list(lists[0], count), list(lists[1], count), buffers, o.weight_decay,
                    o.momentum, o.lr, o.dampening, o.nesterov != 0, false, o.first_step != 0,
                    std::nullopt, maybe(found_inf));
  });
}

// Runs an SGD step with foreach operations. `lists` are params, grads and, with momentum, momentum
// buffers.
int amp_foreach_sgd(const Handle* const* lists, size_t count, const AmpSgd* options) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    const auto& o = *options;
    auto params = list(lists[0], count);
    auto grads = decayed(list(lists[1], count), params, o.weight_decay);
    if (o.momentum != 0) {
      auto buffers = list(lists[2], count);
      if (o.first_step != 0) {
        at::_foreach_copy_(buffers, grads);
      } else {
        at::_foreach_mul_(buffers, o.momentum);
        at::_foreach_add_(buffers, grads, 1 - o.dampening);
      }
      grads = o.nesterov != 0 ? at::_foreach_add(grads, buffers, o.momentum) : buffers;
    }
    at::_foreach_add_(params, grads, -o.lr);
  });
}

// Runs an RMSprop step with foreach operations. `lists` are params, grads, square_avgs, with momentum
// the momentum buffers, and if centered the grad_avgs.
int amp_foreach_rmsprop(const Handle* const* lists, size_t count, const AmpRmsprop* options) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    const auto& o = *options;
    auto params = list(lists[0], count);
    auto grads = decayed(list(lists[1], count), params, o.weight_decay);
    auto square_avgs = list(lists[2], count);
    at::_foreach_mul_(square_avgs, o.alpha);
    at::_foreach_addcmul_(square_avgs, grads, grads, 1 - o.alpha);
    Tensors denominators;
    if (o.centered != 0) {
      auto grad_avgs = list(lists[4], count);
      at::_foreach_lerp_(grad_avgs, grads, 1 - o.alpha);
      denominators = at::_foreach_addcmul(square_avgs, grad_avgs, grad_avgs, -1);
      at::_foreach_sqrt_(denominators);
    } else {
      denominators = at::_foreach_sqrt(square_avgs);
    }
    at::_foreach_add_(denominators, o.eps);
    if (o.momentum > 0) {
      auto buffers = list(lists[3], count);
      at::_foreach_mul_(buffers, o.momentum);
      at::_foreach_addcdiv_(buffers, grads, denominators);
      at::_foreach_add_(params, buffers, -o.lr);
    } else {
      at::_foreach_addcdiv_(params, grads, denominators, -o.lr);
    }
  });
}

// Runs a Lion step with foreach operations. `lists` are params, grads and exp_avgs. PyTorch has no
// Lion. The order of operations follows Algorithm 2 of Chen et al. 2023: decay, the sign of the
// interpolation, then the running mean.
int amp_foreach_lion(const Handle* const* lists, size_t count, const AmpLion* options) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    const auto& o = *options;
    auto params = list(lists[0], count), grads = list(lists[1], count);
    auto exp_avgs = list(lists[2], count);
    auto updates = at::_foreach_mul(exp_avgs, o.beta1);
    at::_foreach_add_(updates, grads, 1 - o.beta1);
    at::_foreach_sign_(updates);
    if (o.weight_decay != 0) at::_foreach_mul_(params, 1 - o.lr * o.weight_decay);
    at::_foreach_add_(params, updates, -o.lr);
    at::_foreach_mul_(exp_avgs, o.beta2);
    at::_foreach_add_(exp_avgs, grads, 1 - o.beta2);
  });
}

}  // extern "C"

}  // namespace amp::optim
