// Cross entropy and hits of few logits on CUDA devices (kernels/classification.cu); of others, and
// elsewhere, libtorch's.

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>
#include <memory>

#include "guard.h"
#include "kernel.h"
#include "kernels/classification.cu.h"

namespace amp::classification {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto cuda = c10::DeviceType::CUDA;
// What one block takes in a few microseconds.
constexpr int64_t most_logits = 1 << 16;
constexpr int64_t ignored = -100;

amp::KernelSource& source() {
  static amp::KernelSource source("classification.cu", amp_kernels_classification);
  return source;
}

// The dtype that is computed in.
at::ScalarType wide(const at::Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

unsigned threads_for(int rows) { return rows <= 128 ? 128 : rows <= 256 ? 256 : 1024; }

// Whether the kernels take logits [rows, classes] and classes [rows].
bool fits(const at::Tensor& logits, const at::Tensor& targets) {
  return logits.is_cuda() && logits.dim() == 2 && targets.dim() == 1 &&
         logits.device() == targets.device() && targets.scalar_type() == at::kLong &&
         logits.size(0) == targets.size(0) && logits.numel() > 0 &&
         logits.numel() <= most_logits && amp::kernel_dtype(logits.scalar_type()) != nullptr;
}

// libtorch gives a 16-bit loss where autocast does not ask for f32.
bool has_wide_loss(const at::Tensor& logits) {
  return logits.scalar_type() == wide(logits) || at::autocast::is_autocast_enabled(cuda);
}

struct AmpCrossEntropy : torch::autograd::Function<AmpCrossEntropy> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& given,
                            const at::Tensor& given_targets) {
    const auto logits = given.contiguous(), targets = given_targets.contiguous();
    int rows = static_cast<int>(logits.size(0)), classes = static_cast<int>(logits.size(1));
    const auto options = logits.options().dtype(wide(logits));
    const auto mean = at::empty({}, options), kept = at::empty({rows, 2}, options);
    const auto counted = at::empty({}, options.dtype(at::kDouble));
    const void *from = logits.const_data_ptr(), *classes_of = targets.const_data_ptr();
    void *to = mean.mutable_data_ptr(), *count = counted.mutable_data_ptr();
    void* rows_kept = kept.mutable_data_ptr();
    void* arguments[] = {&from, &classes_of, &rows, &classes, &to, &count, &rows_kept};
    source().launch("cross_entropy", {amp::kernel_dtype(logits.scalar_type())}, logits.device(), 1,
                    threads_for(rows), arguments);
    context->save_for_backward({given, targets, kept, counted});
    return mean;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto &given = saved.at(0), &targets = saved.at(1), &kept = saved.at(2);
    const auto& counted = saved.at(3);
    if (c10::GradMode::is_enabled()) return {differentiable(given, targets, grads.at(0)), {}};
    const auto logits = given.contiguous(), grad = grads.at(0).to(kept.scalar_type());
    const auto out = at::empty_like(logits);
    int rows = static_cast<int>(logits.size(0)), classes = static_cast<int>(logits.size(1));
    const void *from = logits.const_data_ptr(), *classes_of = targets.const_data_ptr();
    const void *count = counted.const_data_ptr(), *rows_kept = kept.const_data_ptr();
    const void* incoming = grad.const_data_ptr();
    void* to = out.mutable_data_ptr();
    void* arguments[] = {&from,  &classes_of, &rows,     &classes,
                         &count, &rows_kept,  &incoming, &to};
    constexpr unsigned threads = 256;
    const auto blocks = (static_cast<unsigned>(rows * classes) + threads - 1) / threads;
    source().launch("cross_entropy_backward", {amp::kernel_dtype(logits.scalar_type())},
                    logits.device(), blocks, threads, arguments);
    return {out, {}};
  }

  // With a graph of its own, for second derivatives.
  static at::Tensor differentiable(const at::Tensor& logits, const at::Tensor& targets,
                                   const at::Tensor& grad) {
    const auto share = at::softmax(logits, 1, wide(logits));
    const auto counts = targets.ne(ignored).to(share.scalar_type()).unsqueeze(1);
    const auto places = targets.clamp_min(0).unsqueeze(1);
    const auto own = at::zeros_like(share).scatter_(1, places, 1);
    const auto out = (share - own) * counts * (grad / counts.sum());
    return out.to(logits.scalar_type());
  }
};

// How many targets count.
at::Tensor counted_classes(const at::Tensor& targets, int64_t classes) {
  const auto options = targets.options().dtype(at::kDouble);
  if (!targets.is_cpu()) {
    const auto counts = targets.ne(ignored);
    const auto wrong = targets.lt(0).logical_or(targets.ge(classes)).logical_and(counts).any();
    return counts.sum(at::kDouble).masked_fill(wrong, std::numeric_limits<double>::quiet_NaN());
  }
  const auto dense = targets.contiguous();
  const auto* of = dense.const_data_ptr<int64_t>();
  int64_t count = 0;
  for (int64_t at = 0; at < dense.numel(); ++at) {
    if (of[at] == ignored) continue;
    TORCH_CHECK(of[at] >= 0 && of[at] < classes, "a target is class ", of[at], ", but there are ",
                classes, " classes, counted from 0");
    ++count;
  }
  return at::full({}, static_cast<double>(count), options);
}

}  // namespace

extern "C" {

// The mean cross entropy of logits against classes, those of -100 left out. The result is new.
int amp_cross_entropy(const at::Tensor* logits, const at::Tensor* targets, at::Tensor** out) {
  return amp::guarded([&] {
    const bool ours = fits(*logits, *targets) && has_wide_loss(*logits) &&
                      logits->requires_grad() && c10::GradMode::is_enabled();
    *out = new at::Tensor(ours ? AmpCrossEntropy::apply(*logits, *targets)
                               : at::cross_entropy_loss(*logits, *targets));
  });
}

// How many targets are not of the ignored class, as an f64 scalar. On the CPU a class that is not below
// `classes` is an error; elsewhere the count is NaN.
int amp_counted_classes(const at::Tensor* targets, int64_t classes, at::Tensor** out) {
  return amp::guarded([&] { *out = new at::Tensor(counted_classes(*targets, classes)); });
}

// How many rows have their largest logit at their class, and how many count: f64 [2], which is new.
int amp_hits(const at::Tensor* logits, const at::Tensor* targets, at::Tensor** out) {
  return amp::guarded([&] {
    if (!fits(*logits, *targets)) {
      const auto hits = at::argmax(*logits, 1).eq(*targets).sum(at::kDouble);
      *out = new at::Tensor(at::stack({hits, counted_classes(*targets, logits->size(1))}));
      return;
    }
    const auto dense = logits->contiguous(), classes_of = targets->contiguous();
    auto count = std::make_unique<at::Tensor>(
        at::empty({2}, dense.options().dtype(at::kDouble).requires_grad(false)));
    int rows = static_cast<int>(dense.size(0)), classes = static_cast<int>(dense.size(1));
    const void *from = dense.const_data_ptr(), *targets_from = classes_of.const_data_ptr();
    void* to = count->mutable_data_ptr();
    void* arguments[] = {&from, &targets_from, &rows, &classes, &to};
    source().launch("hits", {amp::kernel_dtype(dense.scalar_type())}, dense.device(), 1,
                    threads_for(rows), arguments);
    *out = count.release();
  });
}

}  // extern "C"

}  // namespace amp::classification
