// Cross entropy and the number of correct predictions on CUDA devices (kernels/classification.cu). libtorch computes
// them on other devices, and for logits that the kernels do not support.

#include <ATen/Dispatch.h>
#include <ATen/NumericUtils.h>
#include <ATen/TensorIterator.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Reduction.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include "classification.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "guard.h"
#include "kernel.h"
#include "kernels/classification.cu.h"
#include "own_kernels.h"
#include "own_memory.h"

namespace amp::classification {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto cuda = c10::DeviceType::CUDA;
// The largest number of logits for which a single block computes the whole loss. The kernel then takes a few
// microseconds.
constexpr int64_t most_logits = 1 << 16;
// The class whose targets are ignored by default, as in PyTorch.
constexpr int64_t ignored = -100;
// The largest number of rows or classes that the kernels' indices can represent.
constexpr int64_t largest_int = std::numeric_limits<int>::max();

amp::KernelSource& source() {
  static amp::KernelSource source("classification.cu", amp_kernels_classification);
  return source;
}

unsigned threads_for(int rows) { return rows <= 128 ? 128 : rows <= 256 ? 256 : 1024; }

// Returns whether the kernels support logits [rows, classes] and targets [rows].
bool fits(const at::Tensor& logits, const at::Tensor& targets) {
  return logits.is_cuda() && logits.dim() == 2 && targets.dim() == 1 &&
         logits.device() == targets.device() && targets.scalar_type() == at::kLong &&
         logits.size(0) == targets.size(0) && logits.numel() > 0 &&
         logits.size(0) <= largest_int && logits.size(1) <= largest_int &&
         amp::kernel_dtype(logits.scalar_type()) != nullptr;
}

bool are_few(const at::Tensor& logits) { return logits.numel() <= most_logits; }

// Returns whether libtorch's loss for these logits would have the dtype `wide(logits)`. For 16-bit logits this is so
// only under autocast.
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

  // Computes the gradient with operations that build an autograd graph, for second derivatives.
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

// Returns the number of threads for a row: one for each line of 16 bytes, up to the size of a block.
unsigned threads_of_row(const at::Tensor& logits) {
  const int64_t lines = logits.size(1) * logits.element_size() / 16;
  return static_cast<unsigned>(std::clamp<int64_t>((lines + 31) / 32 * 32, 32, 1024));
}

// Returns whether only the autograd graph of the current backward pass owns the saved logits, besides the handle
// `saved`. If so, the memory of the logits may be overwritten.
bool are_held_by_graph_alone(const at::Tensor& saved) {
  if (torch::autograd::get_current_graph_task_keep_graph() || !saved.is_contiguous() ||
      saved.use_count() > 2) {
    return false;
  }
  return amp::has_own_memory(saved);
}

// The cross entropy of many logits. The forward pass reads the logits once. The backward pass replaces the logits by
// their gradients.
struct AmpRowCrossEntropy : torch::autograd::Function<AmpRowCrossEntropy> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& given,
                            const at::Tensor& given_targets, Options options) {
    const auto logits = given.contiguous(), targets = given_targets.contiguous();
    int rows = static_cast<int>(logits.size(0)), classes = static_cast<int>(logits.size(1));
    const auto computed = logits.options().dtype(wide(logits)).requires_grad(false);
    const auto kept = at::empty({rows, 2}, computed), losses = at::empty({rows}, computed);
    const void *from = logits.const_data_ptr(), *classes_of = targets.const_data_ptr();
    void *each = losses.mutable_data_ptr(), *rows_kept = kept.mutable_data_ptr();
    void* arguments[] = {&from, &classes_of, &classes, &options.left_out, &options.smoothing,
                         &options.z, &each, &rows_kept};
    source().launch("row_losses", {amp::kernel_dtype(logits.scalar_type())}, logits.device(),
                    static_cast<unsigned>(rows), threads_of_row(logits), arguments);
    const auto [mean, counted] = mean_of_rows(losses, targets, options, logits.scalar_type());
    context->save_for_backward({given, targets, kept, counted});
    context->saved_data["smoothing"] = options.smoothing;
    context->saved_data["left_out"] = static_cast<int64_t>(options.left_out);
    context->saved_data["z"] = options.z;
    return mean;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto &given = saved.at(0), &targets = saved.at(1), &kept = saved.at(2);
    const auto& counted = saved.at(3);
    const auto& at = context->saved_data;
    Options options{at.at("smoothing").toDouble(), at.at("left_out").toInt(), at.at("z").toDouble()};
    if (c10::GradMode::is_enabled()) {
      return {differentiable_gradient(given, targets, grads.at(0), options), {}, {}};
    }
    const auto grad = grads.at(0).to(kept.scalar_type());
    const bool in_place = are_held_by_graph_alone(given);
    const auto out = in_place ? given.variable_data() : given.clone(at::MemoryFormat::Contiguous);
    int classes = static_cast<int>(given.size(1));
    void* logits = out.mutable_data_ptr();
    const void *classes_of = targets.const_data_ptr(), *count = counted.const_data_ptr();
    const void *rows_kept = kept.const_data_ptr(), *incoming = grad.const_data_ptr();
    void* arguments[] = {&logits,   &classes_of, &classes,   &options.left_out, &options.smoothing,
                         &options.z, &count,     &rows_kept, &incoming};
    source().launch("row_gradients", {amp::kernel_dtype(given.scalar_type())}, given.device(),
                    static_cast<unsigned>(given.size(0)), threads_of_row(given), arguments);
    return {out, {}, {}};
  }
};

// Computes the loss with the kernels of this crate. Returns an undefined tensor if the kernels do not support these
// arguments.
at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& targets,
                         const Options& options) {
  if (!amp::own_kernels() || !fits(logits, targets) || !has_wide_loss(logits)) return {};
  const bool is_plain = options.smoothing == 0 && options.left_out == ignored && options.z == 0;
  const bool trains = logits.requires_grad() && c10::GradMode::is_enabled();
  if (!are_few(logits) || !is_plain) return AmpRowCrossEntropy::apply(logits, targets, options);
  return trains ? AmpCrossEntropy::apply(logits, targets) : at::Tensor();
}

// Throws an error if `target` is not one of the classes.
void check_class(int64_t target, int64_t classes) {
  TORCH_CHECK(target >= 0 && target < classes, "a target is class ", target, ", but there are ", classes,
              " classes, counted from 0");
}

// Returns the number of targets that are not ignored.
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
    check_class(of[at], classes);
    ++count;
  }
  return at::full({}, static_cast<double>(count), options);
}

// Returns whether one thread of the CPU counts the correct predictions faster than libtorch's operators. For so few
// logits, the operators also use a single thread.
bool are_few_on_cpu(const at::Tensor& logits, const at::Tensor& targets) {
  return logits.is_cpu() && targets.is_cpu() && logits.dim() == 2 && targets.dim() == 1 && logits.is_floating_point() &&
         logits.numel() <= at::internal::GRAIN_SIZE;
}

// Counts the correct predictions among contiguous logits [rows, classes] on the CPU: see `amp_hits`.
template <typename Logit>
std::pair<double, double> count_hits(const at::Tensor& logits, const at::Tensor& targets) {
  const auto classes = logits.size(1);
  const auto* row = logits.const_data_ptr<Logit>();
  const auto* target = targets.const_data_ptr<int64_t>();
  double hits = 0, counted = 0;
  for (int64_t rows = targets.numel(); rows > 0; --rows, ++target, row += classes) {
    if (*target == ignored) continue;
    check_class(*target, classes);
    const auto* largest = std::max_element(row, row + classes);
    const bool nan = std::any_of(row, row + classes, [](Logit logit) { return at::_isnan(logit); });
    hits += nan ? std::numeric_limits<double>::quiet_NaN() : (largest - row == *target ? 1 : 0);
    ++counted;
  }
  return {hits, counted};
}

// Computes `row_losses` with libtorch's operators instead of a kernel.
void composed_row_losses(const at::Tensor& logits, const at::Tensor& targets, const Options& options,
                         double factor, at::Tensor losses) {
  const auto [smoothing, left_out, z] = options;
  const double classes = static_cast<double>(logits.size(1));
  const auto values = logits.to(losses.scalar_type());
  const auto ignored = targets.eq(left_out);
  const auto places = targets.masked_fill(ignored, 0).unsqueeze(1);
  const auto denominator = at::logsumexp(values, {1}, /*keepdim=*/true);
  auto each = denominator - at::gather(values, 1, places) * (1 - smoothing);
  if (smoothing != 0) each = each - values.sum(1, /*keepdim=*/true) * (smoothing / classes);
  if (z != 0) each = each + denominator.square() * z;
  losses.copy_(each.squeeze(1).masked_fill(ignored, 0));
  if (factor == 0) return;
  auto gradient = (values - denominator).exp_();
  if (z != 0) gradient.mul_(1 + 2 * z * denominator);
  gradient.sub_(smoothing / classes);
  gradient.scatter_add_(1, places, at::full_like(places, smoothing - 1, gradient.options()));
  logits.copy_(gradient.mul_(factor).masked_fill_(ignored.unsqueeze(1), 0));
}

}  // namespace

at::ScalarType wide(const at::Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void row_losses(const at::Tensor& logits, const at::Tensor& targets, const Options& options, double factor,
                const at::Tensor& losses) {
  if (!logits.is_cuda()) {
    composed_row_losses(logits, targets, options, factor, losses);
    return;
  }
  auto [smoothing, left_out, z] = options;
  int classes = static_cast<int>(logits.size(1));
  void *values = logits.mutable_data_ptr(), *each = losses.mutable_data_ptr();
  const void* classes_of = targets.const_data_ptr();
  void* arguments[] = {&values, &classes_of, &classes, &left_out, &smoothing, &z, &factor, &each};
  source().launch("row_losses_and_gradients", {amp::kernel_dtype(logits.scalar_type())}, logits.device(),
                  static_cast<unsigned>(logits.size(0)), threads_of_row(logits), arguments);
}

Mean mean_of_rows(const at::Tensor& losses, const at::Tensor& targets, const Options& options,
                  at::ScalarType logits) {
  if (!losses.is_cuda()) {
    const auto counted = targets.ne(options.left_out).sum(at::kDouble);
    return {(losses.sum(at::kDouble) / counted).to(losses.scalar_type()), counted};
  }
  const auto mean = at::empty({}, losses.options());
  const auto counted = at::empty({}, losses.options().dtype(at::kDouble));
  int rows = static_cast<int>(losses.size(0));
  long long left_out = options.left_out;
  const void *each = losses.const_data_ptr(), *classes_of = targets.const_data_ptr();
  void *to = mean.mutable_data_ptr(), *count = counted.mutable_data_ptr();
  void* arguments[] = {&each, &classes_of, &rows, &left_out, &to, &count};
  source().launch("mean_of_rows", {amp::kernel_dtype(logits)}, losses.device(), 1, 1024, arguments);
  return {mean, counted};
}

at::Tensor differentiable_gradient(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& grad,
                                   const Options& options) {
  const auto [smoothing, left_out, z] = options;
  auto share = at::softmax(logits, 1, wide(logits));
  const auto counts = targets.ne(left_out).to(share.scalar_type()).unsqueeze(1);
  const auto places = targets.masked_fill(targets.eq(left_out), 0).unsqueeze(1);
  const auto every = smoothing / static_cast<double>(logits.size(1));
  const auto wanted = at::full_like(share, every).scatter_(1, places, 1 - smoothing + every);
  if (z != 0) {
    const auto denominator = at::logsumexp(logits.to(wide(logits)), {1}, /*keepdim=*/true);
    share = share * (1 + 2 * z * denominator);
  }
  const auto out = (share - wanted) * counts * (grad / counts.sum());
  return out.to(logits.scalar_type());
}

extern "C" {

// Computes the mean cross entropy of logits. The targets are class indices or probabilities. Targets of the class
// `left_out` are ignored. The fraction `smoothing` of each target is divided equally among all classes. If `z` is not
// 0, z·(log Σ exp(logits))² is added for each target. Writes a new tensor to `out`. Writes nothing if `z` is not 0 and
// the kernels do not support these arguments.
int amp_cross_entropy(const at::Tensor* logits, const at::Tensor* targets, double smoothing,
                      int64_t left_out, double z, at::Tensor** out) {
  return amp::guarded([&] {
    auto own = cross_entropy(*logits, *targets, {smoothing, left_out, z});
    if (!own.defined() && z != 0) return;
    if (!own.defined()) {
      own = at::cross_entropy_loss(*logits, *targets, {}, at::Reduction::Mean, left_out, smoothing);
    }
    *out = new at::Tensor(std::move(own));
  });
}

// Counts the targets that are not of the ignored class, as an f64 scalar. A target that is not from 0 to `classes` - 1
// is an error on the CPU. On other devices, such a target makes the count NaN.
int amp_counted_classes(const at::Tensor* targets, int64_t classes, at::Tensor** out) {
  return amp::guarded([&] { *out = new at::Tensor(counted_classes(*targets, classes)); });
}

// Counts correct predictions. Writes a new f64 tensor [2] to `out`: the number of rows in which the target's class has
// the largest logit, and the number of rows whose target is not ignored. The first number is NaN if a row whose target
// is not ignored has a NaN logit.
int amp_hits(const at::Tensor* logits, const at::Tensor* targets, at::Tensor** out) {
  return amp::guarded([&] {
    if (are_few_on_cpu(*logits, *targets)) {
      const auto dense = logits->contiguous(), classes_of = targets->contiguous();
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dense.scalar_type(), "hits", [&] {
        const auto [hits, counted] = count_hits<scalar_t>(dense, classes_of);
        const double both[] = {hits, counted};
        *out = new at::Tensor(at::tensor(at::ArrayRef<double>(both), at::kDouble));
      });
      return;
    }
    if (!fits(*logits, *targets) || !are_few(*logits)) {
      // For argmax, a NaN is the largest logit of its row.
      const auto best = at::argmax(*logits, 1);
      const auto largest = logits->gather(1, best.unsqueeze(1)).squeeze(1);
      const auto nan = largest.isnan().logical_and(targets->ne(ignored)).any();
      const auto hits = best.eq(*targets).sum(at::kDouble);
      const auto known = hits.masked_fill(nan, std::numeric_limits<double>::quiet_NaN());
      *out = new at::Tensor(at::stack({known, counted_classes(*targets, logits->size(1))}));
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
