// The norm and the addition in x + f(norm(x)) on CUDA devices, as in pre-norm transformers
// (kernels/residual_norm.cu). One kernel adds up the gradients of both uses of x (norm_rows.h).

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/result_type.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "column_sums.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/residual_norm.cu.h"
#include "norm_rows.h"
#include "cached_cast.h"
#include "own_kernels.h"

namespace amp::residual_norm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto cuda = c10::DeviceType::CUDA;
// The numbers of warps and of threads in a block. kernels/residual_norm.cu has the same values.
constexpr int warps = 8, threads = 32 * warps;
// The number of columns that the 32 lanes of a warp process together, with four columns per lane.
constexpr int64_t columns_of_a_pack = 128;

amp::KernelSource& source() {
  static amp::KernelSource source("residual_norm.cu", amp_kernels_residual_norm);
  return source;
}

// Returns the dtype to which autocast would cast the output. Without autocast, returns the dtype of the output.
at::ScalarType twin_dtype(at::ScalarType out) {
  return at::autocast::is_autocast_enabled(cuda) ? at::autocast::get_autocast_dtype(cuda) : out;
}

amp::Types types_of(at::ScalarType stream, at::ScalarType out, at::ScalarType twin,
                    int64_t columns) {
  const auto* name = amp::kernel_dtype(stream);
  return {name, name, amp::kernel_dtype(out), amp::kernel_dtype(twin),
          std::to_string(columns / columns_of_a_pack)};
}

struct AmpResidualNorm : torch::autograd::Function<AmpResidualNorm> {
  // Returns the stream unchanged, the norm of the stream, and the cached cast of the norm if there is one. With
  // `narrow`, the cast is returned in place of the norm.
  static variable_list forward(AutogradContext* context, const at::Tensor& input,
                               const at::Tensor& weight, const at::Tensor& bias, double eps,
                               bool narrow) {
    const auto own = weight.scalar_type(), cast = twin_dtype(own);
    const auto columns = weight.numel();
    const auto wide = own == at::kDouble ? at::kDouble : at::kFloat;
    const auto plain = weight.options().requires_grad(false);
    const auto means = at::empty({input.numel() / columns}, plain.dtype(wide));
    const auto inverses = at::empty_like(means);
    variable_list out{input};
    if (cast == own || !narrow) out.push_back(at::empty(input.sizes(), plain));
    if (cast != own) out.push_back(at::empty(input.sizes(), plain.dtype(cast)));
    const auto& last = out.back();
    const bool has_twin = cast != own, has_own = out.size() > 2 || !has_twin;
    int rows = static_cast<int>(means.numel());
    const void *in = input.const_data_ptr(), *w = weight.const_data_ptr(),
               *b = bias.const_data_ptr();
    void *m = amp::data(means), *i = amp::data(inverses), *o = has_own ? amp::data(out[1]) : nullptr,
         *twin = has_twin ? amp::data(last) : nullptr;
    void* arguments[] = {&in, &w, &b, &eps, &rows, &m, &i, &o, &twin};
    source().launch("forward", types_of(input.scalar_type(), own, cast, columns), input.device(),
                    static_cast<unsigned>((rows + warps - 1) / warps), threads, arguments);
    context->save_for_backward({input, weight, bias, means, inverses});
    // The stream or the norm may have no gradient. The missing gradient then stays undefined, and autograd does not
    // fill it with zeros.
    context->set_materialize_grads(false);
    context->saved_data["cast"] = static_cast<int64_t>(cast);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& given) {
    const auto saved = context->get_saved_variables();
    const auto &input = saved.at(0), &weight = saved.at(1), &means = saved.at(3);
    const auto cast = static_cast<at::ScalarType>(context->saved_data.at("cast").toInt());
    const bool has_own = given.size() > 2 || cast == weight.scalar_type();
    const auto own_given = has_own ? given.at(1) : at::Tensor();
    const auto twin_given = cast == weight.scalar_type() ? at::Tensor() : given.back();
    if (!own_given.defined() && !twin_given.defined()) return {given.at(0), {}, {}, {}, {}};
    if (c10::GradMode::is_enabled()) return differentiable(saved, {given.at(0), own_given, twin_given});
    const auto found = amp::norm_rows::backward({input, weight, means, saved.at(4), cast},
                                                {given.at(0), own_given, twin_given},
                                                amp::Dropout(0.0, input.device()),
                                                cast != input.scalar_type());
    if (found.branch.defined()) amp::note_twin(found.in, found.branch);
    amp::note_column_sums(found.branch.defined() ? found.branch : found.in, found.column_sums);
    return {found.in, found.weight, found.bias, {}, {}};
  }

  // Computes the gradients with operations that build an autograd graph, for second derivatives.
  static variable_list differentiable(const variable_list& saved, const variable_list& given) {
    const auto &weight = saved.at(1), &bias = saved.at(2);
    const auto input = saved.at(0).to(weight.scalar_type());
    auto whole = given.at(1);
    if (given.at(2).defined()) {
      const auto wide = given.at(2).to(weight.scalar_type());
      whole = whole.defined() ? whole + wide : wide;
    }
    auto sizes = input.sizes().vec();
    sizes.back() = 1;
    auto [input_grad, weight_grad, bias_grad] = at::native_layer_norm_backward(
        whole, input, weight.sizes(), saved.at(3).view(sizes), saved.at(4).view(sizes), weight, bias,
        {true, true, true});
    auto stream = input_grad.to(saved.at(0).scalar_type());
    if (given.at(0).defined()) stream = stream + given.at(0);
    return {stream, weight_grad, bias_grad, {}, {}};
  }
};

// Computes stream + branch. If the gradient of the stream has a cached cast, the cast becomes the gradient of a
// 16-bit branch.
struct AmpResidualAdd : torch::autograd::Function<AmpResidualAdd> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& stream,
                            const at::Tensor& branch) {
    context->saved_data["branch"] = static_cast<int64_t>(branch.scalar_type());
    if (!amp::is_aligned(stream) || !amp::is_aligned(branch) || stream.numel() == 0) {
      return at::add(stream, branch);
    }
    const auto out = at::empty(stream.sizes(), stream.options().requires_grad(false));
    const void *from = stream.const_data_ptr(), *added = branch.const_data_ptr();
    void* to = out.mutable_data_ptr();
    long long count = out.numel();
    void* arguments[] = {&from, &added, &to, &count};
    constexpr long long per_block = 256 * 4;
    source().launch("add", types_of(stream.scalar_type(), stream.scalar_type(), branch.scalar_type(),
                                    columns_of_a_pack),
                    out.device(), static_cast<unsigned>((count + per_block - 1) / per_block), 256,
                    arguments);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto dtype = static_cast<at::ScalarType>(context->saved_data.at("branch").toInt());
    const auto& grad = grads.at(0);
    if (grad.scalar_type() == dtype) return {grad, grad};
    const auto twin = c10::GradMode::is_enabled() ? at::Tensor() : amp::known_beside<amp::Twin>(grad);
    const bool is_known = twin.defined() && twin.scalar_type() == dtype;
    return {grad, is_known ? twin : grad.to(dtype)};
  }
};

// Returns whether the kernels support these arguments: rows on a CUDA device, with a multiple of 128 columns.
bool fits(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
  constexpr int64_t largest = std::numeric_limits<int>::max();
  const auto columns = weight.numel();
  if (!amp::own_kernels() || !input.is_cuda() || input.dim() == 0 || !amp::norm_rows::fits(columns) || input.size(-1) != columns || input.numel() == 0 ||
      input.numel() / columns > largest - threads || weight.device() != input.device() ||
      !amp::is_aligned(input) || !amp::is_aligned(weight) || !amp::is_aligned(bias) ||
      bias.scalar_type() != weight.scalar_type() || bias.numel() != columns) {
    return false;
  }
  const auto given = input.scalar_type(), out = weight.scalar_type();
  if (amp::kernel_dtype(given) == nullptr || amp::kernel_dtype(out) == nullptr) return false;
  const bool autocast = at::autocast::is_autocast_enabled(cuda);
  // Autocast runs layer norm in f32, with f32 weights.
  if (autocast && out != at::kFloat) return false;
  return given == out || (autocast && amp::is_half(given));
}

}  // namespace

extern "C" {

// Writes the layer norm of `input` along the last dimension to `normal`, a new tensor. With `narrow`, the norm has the
// dtype of autocast. Writes a new handle of `input` to `stream`. The caller later passes the stream to
// amp_residual_add, which adds the branch. Writes nothing if the kernels do not support these arguments.
int amp_residual_norm(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias,
                      double eps, int narrow, at::Tensor** stream, at::Tensor** normal) {
  return amp::guarded([&] {
    if (!fits(*input, *weight, *bias)) return;
    const auto made = AmpResidualNorm::apply(*input, *weight, *bias, eps, narrow != 0);
    if (made.size() > 2) amp::note_twin(made.at(1), made.at(2));
    auto whole = std::make_unique<at::Tensor>(made.at(0));
    *normal = new at::Tensor(made.at(1));
    *stream = whole.release();
  });
}

// Computes stream + branch. Writes a new tensor to `out`.
int amp_residual_add(const at::Tensor* stream, const at::Tensor* branch, at::Tensor** out) {
  return amp::guarded([&] {
    const bool ours = amp::own_kernels() && stream->is_cuda() && branch->device() == stream->device() &&
                      stream->sizes() == branch->sizes() &&
                      amp::kernel_dtype(stream->scalar_type()) != nullptr &&
                      amp::kernel_dtype(branch->scalar_type()) != nullptr &&
                      at::result_type(*stream, *branch) == stream->scalar_type();
    *out = new at::Tensor(ours ? AmpResidualAdd::apply(*stream, *branch)
                               : at::add(*stream, *branch));
  });
}

}  // extern "C"

}  // namespace amp::residual_norm
