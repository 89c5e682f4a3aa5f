// Gradients that libtorch's CPU kernels add up in the dtype of the gradient, one addend after the other: those of a layer
// norm's weight and bias, of the rows of a table (embedding, embedding bag), and of an indexed tensor. In f16 and bf16 the
// error grows with the number of addends. bf16 numbers have 8 significant bits, so a sum that is 256 times as large as
// its addends does not grow any more: a layer norm's bias gradient over 4096 rows is off by 32 %, over 32768 rows by
// 89 %. libtorch's CUDA kernels add up in f32. The functions of this file do so on the CPU and round each gradient
// once.
//
// The functions replace libtorch's kernels of these operators in the whole process. All other dtypes are passed on to
// libtorch's kernel.

#include <ATen/core/Tensor.h>
#include <ATen/ops/_embedding_bag_dense_backward_cpu_dispatch.h>
#include <ATen/ops/_index_put_impl_cpu_dispatch.h>
#include <ATen/ops/embedding_dense_backward_cpu_dispatch.h>
#include <ATen/ops/native_layer_norm_backward_cpu_dispatch.h>
#include <ATen/ops/native_layer_norm_cpu_dispatch.h>

#include <array>
#include <memory>
#include <optional>
#include <tuple>

#include "cpu_kernels.h"

namespace amp::cpu_sums {
namespace {

using at::Tensor;
using cpu_kernels::rounded;
using cpu_kernels::wide;

bool has_16_bits(const Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

bool is_of(const std::optional<Tensor>& tensor, at::ScalarType type) {
  return tensor && tensor->defined() && tensor->scalar_type() == type;
}

// With parameters in f32, libtorch's kernel returns the mean and 1 / (standard deviation) in f32 too. With 16-bit
// parameters it would compute the same output, but round these two, which the backward pass reads, to 16 bits.
std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& input, c10::SymIntArrayRef shape,
                                              const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                              double eps) {
  const bool widens = has_16_bits(input) && is_of(weight, input.scalar_type());
  return at::cpu::native_layer_norm_symint(input, shape, widens ? wide(weight) : weight, widens ? wide(bias) : bias,
                                           eps);
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& gradient, const Tensor& input,
                                                       c10::SymIntArrayRef shape, const Tensor& mean,
                                                       const Tensor& rstd, const std::optional<Tensor>& weight,
                                                       const std::optional<Tensor>& bias,
                                                       std::array<bool, 3> output_mask) {
  const auto differentiate = at::cpu::native_layer_norm_backward_symint;
  if (!has_16_bits(input)) return differentiate(gradient, input, shape, mean, rstd, weight, bias, output_mask);
  const auto [of_input, of_weight, of_bias] =
      differentiate(wide(gradient), wide(input), shape, wide(mean), wide(rstd), wide(weight), wide(bias), output_mask);
  const auto type = [&](const std::optional<Tensor>& parameter) {
    return parameter && parameter->defined() ? parameter->scalar_type() : input.scalar_type();
  };
  return {rounded(of_input, input.scalar_type()), rounded(of_weight, type(weight)), rounded(of_bias, type(bias))};
}

Tensor embedding_backward(const Tensor& gradient, const Tensor& indices, c10::SymInt rows, c10::SymInt padding_index,
                          bool scales_by_frequency) {
  const auto differentiate = at::cpu::embedding_dense_backward_symint;
  if (!has_16_bits(gradient)) return differentiate(gradient, indices, rows, padding_index, scales_by_frequency);
  const auto of_table = differentiate(wide(gradient), indices, rows, padding_index, scales_by_frequency);
  return rounded(of_table, gradient.scalar_type());
}

Tensor embedding_bag_backward(const Tensor& gradient, const Tensor& indices, const Tensor& bag_of_index,
                              const Tensor& bag_sizes, const Tensor& maximum_indices, c10::SymInt rows,
                              bool scales_by_frequency, int64_t mode, const std::optional<Tensor>& weights,
                              int64_t padding_index) {
  const auto differentiate = [&](const Tensor& gradient, const std::optional<Tensor>& weights) {
    return at::cpu::_embedding_bag_dense_backward_symint(gradient, indices, bag_of_index, bag_sizes, maximum_indices,
                                                         rows, scales_by_frequency, mode, weights, padding_index);
  };
  if (!has_16_bits(gradient)) return differentiate(gradient, weights);
  return rounded(differentiate(wide(gradient), wide(weights)), gradient.scalar_type());
}

// The gradient of an indexed tensor, and index_put with `accumulates`.
Tensor& index_put(Tensor& self, const c10::List<std::optional<Tensor>>& indices, const Tensor& values,
                  bool accumulates, bool is_unsafe) {
  const bool widens = accumulates && has_16_bits(self) && values.scalar_type() == self.scalar_type();
  if (!widens) return at::cpu::_index_put_impl_(self, indices, values, accumulates, is_unsafe);
  auto sums = wide(self);
  at::cpu::_index_put_impl_(sums, indices, wide(values), accumulates, is_unsafe);
  return self.copy_(sums);
}

// Registers the functions when the program starts.
const auto registered = cpu_kernels::replace(__FILE__, __LINE__, [](torch::Library& library) {
  library.impl("native_layer_norm", TORCH_FN(layer_norm));
  library.impl("native_layer_norm_backward", TORCH_FN(layer_norm_backward));
  library.impl("embedding_dense_backward", TORCH_FN(embedding_backward));
  library.impl("_embedding_bag_dense_backward", TORCH_FN(embedding_bag_backward));
  library.impl("_index_put_impl_", TORCH_FN(index_put));
});

}  // namespace
}  // namespace amp::cpu_sums
