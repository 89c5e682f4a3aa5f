// Detects, with libtorch's profiling callbacks, operators that combine a column [N, 1] and a vector [N], where one is
// an output of the model and the other is a target. The result is a table [N, N] of all pairs, usually by mistake.

#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>

#include "guard.h"
#include "operator_callbacks.h"

namespace amp::broadcasts {
namespace {

// The operators that broadcast their first two arguments and compute each element of the result from one element of
// each argument: arithmetic and losses, and comparisons.
constexpr std::string_view kArithmetic[] = {
    "aten::add",
    "aten::sub",
    "aten::rsub",
    "aten::mul",
    "aten::div",
    "aten::true_divide",
    "aten::pow",
    "aten::maximum",
    "aten::minimum",
    "aten::fmax",
    "aten::fmin",
    "aten::xlogy",
    "aten::atan2",
    "aten::mse_loss",
    "aten::l1_loss",
    "aten::smooth_l1_loss",
    "aten::huber_loss",
    "aten::soft_margin_loss",
    "aten::hinge_embedding_loss",
    "aten::binary_cross_entropy_with_logits",
    "aten::poisson_nll_loss",
    "aten::kl_div",
};
constexpr std::string_view kComparisons[] = {
    "aten::eq",          "aten::ne",           "aten::lt",
    "aten::le",          "aten::gt",           "aten::ge",
    "aten::logical_and", "aten::logical_or",   "aten::logical_xor",
    "aten::bitwise_and", "aten::bitwise_or",   "aten::bitwise_xor",
    "aten::__and__",     "aten::__or__",       "aten::__xor__",
};

// The operators that read only the shape, dtype or device of their second argument.
constexpr std::string_view kLikeOther[] = {
    "aten::expand_as", "aten::reshape_as", "aten::to", "aten::type_as", "aten::view_as",
};

// The operators that compute a table of all pairs.
constexpr std::string_view kTables[] = {"aten::outer", "aten::ger", "aten::linalg_outer"};

// The operators whose result is a column on purpose if their argument is a column on purpose.
constexpr std::string_view kCopies[] = {
    "aten::to", "aten::_to_copy", "aten::detach", "aten::clone", "aten::contiguous", "aten::alias",
};

// What the elements of a tensor were computed from. The numbers are combined with `|`.
enum Origin : unsigned { kNothing = 0, kWeights = 1, kBatch = 2 };

// The origin of the elements in a tensor's memory. The weak pointer does not keep the elements, but it keeps new memory
// from getting the same address.
struct Known {
  c10::weak_intrusive_ptr<c10::StorageImpl> memory;
  unsigned origin;
  // Whether this is the memory of a tensor of the batch itself.
  bool is_batch;
};

// An operator that is running.
struct Running : at::ObserverContext {
  unsigned origin = kNothing;
  bool is_table = false;
  // Whether the result is a column on purpose.
  bool makes_column = false;
};

thread_local OperatorCallbacks callbacks;
// Whether only operators that record gradients are reported, as in the forward pass of training.
thread_local bool is_training = false;
thread_local std::unordered_map<const c10::StorageImpl*, Known> known;
// When there are this many entries, those whose memory was freed are removed.
constexpr size_t kEntries = 4096;
thread_local size_t most_entries = kEntries;
using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
// The tensors that `unsqueeze` made, and their copies.
thread_local std::unordered_map<const c10::TensorImpl*, WeakTensor> columns;
// The number of running operators that compute tables of all pairs.
thread_local int tables = 0;
thread_local std::string_view seen;
thread_local std::string shapes;

void reset() {
  known.clear();
  columns.clear();
  most_entries = kEntries;
  tables = 0;
}

const c10::StorageImpl* memory(const at::Tensor& tensor) {
  return tensor.defined() && tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
}

// Returns the origin of a tensor. A tensor that records gradients and whose origin is not known was computed by a kernel
// of this crate, from the weights and the batch.
unsigned origin_of(const at::Tensor& tensor) {
  const auto found = known.find(memory(tensor));
  const unsigned of_memory = found == known.end() ? kNothing : found->second.origin;
  if (!tensor.defined() || !tensor.requires_grad()) return of_memory;
  if (tensor.is_leaf()) return of_memory | kWeights;
  return of_memory == kNothing ? kWeights | kBatch : of_memory | kWeights;
}

template <typename Map, typename Condition>
void erase_if(Map& map, Condition&& holds) {
  for (auto entry = map.begin(); entry != map.end();) {
    entry = holds(entry->second) ? map.erase(entry) : std::next(entry);
  }
}

// Returns the entry of a tensor's memory, or null if the tensor has no memory.
Known* entry_of(const at::Tensor& tensor) {
  const auto* key = memory(tensor);
  if (key == nullptr) return nullptr;
  if (known.size() >= most_entries) {
    erase_if(known, [](const Known& entry) { return entry.memory.expired(); });
    erase_if(columns, [](const WeakTensor& column) { return column.expired(); });
    most_entries = std::max(kEntries, 2 * known.size());
  }
  return &known.try_emplace(key, Known{tensor.storage().getWeakStorageImpl(), kNothing, false}).first->second;
}

bool is_explicit_column(const at::Tensor& tensor) {
  return tensor.defined() && columns.count(tensor.unsafeGetTensorImpl()) != 0;
}

template <typename Use>
void for_each_tensor(const c10::IValue& value, Use&& use) {
  if (value.isTensor()) {
    use(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) use(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const auto& tensor : value.toOptionalTensorVector()) {
      if (tensor) use(*tensor);
    }
  }
}

// Returns whether `tall` has the shape of `flat` with an additional last dimension of size 1.
bool is_column(const at::Tensor& tall, const at::Tensor& flat) {
  return flat.dim() > 0 && flat.size(0) > 1 && tall.dim() == flat.dim() + 1 && tall.size(-1) == 1 &&
      tall.sizes().slice(0, flat.dim()) == flat.sizes();
}

// Returns whether `output` is an output of the model and `other` is a target. In training, everything without a
// gradient may be the target of arithmetic and of losses: the batch, a constant, or a detached output. For comparisons,
// and outside training, only the batch may be the target, because code often compares outputs with each class. Two
// outputs are never reported: a table of their distances is usual.
bool are_output_and_target(const at::Tensor& output, const at::Tensor& other, bool is_comparison) {
  if (origin_of(output) != (kWeights | kBatch)) return false;
  if (is_training && !is_comparison) return output.requires_grad() && !other.requires_grad();
  return origin_of(other) == kBatch;
}

void look(const at::RecordFunction& function) {
  const auto inputs = function.inputs();
  const std::string_view comparison = among(kComparisons, function.name());
  const bool is_comparison = !comparison.empty();
  const std::string_view op = is_comparison ? comparison : among(kArithmetic, function.name());
  if (op.empty() || inputs.size() < 2) return;
  if (!inputs[0].isTensor() || !inputs[1].isTensor()) return;
  const at::Tensor &a = inputs[0].toTensor(), &b = inputs[1].toTensor();
  if (!a.defined() || !b.defined() || !(is_column(a, b) || is_column(b, a))) return;
  const bool first_is_output = are_output_and_target(a, b, is_comparison);
  if (!first_is_output && !are_output_and_target(b, a, is_comparison)) return;
  // All pairs are meant if the code itself made the output a column, as in the overlaps of predicted and true boxes.
  if (is_explicit_column(first_is_output ? a : b)) return;
  std::ostringstream text;
  text << a.sizes() << " and " << b.sizes();
  shapes = text.str();
  seen = op;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  if (!callbacks.are_on() || !seen.empty()) return nullptr;
  auto context = std::make_unique<Running>();
  const std::string_view name = function.name();
  const auto inputs = function.inputs();
  const bool copies = !among(kCopies, name).empty();
  context->makes_column = name == "aten::unsqueeze";
  for (const c10::IValue& input : among(kLikeOther, name).empty() ? inputs : inputs.slice(0, 1)) {
    for_each_tensor(input, [&](const at::Tensor& tensor) {
      context->origin |= origin_of(tensor);
      context->makes_column |= copies && is_explicit_column(tensor);
    });
  }
  if (context->origin == kNothing) return nullptr;
  context->is_table = !among(kTables, name).empty();
  tables += context->is_table;
  if (tables == 0 && (!is_training || at::GradMode::is_enabled())) look(function);
  return context;
}

void end(const at::RecordFunction& function, at::ObserverContext* context) {
  if (context == nullptr) return;
  const auto& call = *static_cast<Running*>(context);
  tables -= call.is_table;
  for (const c10::IValue& output : function.outputs()) {
    for_each_tensor(output, [&](const at::Tensor& tensor) {
      if (Known* entry = entry_of(tensor)) entry->origin |= call.origin;
      if (call.makes_column && tensor.defined()) {
        columns.try_emplace(tensor.unsafeGetTensorImpl(), tensor.getIntrusivePtr());
      }
    });
  }
}

}  // namespace

extern "C" {

// Starts to watch the operators of this thread. If `of_training` is not 0, only operators that record gradients are
// reported.
int amp_broadcasts_start(int of_training) {
  return amp::guarded([&] {
    reset();
    seen = {};
    is_training = of_training != 0;
    callbacks.start(at::RecordFunctionCallback(begin, end)
                        .needsInputs(true)
                        .needsOutputs(true)
                        .scopes({at::RecordScope::FUNCTION}));
  });
}

int amp_broadcasts_stop() {
  return amp::guarded([] {
    callbacks.stop();
    reset();
  });
}

// Says that the tensor is a part of the batch.
int amp_broadcasts_note_batch(const at::Tensor* tensor) {
  return amp::guarded([&] {
    Known* entry = entry_of(*tensor);
    if (entry == nullptr) return;
    entry->origin = kBatch;
    entry->is_batch = true;
  });
}

// Says that the tensor is an output of the model. The callbacks do not see the kernels of this crate, so the origin of
// their results is not known otherwise. A module may also return a tensor of the batch. Such a tensor still counts as a
// part of the batch.
int amp_broadcasts_note_output(const at::Tensor* tensor) {
  return amp::guarded([&] {
    Known* entry = entry_of(*tensor);
    if (entry != nullptr && !entry->is_batch) entry->origin = kWeights | kBatch;
  });
}

// Returns the name of the first operator that was detected since the watch started, and the shapes of its operands as
// text. The name is never freed; the text is valid until the next start on this thread. If no operator was detected,
// the name is null.
int amp_broadcasts_seen(const char** op, const char** operands) {
  return amp::guarded([&] {
    *op = seen.data();
    *operands = shapes.c_str();
  });
}

}  // extern "C"
}  // namespace amp::broadcasts
