// Matrix products and convolutions of f16 and bf16 tensors on x86 CPUs without AVX-512. For these dtypes on such CPUs
// libtorch has no fast kernels: its plain loops take 10 to 50 times as long as its f32 kernels (AMD EPYC with AVX2).
// The functions of this file cast the factors to f32, call the f32 kernel, and round the result once. libtorch's loops
// also sum in f32 and round once, so the two results differ only by the order of the f32 sums.
//
// The functions replace libtorch's kernels of these operators in the whole process. All other dtypes are passed on to
// libtorch's kernel.

#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_addmm_activation_cpu_dispatch.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/addmv_cpu_dispatch.h>
#include <ATen/ops/baddbmm_cpu_dispatch.h>
#include <ATen/ops/bmm_cpu_dispatch.h>
#include <ATen/ops/convolution_backward_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/convolution_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <ATen/ops/mv_compositeexplicitautograd_dispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

namespace amp::cpu_products {
namespace {

using at::Scalar;
using at::Tensor;

bool is_narrow(const Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

// Returns whether all tensors have the same narrow dtype. For different dtypes libtorch's kernel reports the error.
template <typename... Rest>
bool are_narrow(const Tensor& first, const Rest&... rest) {
  return is_narrow(first) && ((rest.scalar_type() == first.scalar_type()) && ...);
}

Tensor wide(const Tensor& tensor) { return tensor.to(at::kFloat); }

// Writes a result to the tensor that the caller passed for it.
Tensor& write(Tensor& out, const Tensor& result) {
  at::native::resize_output(out, result.sizes());
  return out.copy_(result);
}

// A product of two factors: mm, bmm and mv.
template <auto Product, auto Into>
struct Two {
  static Tensor functional(const Tensor& a, const Tensor& b) {
    return are_narrow(a, b) ? Product(wide(a), wide(b)).to(a.scalar_type()) : Product(a, b);
  }
  static Tensor& out(const Tensor& a, const Tensor& b, Tensor& out) {
    return are_narrow(a, b, out) ? write(out, Product(wide(a), wide(b))) : Into(a, b, out);
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
    return are_narrow(self, a, b) ? widened(self, a, b, beta, alpha).to(self.scalar_type())
                                  : Sum(self, a, b, beta, alpha);
  }
  static Tensor& out(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                     const Scalar& alpha, Tensor& out) {
    return are_narrow(self, a, b, out) ? write(out, widened(self, a, b, beta, alpha))
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
  return are_narrow(self, a, b)
             ? product(wide(self), wide(a), wide(b), beta, alpha, use_gelu).to(self.scalar_type())
             : product(self, a, b, beta, alpha, use_gelu);
}

Tensor& addmm_activation_out(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                             const Scalar& alpha, bool use_gelu, Tensor& out) {
  if (!are_narrow(self, a, b, out)) {
    return at::cpu::_addmm_activation_outf(self, a, b, beta, alpha, use_gelu, out);
  }
  const auto result = at::cpu::_addmm_activation(wide(self), wide(a), wide(b), beta, alpha, use_gelu);
  return write(out, result);
}

// A convolution calls further operators. Autocast would cast their f32 inputs back to 16 bits, so it is switched off.
using WithoutAutocast = c10::impl::ExcludeDispatchKeyGuard;

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                   bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  const auto convolve = [&](const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
    return at::compositeexplicitautograd::convolution_symint(input, weight, bias, stride, padding, dilation,
                                                             transposed, output_padding, groups);
  };
  const bool has_bias = bias && bias->defined();
  if (!are_narrow(input, weight, has_bias ? *bias : input)) return convolve(input, weight, bias);
  const WithoutAutocast guard(c10::autocast_dispatch_keyset);
  const auto wide_bias = has_bias ? std::optional(wide(*bias)) : std::nullopt;
  return convolve(wide(input), wide(weight), wide_bias).to(input.scalar_type());
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
  if (!are_narrow(gradient, input, weight)) return differentiate(gradient, input, weight);
  const WithoutAutocast guard(c10::autocast_dispatch_keyset);
  auto [of_input, of_weight, of_bias] = differentiate(wide(gradient), wide(input), wide(weight));
  const auto rounded = [&](const Tensor& wide) {
    return wide.defined() ? wide.to(input.scalar_type()) : wide;
  };
  return {rounded(of_input), rounded(of_weight), rounded(of_bias)};
}

bool lacks_kernels() {
#if defined(__x86_64__)
  return at::get_cpu_capability() != "AVX512";
#else
  return false;
#endif
}

// Registers the functions when the program starts, if the CPU or ATEN_CPU_CAPABILITY excludes AVX-512.
std::unique_ptr<torch::Library> register_products() {
  if (!lacks_kernels()) return nullptr;
  // libtorch warns when a kernel is replaced.
  struct Silent final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  auto library = std::make_unique<torch::Library>(torch::Library::IMPL, "aten", c10::DispatchKey::CPU,
                                                  __FILE__, __LINE__);
  library->impl("mm", TORCH_FN(Mm::functional));
  library->impl("mm.out", TORCH_FN(Mm::out));
  library->impl("bmm", TORCH_FN(Bmm::functional));
  library->impl("bmm.out", TORCH_FN(Bmm::out));
  library->impl("mv", TORCH_FN(Mv::functional));
  library->impl("mv.out", TORCH_FN(Mv::out));
  library->impl("addmm", TORCH_FN(Addmm::functional));
  library->impl("addmm.out", TORCH_FN(Addmm::out));
  library->impl("addmm_", TORCH_FN(Addmm::in_place));
  library->impl("baddbmm", TORCH_FN(Baddbmm::functional));
  library->impl("baddbmm.out", TORCH_FN(Baddbmm::out));
  library->impl("baddbmm_", TORCH_FN(Baddbmm::in_place));
  library->impl("addmv", TORCH_FN(Addmv::functional));
  library->impl("addmv.out", TORCH_FN(Addmv::out));
  library->impl("addmv_", TORCH_FN(Addmv::in_place));
  library->impl("_addmm_activation", TORCH_FN(addmm_activation));
  library->impl("_addmm_activation.out", TORCH_FN(addmm_activation_out));
  library->impl("convolution", TORCH_FN(convolution));
  library->impl("convolution_backward", TORCH_FN(convolution_backward));
  return library;
}

const auto registered = register_products();

}  // namespace
}  // namespace amp::cpu_products
