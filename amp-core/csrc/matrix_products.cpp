// Records the matrix products and the random numbers that this thread computes, with libtorch's profiling callbacks.

#include <ATen/record_function.h>

#include <memory>
#include <string_view>
#include <vector>

#include "guard.h"
#include "matrix_products.h"
#include "operator_callbacks.h"

namespace amp::products {
namespace {

// The recorded operators. If one of them runs within another, only the outer operator is recorded. Attention with
// bf16 input and output, for example, may compute in f32 inside.
constexpr std::string_view kProducts[] = {
    "aten::mm",
    "aten::addmm",
    "aten::_addmm_activation",
    "aten::bmm",
    "aten::baddbmm",
    "aten::addbmm",
    "aten::mv",
    "aten::addmv",
    "aten::dot",
    "aten::matmul",
    "aten::linear",
    "aten::einsum",
    "aten::bilinear",
    "aten::conv1d",
    "aten::conv2d",
    "aten::conv3d",
    "aten::conv_transpose1d",
    "aten::conv_transpose2d",
    "aten::conv_transpose3d",
    "aten::convolution",
    "aten::_convolution",
    "aten::scaled_dot_product_attention",
    "aten::lstm",
    "aten::gru",
    "aten::rnn_tanh",
    "aten::rnn_relu",
};

// The recorded operators that draw random numbers. From the same state of the generator, they draw different numbers
// for different dtypes. Operators that are not listed draw the same numbers for every dtype and round them
// (`bernoulli_`, dropout, `exponential_`), or draw integers (`randperm`).
constexpr std::string_view kDraws[] = {
    "aten::rand",   "aten::rand_like", "aten::randn",   "aten::randn_like",
    "aten::normal", "aten::normal_",   "aten::uniform", "aten::uniform_",
};

// Autocast runs these operators, and the matrix products that they call, in f32. Neither the operators nor these
// products are recorded.
constexpr std::string_view kInF32[] = {"aten::cdist", "aten::_cdist_forward", "aten::pdist"};

// A recorded operator that has run: its name, the dtype of its output, and whether it draws random numbers. For random
// numbers the dtype is the one in which they are drawn, before they are rounded to the output's dtype.
struct Recorded {
  const char* op;
  int dtype;
  bool draws;
};

// A recorded operator that is running. `op` is null if it runs within another recorded operator.
struct Watched : at::ObserverContext {
  Watched(const char* op, bool draws) : op(op), draws(draws) {}
  const char* op;
  bool draws;
};

thread_local OperatorCallbacks callbacks;
thread_local std::vector<Recorded> seen;
// The nesting depth of recorded operators: how many of them are running at the moment, one within the other.
thread_local int depth = 0;
// The number of pauses. While it is above 0, nothing is recorded.
thread_local int paused = 0;

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  if (!callbacks.are_on()) return nullptr;
  // If a backward pass runs within the forward pass, its products are not recorded, because gradients may have other
  // dtypes than the forward pass.
  const bool is_backward = function.scope() == at::RecordScope::BACKWARD_FUNCTION;
  const std::string_view name = function.name();
  const char* draw = is_backward ? nullptr : among(kDraws, name).data();
  const char* op = is_backward || draw != nullptr ? draw : among(kProducts, name).data();
  if (op == nullptr && !is_backward && among(kInF32, name).empty()) return nullptr;
  return std::make_unique<Watched>(depth++ == 0 ? op : nullptr, draw != nullptr);
}

void end(const at::RecordFunction& function, at::ObserverContext* context) {
  if (context == nullptr) return;
  --depth;
  const auto [op, draws] = *static_cast<Watched*>(context);
  // An operator that has failed has no output, so it is not recorded.
  if (op == nullptr || paused > 0 || function.outputs().empty()) return;
  const c10::IValue& output = function.outputs()[0];
  if (!output.isTensor()) return;
  const at::Tensor& tensor = output.toTensor();
  if (!tensor.defined() || !at::isFloatingType(tensor.scalar_type())) return;
  // CUDA's kernels draw 16-bit numbers in f32 and round them.
  const bool rounds = draws && tensor.is_cuda() && tensor.element_size() == 2;
  const at::ScalarType dtype = rounds ? at::kFloat : tensor.scalar_type();
  seen.push_back({op, static_cast<int>(dtype), draws});
}

}  // namespace

Pause::Pause() { ++paused; }
Pause::~Pause() { --paused; }

extern "C" {

int amp_products_start() {
  return amp::guarded([] {
    seen.clear();
    depth = 0;
    callbacks.start(at::RecordFunctionCallback(begin, end)
                        .needsOutputs(true)
                        .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  });
}

int amp_products_stop() {
  return amp::guarded([] {
    callbacks.stop();
  });
}

// Adds `by` to the number of pauses. While the number is above 0, nothing is recorded.
int amp_products_pause(int by) {
  return amp::guarded([&] { paused += by; });
}

// Writes the name of the recorded operator with the index `place`, the dtype of its output, and whether it draws random
// numbers. The caller must not free the name. If there is no operator with this index, writes a null name and removes
// all recorded operators.
int amp_products_take(size_t place, const char** op, int* dtype, int* draws) {
  return amp::guarded([&] {
    *op = nullptr;
    if (place < seen.size()) {
      *op = seen[place].op;
      *dtype = seen[place].dtype;
      *draws = seen[place].draws;
    } else {
      seen.clear();
    }
  });
}

}  // extern "C"
}  // namespace amp::products
