// Records the operators that this thread runs in training mode, with libtorch's profiling
// callbacks.

#include <ATen/record_function.h>

#include <memory>
#include <string_view>

#include "guard.h"
#include "operator_callbacks.h"

namespace amp::modes {
namespace {

// An operator, and the indices of those arguments that show whether it runs in training mode.
struct Mode {
  const char* op;
  // The index of the dropout probability, which must be above 0 in training mode. kNone if the operator has no such
  // argument.
  int probability;
  // The index of the boolean argument that is true in training mode. kNone if the operator has no such argument.
  int training;
  // The index of batch norm's running mean. If a call passes no running mean, the operator uses the statistics of the
  // batch in every mode. kNone if the operator has no such argument.
  int statistics;
};

constexpr int kNone = -1;

constexpr Mode kModes[] = {
    {"aten::dropout", 1, 2, kNone},
    {"aten::dropout_", 1, 2, kNone},
    {"aten::native_dropout", 1, 2, kNone},
    {"aten::feature_dropout", 1, 2, kNone},
    {"aten::feature_dropout_", 1, 2, kNone},
    {"aten::alpha_dropout", 1, 2, kNone},
    {"aten::alpha_dropout_", 1, 2, kNone},
    {"aten::feature_alpha_dropout", 1, 2, kNone},
    {"aten::feature_alpha_dropout_", 1, 2, kNone},
    // `scaled_dot_product_attention` calls one of the following operators.
    {"aten::_scaled_dot_product_attention_math", 4, kNone, kNone},
    {"aten::_scaled_dot_product_flash_attention", 3, kNone, kNone},
    {"aten::_scaled_dot_product_flash_attention_for_cpu", 3, kNone, kNone},
    {"aten::_scaled_dot_product_efficient_attention", 5, kNone, kNone},
    {"aten::_scaled_dot_product_cudnn_attention", 5, kNone, kNone},
    {"aten::rrelu", kNone, 3, kNone},
    {"aten::rrelu_", kNone, 3, kNone},
    // libtorch's `batch_norm` calls this operator.
    {"aten::_batch_norm_impl_index", kNone, 5, 3},
};

thread_local OperatorCallbacks callbacks;
thread_local const char* seen = nullptr;

bool is_on(c10::ArrayRef<const c10::IValue> inputs, const Mode& mode) {
  const auto at = [&](int place) -> const c10::IValue* {
    const bool there = place != kNone && static_cast<size_t>(place) < inputs.size();
    return there ? &inputs[place] : nullptr;
  };
  const c10::IValue* probability = at(mode.probability);
  if (probability != nullptr && probability->isDouble() && !(probability->toDouble() > 0)) {
    return false;
  }
  const c10::IValue* training = at(mode.training);
  if (training != nullptr && training->isBool() && !training->toBool()) return false;
  const c10::IValue* statistics = at(mode.statistics);
  const bool keeps = statistics != nullptr && statistics->isTensor() &&
      statistics->toTensor().defined();
  return mode.statistics == kNone || keeps;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  if (!callbacks.are_on() || seen != nullptr) return nullptr;
  const std::string_view name = function.name();
  for (const Mode& mode : kModes) {
    if (name == mode.op && is_on(function.inputs(), mode)) seen = mode.op;
  }
  return nullptr;
}

}  // namespace

extern "C" {

int amp_modes_start() {
  return amp::guarded([] {
    seen = nullptr;
    callbacks.start(at::RecordFunctionCallback(begin)
                        .needsInputs(true)
                        .scopes({at::RecordScope::FUNCTION}));
  });
}

int amp_modes_stop() {
  return amp::guarded([] {
    callbacks.stop();
  });
}

// Returns the name of the first operator that ran in training mode since the recording started, or null if there was
// none. The name is never freed.
int amp_modes_seen(const char** op) {
  return amp::guarded([&] { *op = seen; });
}

}  // extern "C"
}  // namespace amp::modes
