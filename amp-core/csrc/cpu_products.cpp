// Matrix products, convolutions and attention of f16 and bf16 tensors on those x86 CPUs for which libtorch has no fast
// kernels of these dtypes. libtorch's plain loops take 10 to 50 times as long as its f32 kernels, and its 16-bit
// attention takes 3 to 5 times as long as its f32 attention (AMD EPYC with AVX2). The functions of this file replace
// these kernels:
// - on CPUs without AVX-512, for both dtypes;
// - on CPUs with AVX-512, but without instructions that multiply f16 numbers, for f16;
// - on CPUs with such instructions, for the gradients of a convolution in f16 (97 times as long as in f32, Intel Xeon).
// The functions cast the factors to f32, call the f32 kernel, and round the result once. libtorch's loops for products
// and convolutions also sum in f32 and round once, so the two results differ only by the order of the f32 sums.
// libtorch's 16-bit attention also rounds the softmax to 16 bits; the f32 kernel does not.
//
// The functions replace libtorch's kernels of these operators in the whole process. All other dtypes are passed on to
// libtorch's kernel.

#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/cpu/Utils.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_addmm_activation_cpu_dispatch.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward_cpu_dispatch.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_cpu_dispatch.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/addmv_cpu_dispatch.h>
#include <ATen/ops/baddbmm_cpu_dispatch.h>
#include <ATen/ops/bmm_cpu_dispatch.h>
#include <ATen/ops/convolution_backward_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/convolution_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <ATen/ops/mv_compositeexplicitautograd_dispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <strings.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>

#include "cpu_kernels.h"
#include "guard.h"

namespace amp::cpu_products {
namespace {

using at::Scalar;
using at::Tensor;
using cpu_kernels::rounded;
using cpu_kernels::wide;

// Returns whether the environment limits oneDNN to instructions that do not multiply f16 numbers. The names of the
// instruction sets are from oneDNN's page "CPU Dispatcher Control". Upper and lower case are not distinguished.
bool onednn_excludes_f16() {
  // oneDNN reads the second variable, the older name of the first, only if the first is not set.
  const auto* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (limit == nullptr) limit = std::getenv("DNNL_MAX_CPU_ISA");
  constexpr std::array without{"SSE41",       "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI",
                               "AVX512_CORE_BF16"};
  return limit != nullptr && std::any_of(without.begin(), without.end(),
                                         [&](const char* name) { return strcasecmp(limit, name) == 0; });
}

// Returns whether oneDNN multiplies f16 numbers with instructions of this CPU.
bool multiplies_f16() {
  const auto has = at::cpu::get_cpu_capabilities();
  constexpr std::array instructions{"avx512_fp16", "amx_fp16", "avx_ne_convert"};
  return !onednn_excludes_f16() && std::any_of(instructions.begin(), instructions.end(), [&](const char* name) {
    const auto found = has.find(name);
    return found != has.end() && found->second.isBool() && found->second.toBool();
  });
}

// The dtypes for whose matrix products and convolutions libtorch has no fast kernels on this CPU.
struct SlowDtypes {
  bool f16 = false, bf16 = false;
};

SlowDtypes slow_dtypes() {
#if defined(__x86_64__)
  const bool has_avx512 = at::get_cpu_capability() == "AVX512";
  return {!has_avx512 || !multiplies_f16(), !has_avx512};
#else
  return {};
#endif
}

const SlowDtypes slow = slow_dtypes();

bool is_slow(at::ScalarType type) {
  return (type == at::kHalf && slow.f16) || (type == at::kBFloat16 && slow.bf16);
}

template <typename... Rest>
bool have_one_dtype(const Tensor& first, const Rest&... rest) {
  return ((rest.scalar_type() == first.scalar_type()) && ...);
}

// Returns whether libtorch's kernel is slow for tensors of this dtype. Returns false for tensors of different dtypes,
// so that libtorch's kernel reports the error.
template <typename... Rest>
bool are_slow(const Tensor& first, const Rest&... rest) {
  return is_slow(first.scalar_type()) && have_one_dtype(first, rest...);
}

// Writes a result to the tensor that the caller passed for it.
Tensor& write(Tensor& out, const Tensor& result) {
  at::native::resize_output(out, result.sizes());
  return out.copy_(result);
}

// A product of two factors: mm, bmm and mv.
template <auto Product, auto Into>
struct Two {
  static Tensor functional(const Tensor& a, const Tensor& b) {
    return are_slow(a, b) ? Product(wide(a), wide(b)).to(a.scalar_type()) : Product(a, b);
  }
  static Tensor& out(const Tensor& a, const Tensor& b, Tensor& out) {
    return are_slow(a, b, out) ? write(out, Product(wide(a), wide(b))) : Into(a, b, out);
  }
};

// The sum beta·self + alpha·a·b: addmm, baddbmm and addmv.
template <auto Sum, auto Into>
struct Three {
  static Tensor widened(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                        const Scalar& alpha) {
    return Sum(wide(self), wide(a), wide(b), beta, alpha);
  }
  static Tensor functional(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                           const Scalar& alpha) {
    return are_slow(self, a, b) ? widened(self, a, b, beta, alpha).to(self.scalar_type())
                                : Sum(self, a, b, beta, alpha);
  }
  static Tensor& out(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                     const Scalar& alpha, Tensor& out) {
    return are_slow(self, a, b, out) ? write(out, widened(self, a, b, beta, alpha))
                                     : Into(self, a, b, beta, alpha, out);
  }
  static Tensor& in_place(Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                          const Scalar& alpha) {
    return out(self, a, b, beta, alpha, self);
  }
};

using Mm = Two<&at::cpu::mm, &at::cpu::mm_outf>;
using Bmm = Two<&at::cpu::bmm, &at::cpu::bmm_outf>;
using Mv = Two<&at::compositeexplicitautograd::mv, &at::compositeexplicitautograd::mv_outf>;
using Addmm = Three<&at::cpu::addmm, &at::cpu::addmm_outf>;
using Baddbmm = Three<&at::cpu::baddbmm, &at::cpu::baddbmm_outf>;
using Addmv = Three<&at::cpu::addmv, &at::cpu::addmv_outf>;

Tensor addmm_activation(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                        const Scalar& alpha, bool use_gelu) {
  const auto product = at::cpu::_addmm_activation;
  return are_slow(self, a, b)
             ? product(wide(self), wide(a), wide(b), beta, alpha, use_gelu).to(self.scalar_type())
             : product(self, a, b, beta, alpha, use_gelu);
}

Tensor& addmm_activation_out(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                             const Scalar& alpha, bool use_gelu, Tensor& out) {
  if (!are_slow(self, a, b, out)) {
    return at::cpu::_addmm_activation_outf(self, a, b, beta, alpha, use_gelu, out);
  }
  const auto result = at::cpu::_addmm_activation(wide(self), wide(a), wide(b), beta, alpha, use_gelu);
  return write(out, result);
}

// A convolution calls further operators. Autocast would cast their f32 inputs back to 16 bits, so autocast is switched
// off.
using WithoutAutocast = c10::impl::ExcludeDispatchKeyGuard;

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                   bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  const auto convolve = [&](const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
    return at::compositeexplicitautograd::convolution_symint(input, weight, bias, stride, padding, dilation,
                                                             transposed, output_padding, groups);
  };
  if (!are_slow(input, weight, bias && bias->defined() ? *bias : input)) return convolve(input, weight, bias);
  const WithoutAutocast guard(c10::autocast_dispatch_keyset);
  return convolve(wide(input), wide(weight), wide(bias)).to(input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, at::OptionalSymIntArrayRef bias_sizes,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> output_mask) {
  const auto differentiate = [&](const Tensor& gradient, const Tensor& input, const Tensor& weight) {
    return at::compositeexplicitautograd::convolution_backward_symint(
        gradient, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups,
        output_mask);
  };
  // oneDNN has no kernels for these gradients in f16.
  const bool widens = gradient.scalar_type() == at::kHalf || is_slow(gradient.scalar_type());
  if (!widens || !have_one_dtype(gradient, input, weight)) return differentiate(gradient, input, weight);
  const WithoutAutocast guard(c10::autocast_dispatch_keyset);
  const auto [of_input, of_weight, of_bias] = differentiate(wide(gradient), wide(input), wide(weight));
  const auto type = input.scalar_type();
  return {rounded(of_input, type), rounded(of_weight, type), rounded(of_bias, type)};
}

std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value, double dropout,
                                     bool is_causal, const std::optional<Tensor>& mask, std::optional<double> scale) {
  const auto attend = at::cpu::_scaled_dot_product_flash_attention_for_cpu;
  if (!are_slow(query, key, value)) return attend(query, key, value, dropout, is_causal, mask, scale);
  auto [attended, logsumexp] =
      attend(wide(query), wide(key), wide(value), dropout, is_causal, wide(mask), scale);
  return {attended.to(query.scalar_type()), logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& gradient, const Tensor& query, const Tensor& key,
                                                      const Tensor& value, const Tensor& attended,
                                                      const Tensor& logsumexp, double dropout, bool is_causal,
                                                      const std::optional<Tensor>& mask, std::optional<double> scale) {
  const auto differentiate = at::cpu::_scaled_dot_product_flash_attention_for_cpu_backward;
  const auto type = query.scalar_type();
  if (!are_slow(gradient, query, key, value, attended)) {
    return differentiate(gradient, query, key, value, attended, logsumexp, dropout, is_causal, mask, scale);
  }
  const auto [of_query, of_key, of_value] =
      differentiate(wide(gradient), wide(query), wide(key), wide(value), wide(attended), logsumexp, dropout, is_causal,
                    wide(mask), scale);
  return {of_query.to(type), of_key.to(type), of_value.to(type)};
}

// Registers the functions when the program starts.
const auto registered = cpu_kernels::replace(__FILE__, __LINE__, [](torch::Library& library) {
#if !defined(__x86_64__)
  return;
#endif
  library.impl("convolution_backward", TORCH_FN(convolution_backward));
  if (!slow.f16) return;
  library.impl("mm", TORCH_FN(Mm::functional));
  library.impl("mm.out", TORCH_FN(Mm::out));
  library.impl("bmm", TORCH_FN(Bmm::functional));
  library.impl("bmm.out", TORCH_FN(Bmm::out));
  library.impl("mv", TORCH_FN(Mv::functional));
  library.impl("mv.out", TORCH_FN(Mv::out));
  library.impl("addmm", TORCH_FN(Addmm::functional));
  library.impl("addmm.out", TORCH_FN(Addmm::out));
  library.impl("addmm_", TORCH_FN(Addmm::in_place));
  library.impl("baddbmm", TORCH_FN(Baddbmm::functional));
  library.impl("baddbmm.out", TORCH_FN(Baddbmm::out));
  library.impl("baddbmm_", TORCH_FN(Baddbmm::in_place));
  library.impl("addmv", TORCH_FN(Addmv::functional));
  library.impl("addmv.out", TORCH_FN(Addmv::out));
  library.impl("addmv_", TORCH_FN(Addmv::in_place));
  library.impl("_addmm_activation", TORCH_FN(addmm_activation));
  library.impl("_addmm_activation.out", TORCH_FN(addmm_activation_out));
  library.impl("convolution", TORCH_FN(convolution));
  library.impl("_scaled_dot_product_flash_attention_for_cpu", TORCH_FN(attention));
  library.impl("_scaled_dot_product_flash_attention_for_cpu_backward", TORCH_FN(attention_backward));
});

}  // namespace

extern "C" {

// Writes whether oneDNN multiplies f16 numbers with instructions of this CPU: the CPU must have such instructions, and
// the environment must not exclude them.
int amp_cpu_multiplies_f16(int* out) {
  return amp::guarded([&] { *out = multiplies_f16(); });
}

}  // extern "C"

}  // namespace amp::cpu_products
