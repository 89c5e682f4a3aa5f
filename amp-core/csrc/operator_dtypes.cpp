// Records the dtypes of operators' results in a forward pass. In a later forward pass, which computes in a wider dtype,
// rounds the results of the same operators to the recorded dtypes. Uses libtorch's profiling callbacks.

#include <ATen/record_function.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guard.h"
#include "operator_callbacks.h"

namespace amp::operators {
namespace {

// What a pass does with the results of operators.
enum class Pass : int {
  // Records their dtypes.
  kRecord = 0,
  // Counts them. The pass in the wider dtype may run other operators than the recorded pass, for example because it has
  // no casts. Only operators that both passes run equally often are rounded.
  kCount = 1,
  // Rounds them.
  kRound = 2,
};

// A module's hash and the name of an operator that the module runs.
using Key = std::pair<uint64_t, std::string>;

// The calls of one operator in one module.
struct Calls {
  std::vector<at::ScalarType> recorded;
  size_t counted = 0;
};

using Table = std::map<Key, Calls>;

// Casts. Their results are not rounded, and neither are those of the operators that they call: an operator on a tensor
// and a number casts the number to the tensor's dtype, but computes with the exact number.
constexpr std::string_view kCasts[] = {"aten::to", "aten::_to_copy"};

// An operator that is running. `name` is empty if the operator's result is left as it is: if it runs within another call
// of the same operator, as under autocast, or if it belongs to a cast.
struct Running : at::ObserverContext {
  std::string_view name;
  // The memory of the input tensors.
  std::vector<const void*> inputs;
};

thread_local OperatorCallbacks callbacks;
thread_local Table* table = nullptr;
thread_local Pass pass = Pass::kRecord;
// The module whose code runs, and whether its operators are watched.
thread_local uint64_t module_hash = 0;
thread_local bool watched = true;
// The number of calls so far in this pass.
thread_local std::map<Key, size_t> calls;
thread_local std::vector<std::string_view> running;

const void* memory(const at::Tensor& tensor) {
  return tensor.defined() && tensor.has_storage() ? tensor.storage().data() : nullptr;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  if (!callbacks.are_on() || !watched) return nullptr;
  auto context = std::make_unique<Running>();
  const std::string_view name = function.name();
  running.push_back(name);
  const auto runs = [](std::string_view op) { return std::count(running.begin(), running.end(), op); };
  if (std::any_of(std::begin(kCasts), std::end(kCasts), runs) || runs(name) > 1) return context;
  context->name = name;
  if (pass == Pass::kRound) {
    for (const c10::IValue& input : function.inputs()) {
      if (input.isTensor()) context->inputs.push_back(memory(input.toTensor()));
    }
  }
  return context;
}

at::Tensor rounded(const at::Tensor& tensor, at::ScalarType to) { return tensor.to(to).to(tensor.scalar_type()); }

// Rounds the elements of `output` in place, and later the gradient that reaches it. Autograd does not see the change:
// it reads the rounded elements if it has saved the output.
void round(const at::Tensor& output, at::ScalarType to) {
  const at::DisableRecordFunctionGuard unrecorded;
  if (output.requires_grad() && output.grad_fn() != nullptr) {
    output.register_hook([to](const at::Tensor& grad) { return grad.defined() ? rounded(grad, to) : grad; });
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  output.copy_(rounded(output, to));
}

// Returns whether the elements of the output may be rounded: it must be a new tensor, or one that the operator itself
// changes. Any other output shares the memory of an input, which was rounded already or must not change.
bool may_change(const Running& call, const at::Tensor& output) {
  if (call.name.back() == '_') return true;
  const void* own = memory(output);
  for (const void* input : call.inputs) {
    if (input == own) return false;
  }
  return output.is_non_overlapping_and_dense();
}

void end(const at::RecordFunction& function, at::ObserverContext* context) {
  if (context == nullptr) return;
  running.pop_back();
  const auto& call = *static_cast<Running*>(context);
  // An operator that has failed has no output.
  if (call.name.empty() || function.outputs().empty() || !function.outputs()[0].isTensor()) return;
  const at::Tensor& output = function.outputs()[0].toTensor();
  if (!output.defined() || !at::isFloatingType(output.scalar_type())) return;
  const Key key{module_hash, std::string(call.name)};
  if (pass == Pass::kRecord) {
    (*table)[key].recorded.push_back(output.scalar_type());
    return;
  }
  if (pass == Pass::kCount) {
    ++(*table)[key].counted;
    return;
  }
  const size_t index = calls[key]++;
  const auto found = table->find(key);
  if (found == table->end()) return;
  const auto& [recorded, counted] = found->second;
  if (recorded.size() != counted || index >= counted) return;
  const at::ScalarType to = recorded[index];
  if (at::elementSize(to) < at::elementSize(output.scalar_type()) && may_change(call, output)) round(output, to);
}

}  // namespace

extern "C" {

int amp_operators_new(Table** out) {
  return amp::guarded([&] { *out = new Table; });
}

int amp_operators_free(Table* freed) {
  return amp::guarded([&] { delete freed; });
}

// Starts a pass of this thread. `of` must live until the pass is stopped.
int amp_operators_start(Table* of, int what) {
  return amp::guarded([&] {
    table = of;
    pass = static_cast<Pass>(what);
    module_hash = 0;
    watched = true;
    calls.clear();
    running.clear();
    callbacks.start(at::RecordFunctionCallback(begin, end)
                        .needsInputs(pass == Pass::kRound)
                        .needsOutputs(true)
                        .scopes({at::RecordScope::FUNCTION}));
  });
}

int amp_operators_stop() {
  return amp::guarded([] {
    if (pass != Pass::kRecord) at::enableRecordFunction(true);
    callbacks.stop();
    table = nullptr;
  });
}

// Sets the module whose code runs next, and whether its operators are watched.
int amp_operators_enter(uint64_t hash, int is_watched) {
  return amp::guarded([&] {
    module_hash = hash;
    watched = is_watched != 0;
    // Without the callbacks, the operators within layers are as fast as in an ordinary forward pass. A pass that
    // records keeps the callbacks, because other recorders run in the same pass and must see all operators.
    if (pass != Pass::kRecord) at::enableRecordFunction(watched);
  });
}

}  // extern "C"
}  // namespace amp::operators
