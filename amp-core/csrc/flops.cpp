// Counts the floating-point operations of the matrix products that this thread computes, with libtorch's profiling
// callbacks. A multiplication and the following addition count as two operations, as in torch.utils.flop_counter.

#include <ATen/record_function.h>

#include <memory>
#include <string_view>

#include "guard.h"
#include "operator_callbacks.h"

namespace amp::flops {
namespace {

using Inputs = c10::ArrayRef<const c10::IValue>;

// The number of operations of one call: `all`, plus `each` times the number of elements of the output.
struct Count {
  double all = 0;
  double each = 0;
};

// Counts the product of factors with the shapes [.., n, k] and [.., k, m]. A and B are the indices of the factors among
// the inputs.
template <size_t A, size_t B>
Count product(Inputs inputs) {
  const auto &a = inputs[A].toTensor(), &b = inputs[B].toTensor();
  return {2.0 * a.numel() * b.size(-1), 0};
}

// Counts the product of factors with the shapes [n, k] and [k], or [k] and [k]. A is the index of the first factor
// among the inputs.
template <size_t A>
Count one_column(Inputs inputs) {
  return {2.0 * inputs[A].toTensor().numel(), 0};
}

double row(const at::Tensor& weight) { return static_cast<double>(weight.numel() / weight.size(0)); }

// Counts a convolution with weights [out, in / groups, ..]. Each element of the output is a sum over one row of the
// weights.
Count convolution(Inputs inputs) { return {0, 2.0 * row(inputs[1].toTensor())}; }

// Counts a transposed convolution with weights [in, out / groups, ..]. Each element of the input is multiplied by one
// row of the weights.
Count transposed_convolution(Inputs inputs) {
  return {2.0 * inputs[0].toTensor().numel() * row(inputs[1].toTensor()), 0};
}

// Counts the operations of a convolution operator that is called with (input, weight, bias, stride, padding, dilation,
// transposed, ..). The input `transposed` says which kind of convolution it is.
Count any_convolution(Inputs inputs) {
  return inputs[6].toBool() ? transposed_convolution(inputs) : convolution(inputs);
}

// Counts the products of attention: queries [.., L, E] times keys [.., S, E], and weights [.., L, S] times values [..,
// S, V].
Count attention(Inputs inputs) {
  const auto &query = inputs[0].toTensor(), &key = inputs[1].toTensor(), &value = inputs[2].toTensor();
  const double rows = static_cast<double>(query.numel()) / query.size(-1);
  return {2.0 * rows * key.size(-2) * (query.size(-1) + value.size(-1)), 0};
}

// Counts a recurrent layer. Every weight matrix is multiplied once for each step of each sequence. The weights are the
// last list of tensors among the inputs.
Count recurrent(Inputs inputs) {
  const auto& input = inputs[0].toTensor();
  const double steps = static_cast<double>(input.numel()) / input.size(-1);
  double weights = 0;
  for (const auto& value : inputs) {
    if (!value.isTensorList()) continue;
    weights = 0;
    for (const at::Tensor& weight : value.toTensorVector()) {
      if (weight.dim() == 2) weights += weight.numel();
    }
  }
  return {2.0 * steps * weights, 0};
}

struct Rule {
  std::string_view op;
  Count (*count)(Inputs);
};

// The operators that are counted. An operator that is called within one of them is not counted again, so that the count
// does not depend on the kernel of the outer operator. Operators that are not in this list, such as `linear` and
// `matmul`, are counted through the operators that they call.
constexpr Rule kRules[] = {
    {"aten::mm", product<0, 1>},
    {"aten::bmm", product<0, 1>},
    {"aten::addmm", product<1, 2>},
    {"aten::_addmm_activation", product<1, 2>},
    {"aten::baddbmm", product<1, 2>},
    {"aten::addbmm", product<1, 2>},
    {"aten::mv", one_column<0>},
    {"aten::dot", one_column<0>},
    {"aten::addmv", one_column<1>},
    {"aten::conv1d", convolution},
    {"aten::conv2d", convolution},
    {"aten::conv3d", convolution},
    {"aten::conv_transpose1d", transposed_convolution},
    {"aten::conv_transpose2d", transposed_convolution},
    {"aten::conv_transpose3d", transposed_convolution},
    {"aten::convolution", any_convolution},
    {"aten::_convolution", any_convolution},
    {"aten::cudnn_convolution", convolution},
    {"aten::scaled_dot_product_attention", attention},
    {"aten::lstm", recurrent},
    {"aten::gru", recurrent},
    {"aten::rnn_tanh", recurrent},
    {"aten::rnn_relu", recurrent},
};

struct Watched : at::ObserverContext {
  explicit Watched(Count count) : count(count) {}
  const Count count;
};

thread_local OperatorCallbacks callbacks;
thread_local double counted = 0;
// The nesting depth of listed operators: how many of them are running at the moment, one within the other.
thread_local int depth = 0;

// Counts a listed operator when it begins, because its inputs are available only at the beginning.
std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  if (!callbacks.are_on()) return nullptr;
  for (const Rule& rule : kRules) {
    if (rule.op != function.name()) continue;
    const Count count = depth++ == 0 ? rule.count(function.inputs()) : Count{};
    return std::make_unique<Watched>(count);
  }
  return nullptr;
}

void end(const at::RecordFunction& function, at::ObserverContext* context) {
  if (context == nullptr) return;
  --depth;
  const Count& count = static_cast<Watched*>(context)->count;
  // An operator that has failed has no output, so it is not counted.
  if (function.outputs().empty() || !function.outputs()[0].isTensor()) return;
  counted += count.all + count.each * function.outputs()[0].toTensor().numel();
}

}  // namespace

extern "C" {

// Starts to count this thread's operations from 0.
int amp_flops_start() {
  return amp::guarded([] {
    counted = 0;
    depth = 0;
    callbacks.start(at::RecordFunctionCallback(begin, end)
                        .needsInputs(true)
                        .needsOutputs(true)
                        .scopes({at::RecordScope::FUNCTION}));
  });
}

int amp_flops_stop() {
  return amp::guarded([] {
    callbacks.stop();
  });
}

// Writes the number of operations since the start to `count`.
int amp_flops_read(double* count) {
  return amp::guarded([&] { *count = counted; });
}

}  // extern "C"
}  // namespace amp::flops
