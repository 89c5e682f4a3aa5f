// Connectionist temporal classification on CUDA devices (kernels/ctc.cu). libtorch's CTC loss reads
// the lengths on the host, which is not possible while a CUDA graph is captured.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "guard.h"
#include "kernel.h"
#include "kernels/ctc.cu.h"

namespace amp::ctc {
namespace {

#include "kernels/ctc.h"

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void start(const char* name, const at::Tensor& log_probs, int64_t blocks, int64_t elements,
           void** arguments) {
  static amp::KernelSource source("ctc.cu", amp_kernels_ctc);
  const auto threads = std::clamp<int64_t>((elements + 31) / 32 * 32, 32, 1024);
  source.launch(name, {amp::kernel_dtype(log_probs.scalar_type())}, log_probs.device(),
                static_cast<unsigned>(blocks), static_cast<unsigned>(threads), arguments);
}

Examples examples_of(const at::Tensor& log_probs, const at::Tensor& labels, const at::Tensor& lengths,
                     const at::Tensor& counts, int64_t blank) {
  const auto numbers = [](const at::Tensor& tensor) {
    return static_cast<const long long*>(tensor.const_data_ptr());
  };
  return {log_probs.const_data_ptr(),
          numbers(labels),
          numbers(lengths),
          numbers(counts),
          static_cast<int>(log_probs.size(1)),
          static_cast<int>(log_probs.size(2)),
          static_cast<int>(labels.size(1)),
          static_cast<int>(blank)};
}

// Returns whether the kernels' indices can represent these sizes.
bool fits(const at::Tensor& log_probs, const at::Tensor& labels) {
  constexpr int64_t most = std::numeric_limits<int>::max() / 2 - 1;
  return log_probs.size(0) * log_probs.size(1) <= most && log_probs.size(2) <= most &&
         labels.size(1) <= most;
}

struct AmpCtc : torch::autograd::Function<AmpCtc> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& given,
                            const at::Tensor& given_labels, const at::Tensor& given_lengths,
                            const at::Tensor& given_counts, int64_t blank, bool zero_infinity) {
    const auto log_probs = given.contiguous(), labels = given_labels.contiguous();
    const auto lengths = given_lengths.contiguous(), counts = given_counts.contiguous();
    const int64_t examples = log_probs.size(0), states = 2 * labels.size(1) + 1;
    const auto options = log_probs.options().requires_grad(false);
    const auto from_start = at::empty({examples, log_probs.size(1), states}, options);
    const auto exact = at::empty({examples}, options), losses = at::empty({examples}, options);
    auto all = examples_of(log_probs, labels, lengths, counts, blank);
    void *paths = amp::data(from_start), *kept = amp::data(exact), *each = amp::data(losses);
    void* arguments[] = {&all, &zero_infinity, &paths, &kept, &each};
    start("forward", log_probs, examples, states, arguments);
    context->save_for_backward({log_probs, labels, lengths, counts, from_start, exact});
    context->saved_data["blank"] = blank;
    context->saved_data["zero_infinity"] = zero_infinity;
    return losses;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    if (c10::GradMode::is_enabled()) {
      throw std::runtime_error("ctc_loss has no second derivatives (create_graph), as in PyTorch");
    }
    const auto saved = context->get_saved_variables();
    const auto &log_probs = saved.at(0), &labels = saved.at(1);
    const auto &from_start = saved.at(4), &exact = saved.at(5);
    bool zero_infinity = context->saved_data.at("zero_infinity").toBool();
    auto all = examples_of(log_probs, labels, saved.at(2), saved.at(3),
                           context->saved_data.at("blank").toInt());
    const auto to_end = at::empty_like(from_start), out = at::empty_like(log_probs);
    const auto grad = grads.at(0).contiguous();
    const void *start_paths = amp::const_data(from_start), *kept = amp::const_data(exact);
    const void* incoming = amp::const_data(grad);
    void *end_paths = amp::data(to_end), *to = amp::data(out);
    void* arguments[] = {&all, &kept, &end_paths};
    start("backward", log_probs, log_probs.size(0), from_start.size(2), arguments);
    void* rest[] = {&all, &zero_infinity, &start_paths, &end_paths, &kept, &incoming, &to};
    start("gradients", log_probs, log_probs.size(0) * log_probs.size(1),
          std::min<int64_t>(std::max(log_probs.size(2), labels.size(1)), 256), rest);
    return {out, {}, {}, {}, {}, {}};
  }
};

}  // namespace

extern "C" {

// Computes the loss of each example, a tensor of the shape [examples]. `log_probs` are f32 or f64 of the
// shape [examples, steps, classes]. `labels` have the shape [examples, labels] and are padded with -100.
// `lengths` and `counts` are the numbers of steps and of labels of each example. All tensors are on one
// CUDA device. `zero_infinity` replaces infinite losses by 0. The result is a new tensor, or null if
// there is nothing to compute or the sizes are too large.
int amp_ctc_loss(const at::Tensor* log_probs, const at::Tensor* labels, const at::Tensor* lengths,
                 const at::Tensor* counts, int64_t blank, int zero_infinity, at::Tensor** out) {
  return amp::guarded([&] {
    if (log_probs->numel() == 0 || !fits(*log_probs, *labels)) return;
    *out = new at::Tensor(
        AmpCtc::apply(*log_probs, *labels, *lengths, *counts, blank, zero_infinity != 0));
  });
}

}  // extern "C"

}  // namespace amp::ctc
