// Watches the matrix products that this thread computes, by libtorch's own record of operators.

#include <ATen/record_function.h>

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "guard.h"

namespace amp::products {
namespace {

// What an operator that multiplies matrices computes inside is its own affair: attention may go
// through f32 on its way from bf16 to bf16.
constexpr const char* kProducts[] = {
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

// Autocast itself runs these in f32, products inside included.
constexpr const char* kInF32[] = {"aten::cdist", "aten::_cdist_forward", "aten::pdist"};

struct Product {
  const char* op;
  int dtype;
};

// The operator that is watched now, and where it began.
struct Watched : at::ObserverContext {
  explicit Watched(const char* op) : op(op) {}
  const char* op;
};

thread_local std::optional<at::CallbackHandle> handle;
thread_local std::vector<Product> seen;
// Operators that are watched, one inside the other.
thread_local int depth = 0;
// How many ask for nothing to be noted.
thread_local int paused = 0;

template <size_t N>
const char* among(const char* const (&names)[N], std::string_view name) {
  for (const char* known : names) {
    if (name == known) return known;
  }
  return nullptr;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  // A gradient taken during the forward pass has the dtypes of its own rules.
  const bool is_backward = function.scope() == at::RecordScope::BACKWARD_FUNCTION;
  const char* op = is_backward ? nullptr : among(kProducts, function.name());
  if (op == nullptr && !is_backward && among(kInF32, function.name()) == nullptr) return nullptr;
  return std::make_unique<Watched>(depth++ == 0 ? op : nullptr);
}

void end(const at::RecordFunction& function, at::ObserverContext* context) {
  if (context == nullptr) return;
  --depth;
  const char* op = static_cast<Watched*>(context)->op;
  // An operator that failed has no output.
  if (op == nullptr || paused > 0 || function.outputs().empty()) return;
  const c10::IValue& output = function.outputs()[0];
  if (!output.isTensor()) return;
  const at::Tensor& tensor = output.toTensor();
  if (!tensor.defined() || !at::isFloatingType(tensor.scalar_type())) return;
  seen.push_back({op, static_cast<int>(tensor.scalar_type())});
}

}  // namespace

extern "C" {

int amp_products_start() {
  return amp::guarded([] {
    seen.clear();
    depth = 0;
    handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(begin, end).needsOutputs(true).scopes(
            {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  });
}

int amp_products_stop() {
  return amp::guarded([] {
    if (handle) at::removeCallback(*handle);
    handle.reset();
  });
}

// Notes nothing while `by` of all calls adds up to more than 0.
int amp_products_pause(int by) {
  return amp::guarded([&] { paused += by; });
}

// The product at this place; past the last one `op` is null and all are forgotten. `op` is otherwise
// a string that is never freed.
int amp_products_take(size_t place, const char** op, int* dtype) {
  return amp::guarded([&] {
    *op = nullptr;
    if (place < seen.size()) {
      *op = seen[place].op;
      *dtype = seen[place].dtype;
    } else {
      seen.clear();
    }
  });
}

}  // extern "C"
}  // namespace amp::products
