// Functions that tch does not bind: the autocast state, the kernels of the gradient scaler, and the foreach kernels.
// Tensors are passed as at::Tensor*. Rust owns every tensor unless a comment says otherwise.

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_clamp_max.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "cast.h"
#include "guard.h"
#include "list.h"

namespace amp::bindings {
namespace {

// Returns whether all elements are finite. Only NaNs and infinities have exponent bits that are all 1. Adding 1 to the
// exponent of such a number carries into the sign bit, and the loop looks for this carry. The loop has no branch, so
// that the compiler can vectorise it for each vector width of the supported CPUs.
template <typename Word>
inline __attribute__((always_inline)) bool all_finite(const Word* words, int64_t count,
                                                      Word exponent) {
  constexpr Word size = static_cast<Word>(-1) >> 1;
  const Word one = size - exponent + 1;
  Word sums = 0;
#pragma GCC unroll 4
  for (int64_t i = 0; i < count; ++i) sums |= static_cast<Word>((words[i] & size) + one);
  return sums <= size;
}

#ifdef __x86_64__
#define AMP_EVERY_WIDTH __attribute__((target_clones("avx2", "default")))
#else
#define AMP_EVERY_WIDTH
#endif

AMP_EVERY_WIDTH bool run_is_finite(const uint16_t* words, int64_t count, uint16_t exponent) {
  return all_finite(words, count, exponent);
}
AMP_EVERY_WIDTH bool run_is_finite(const uint32_t* words, int64_t count, uint32_t exponent) {
  return all_finite(words, count, exponent);
}
AMP_EVERY_WIDTH bool run_is_finite(const uint64_t* words, int64_t count, uint64_t exponent) {
  return all_finite(words, count, exponent);
}

template <typename Word>
bool finite(const void* data, int64_t count, Word exponent) {
  constexpr int64_t grain = 1 << 19;
  const auto* words = static_cast<const Word*>(data);
  // A tensor of at most `grain` elements is checked on this thread, because starting other threads would take longer.
  if (count <= grain) return run_is_finite(words, count, exponent);
  std::atomic<bool> all{true};
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    if (!run_is_finite(words + begin, end - begin, exponent)) all = false;
  });
  return all;
}

bool finite(const at::Tensor& tensor) {
  const auto dense = tensor.expect_contiguous();
  const void* data = dense->const_data_ptr();
  switch (dense->scalar_type()) {
    case at::kHalf: return finite<uint16_t>(data, dense->numel(), 0x7c00);
    case at::kBFloat16: return finite<uint16_t>(data, dense->numel(), 0x7f80);
    case at::kFloat: return finite<uint32_t>(data, dense->numel(), 0x7f800000);
    case at::kDouble: return finite<uint64_t>(data, dense->numel(), 0x7ff0000000000000);
    default:
      throw std::runtime_error("the check for values that are not finite needs f16, bf16, f32 or f64");
  }
}

bool is_host_number(Handle tensor) {
  return tensor->is_cpu() && tensor->scalar_type() == at::kFloat && tensor->numel() == 1;
}

c10::DeviceType device_type(int cuda) {
  return cuda != 0 ? c10::DeviceType::CUDA : c10::DeviceType::CPU;
}

}  // namespace

extern "C" {

// Copies the text of the last error into `buffer`, at most `capacity` bytes, and returns the length of the whole text.
size_t amp_take_error(char* buffer, size_t capacity) {
  const size_t length = amp::last_error.size();
  std::memcpy(buffer, amp::last_error.data(), std::min(length, capacity));
  if (length <= capacity) amp::last_error.clear();
  return length;
}

int amp_autocast_get(int cuda, int* enabled, int* dtype, int* cache) {
  return amp::guarded([&] {
    *enabled = at::autocast::is_autocast_enabled(device_type(cuda));
    *dtype = static_cast<int>(at::autocast::get_autocast_dtype(device_type(cuda)));
    *cache = at::autocast::is_autocast_cache_enabled();
  });
}

int amp_autocast_set(int cuda, int enabled, int dtype, int cache) {
  return amp::guarded([&] {
    at::autocast::set_autocast_enabled(device_type(cuda), enabled != 0);
    at::autocast::set_autocast_dtype(device_type(cuda), static_cast<at::ScalarType>(dtype));
    at::autocast::set_autocast_cache_enabled(cache != 0);
  });
}

int amp_autocast_enter(int* depth) {
  return amp::guarded([&] { *depth = at::autocast::increment_nesting(); });
}

// Leaves one level of nested autocast regions. Leaving the outermost level clears the cache of cast weights.
int amp_autocast_leave(int* depth) {
  return amp::guarded([&] {
    *depth = at::autocast::decrement_nesting();
    if (*depth == 0) {
      at::autocast::clear_cache();
      amp::end_cast_weights();
    }
  });
}

int amp_unscale(const Handle* grads, size_t count, Handle found_inf, Handle inv_scale) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    at::_amp_foreach_non_finite_check_and_unscale_(list(grads, count), *found_inf, *inv_scale);
  });
}

// Returns whether every element of the CPU tensors is finite.
int amp_all_finite(const Handle* tensors, size_t count, int* all) {
  return amp::guarded([&] {
    *all = std::all_of(tensors, tensors + count, [](Handle tensor) { return finite(*tensor); });
  });
}

// Computes the norm of order `ord` of each tensor, and writes it as a new tensor to `norms`. The caller owns the new
// tensors. If `as_f32` is not 0, the norm of f16 and bf16 tensors is accumulated in f32.
int amp_foreach_norm(const Handle* tensors, size_t count, double ord, int as_f32, Handle* norms) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    auto dtype = as_f32 != 0 ? std::optional<at::ScalarType>(at::kFloat) : std::nullopt;
    auto out = at::_foreach_norm(list(tensors, count), ord, dtype);
    for (size_t i = 0; i < count; ++i) norms[i] = new at::Tensor(std::move(out[i]));
  });
}

int amp_foreach_mul(const Handle* tensors, size_t count, Handle factor) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    at::_foreach_mul_(list(tensors, count), *factor);
  });
}

// Adds each tensor of `from` to the tensor at the same index of `to`, in place and without an autograd graph.
int amp_foreach_add_each(const Handle* to, const Handle* from, size_t count) {
  return amp::guarded([&] {
    const c10::NoGradGuard no_grad;
    at::_foreach_add_(list(to, count), list(from, count));
  });
}

// Runs the backward pass of a scalar loss. This pass adds the gradients of the loss to the parameters' gradients. If
// `seed` (f32) is not null, the gradients of the loss are first multiplied by `seed`.
int amp_backward(Handle loss, Handle seed) {
  return amp::guarded([&] {
    loss->backward(seed == nullptr ? at::Tensor()
                                   : seed->to(loss->scalar_type()).expand_as(*loss));
  });
}

int amp_foreach_add(const Handle* tensors, size_t count, double value) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    // Numbers on the CPU, such as the step counts of an optimizer, are increased here without libtorch. libtorch would
    // make one call for each tensor, and these calls would take longer than the optimizer step itself.
    if (std::all_of(tensors, tensors + count, is_host_number)) {
      for (size_t i = 0; i < count; ++i) {
        *tensors[i]->mutable_data_ptr<float>() += static_cast<float>(value);
      }
      return;
    }
    at::_foreach_add_(list(tensors, count), value);
  });
}

int amp_foreach_clamp(const Handle* tensors, size_t count, double low, double high) {
  return amp::guarded([&] {
    c10::NoGradGuard no_grad;
    at::_foreach_clamp_min_(list(tensors, count), low);
    at::_foreach_clamp_max_(list(tensors, count), high);
  });
}

// Returns the list of those gradients that exist. The caller frees the list with amp_grads_drop. For each tensor,
// writes to `grads` a handle of its gradient in the list, or null if the tensor has no gradient.
int amp_grads(const Handle* tensors, size_t count, Handle* grads, amp::Tensors** out) {
  return amp::guarded([&] {
    auto held = std::make_unique<amp::Tensors>();
    // With this capacity the list never moves its elements, so pointers to the elements stay valid.
    held->reserve(count);
    for (size_t i = 0; i < count; ++i) {
      const auto& grad = tensors[i]->grad();
      grads[i] = grad.defined() ? &held->emplace_back(grad) : nullptr;
    }
    *out = held.release();
  });
}

void amp_grads_drop(amp::Tensors* grads) { delete grads; }

// Sets which dtypes the gradients of the tensors may have. The tensors must be leaves. If `any` is not 0, backward
// passes may store gradients of any dtype. If `any` is 0, each gradient must have the dtype of its tensor.
int amp_allow_any_grad_dtype(const Handle* tensors, size_t count, int any) {
  return amp::guarded([&] {
    for (size_t i = 0; i < count; ++i) {
      const auto own = std::make_optional(tensors[i]->scalar_type());
      tensors[i]->set_grad_dtype(any != 0 ? std::nullopt : own);
    }
  });
}

// Drops the gradients of the tensors, so that the next backward pass stores new gradients instead of adding to the old
// ones.
int amp_clear_grads(const Handle* tensors, size_t count) {
  return amp::guarded([&] {
    for (size_t i = 0; i < count; ++i) tensors[i]->mutable_grad().reset();
  });
}

// Returns the address of the tensor's implementation object. Two handles of the same tensor have the same address.
const void* amp_identity(Handle tensor) { return tensor->unsafeGetTensorImpl(); }

}  // extern "C"

}  // namespace amp::bindings
