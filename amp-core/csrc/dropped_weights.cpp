// Records which attention weights dropout sets to zero in a forward pass. A later forward pass drops the same weights.

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "guard.h"

namespace amp::dropped_weights {
namespace {

// The dispatch key of libtorch that it reserves for wrappers of operators. This file is the only user of the key.
constexpr auto kKey = c10::DispatchKey::TESTING_ONLY_GenericMode;

// One call of attention with dropout.
struct Call {
  // [..., heads, queries, keys]: whether the weight was kept.
  at::Tensor kept;
  // How far the call moved the random generator.
  uint64_t drawn;
};

struct Masks {
  std::vector<Call> calls;
  // Whether a pass that followed ran other calls than the recorded pass.
  bool differ = false;
};

enum class Pass : int { kRecord = 0, kFollow = 1 };

// The pass of this thread. `masks` is null if there is none.
thread_local Masks* masks = nullptr;
thread_local Pass pass = Pass::kRecord;
// The number of calls so far in a pass that follows.
thread_local size_t calls = 0;

uint64_t position(at::Generator generator) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_offset();
}

void move_to(at::Generator generator, uint64_t position) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_offset(position);
}

// The arguments of scaled_dot_product_attention.
struct Arguments {
  const at::Tensor &query, &key, &value;
  const std::optional<at::Tensor>& mask;
  double p;
  bool causal;
  std::optional<double> scale;
  bool grouped;
};

at::Tensor attend(const Arguments& of) {
  return at::scaled_dot_product_attention(of.query, of.key, of.value, of.mask, of.p, of.causal, of.scale, of.grouped);
}

// Returns a tensor of zeros for which libtorch chooses the same attention kernel as for `like`.
at::Tensor zeros_as(const at::Tensor& like) {
  auto zeros = at::empty_strided(like.sizes(), like.strides(), like.options()).zero_();
  // The tensor is not a leaf, so autocast does not keep its cast in a cache.
  return like.requires_grad() ? zeros.requires_grad_().view(like.sizes()) : zeros;
}

// Finds which weights a call kept. The caller has set the random generator to its position before the call. A kernel
// does not return its mask, and each kernel draws the mask in another order. So this function calls the same kernel with
// queries and keys of zeros, so that all weights are above 0, and with values that copy weights to the output: the value
// of key j + c is 1 in column c, and the output of a query in column c is its weight for key j + c.
at::Tensor find_kept(const Arguments& of, at::Generator generator) {
  const uint64_t before = position(generator);
  const at::Tensor query = zeros_as(of.query), key = zeros_as(of.key);
  const int64_t keys = of.key.size(-2), width = of.value.size(-1);
  auto size = of.query.sizes().vec();
  size.back() = keys;
  const at::Tensor kept = at::empty(size, of.query.options().dtype(at::kBool).requires_grad(false));
  for (int64_t first = 0; first < keys; first += width) {
    const int64_t count = std::min(width, keys - first);
    at::Tensor value = zeros_as(of.value.detach());
    value.narrow(-2, first, count).narrow(-1, 0, count).copy_(at::eye(count, value.options()));
    value = of.value.requires_grad() ? value.requires_grad_().view(value.sizes()) : value;
    move_to(generator, before);
    const at::Tensor weights = attend({query, key, value, of.mask, of.p, of.causal, of.scale, of.grouped});
    kept.narrow(-1, first, count).copy_(weights.detach().narrow(-1, 0, count).gt(0));
  }
  return kept;
}

at::Tensor record(const Arguments& of) {
  at::Generator generator = at::globalContext().defaultGenerator(of.query.device());
  const uint64_t before = position(generator);
  at::Tensor attended = attend(of);
  const uint64_t after = position(generator);
  move_to(generator, before);
  masks->calls.push_back({find_kept(of, generator), after - before});
  move_to(generator, after);
  return attended;
}

// Returns the next recorded call. Returns null if the recorded pass had no such call: then there are no more calls, or
// the weights of the next one have another shape.
const Call* next(at::IntArrayRef weights) {
  const size_t index = calls++;
  if (index < masks->calls.size() && masks->calls[index].kept.sizes() == weights) return &masks->calls[index];
  masks->differ = true;
  return nullptr;
}

void move_by(const at::Tensor& on, uint64_t drawn) {
  const at::Generator generator = at::globalContext().defaultGenerator(on.device());
  move_to(generator, position(generator) + drawn);
}

// Returns the mask as numbers that are added to the scores: 0 for true, and minus infinity for false.
std::optional<at::Tensor> added(const Arguments& of) {
  if (!of.mask || of.mask->scalar_type() != at::kBool) return of.mask;
  return at::zeros(of.mask->sizes(), of.query.options().requires_grad(false))
      .masked_fill(of.mask->logical_not(), -std::numeric_limits<double>::infinity());
}

at::Tensor follow(const Arguments& of) {
  auto weights = of.query.sizes().vec();
  weights.back() = of.key.size(-2);
  const Call* call = next(weights);
  if (call == nullptr) return attend(of);
  move_by(of.query, call->drawn);
  // Recorders of operators must not see the operators that compute the attention here, because another kernel computes
  // it in other passes.
  const at::DisableRecordFunctionGuard unrecorded;
  return std::get<0>(at::_scaled_dot_product_attention_math(of.query, of.key, of.value, added(of), of.p, of.causal,
                                                            call->kept, of.scale, of.grouped));
}

// Replaces scaled_dot_product_attention while this thread has a pass.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const std::optional<at::Tensor>& mask, double p, bool causal, std::optional<double> scale,
                     bool grouped) {
  const c10::impl::ExcludeDispatchKeyGuard inner(kKey);
  const Arguments all{query, key, value, mask, p, causal, scale, grouped};
  if (p == 0 || masks == nullptr || !query.is_cuda()) return attend(all);
  return pass == Pass::kRecord ? record(all) : follow(all);
}

// Registers `attention` in libtorch. All other operators ignore the key. The objects live as long as the process.
void register_once() {
  static const bool registered = [] {
    auto* all = new torch::Library(torch::Library::IMPL, "_", kKey, __FILE__, __LINE__);
    all->fallback(torch::CppFunction::makeFallthrough());
    auto* one = new torch::Library(torch::Library::IMPL, "aten", kKey, __FILE__, __LINE__);
    one->impl("scaled_dot_product_attention", TORCH_FN(attention));
    return true;
  }();
  static_cast<void>(registered);
}

}  // namespace

extern "C" {

int amp_dropped_weights_new(Masks** out) {
  return amp::guarded([&] {
    register_once();
    *out = new Masks;
  });
}

int amp_dropped_weights_free(Masks* freed) {
  return amp::guarded([&] { delete freed; });
}

// Starts a pass of this thread. `of` must live until the pass is stopped.
int amp_dropped_weights_start(Masks* of, int what) {
  return amp::guarded([&] {
    masks = of;
    pass = static_cast<Pass>(what);
    calls = 0;
    c10::impl::tls_set_dispatch_key_included(kKey, true);
  });
}

int amp_dropped_weights_stop() {
  return amp::guarded([] {
    c10::impl::tls_set_dispatch_key_included(kKey, false);
    if (pass == Pass::kFollow && calls != masks->calls.size()) masks->differ = true;
    masks = nullptr;
  });
}

// Returns the number of recorded calls, and whether a pass that followed ran other calls.
int amp_dropped_weights_read(const Masks* of, int64_t* count, int* differ) {
  return amp::guarded([&] {
    *count = static_cast<int64_t>(of->calls.size());
    *differ = of->differ;
  });
}

// Applies dropout to attention weights, [..., heads, queries, keys]. In a pass that follows, drops the weights that the
// recorded pass dropped.
int amp_dropped_weights_dropout(const at::Tensor* weights, double p, at::Tensor** out) {
  return amp::guarded([&] {
    const bool follows = p > 0 && masks != nullptr && pass == Pass::kFollow && weights->is_cuda();
    const Call* call = follows ? next(weights->sizes()) : nullptr;
    if (call == nullptr) {
      *out = new at::Tensor(at::dropout(*weights, p, true));
      return;
    }
    move_by(*weights, call->drawn);
    const double scale = p < 1 ? 1 / (1 - p) : 0;
    *out = new at::Tensor(weights->masked_fill(call->kept.logical_not(), 0).mul(scale));
  });
}

}  // extern "C"

}  // namespace amp::dropped_weights
