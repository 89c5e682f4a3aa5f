#include "cast.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <c10/util/intrusive_ptr.h>

#include <map>
#include <utility>
#include <vector>

#include "kernel.h"
#include "kernels/cast.cu.h"
#include "launch_lists.h"

namespace amp {

namespace cast {
namespace {

#include "kernels/cast.h"

using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
using Key = std::pair<const void*, at::ScalarType>;

struct Use {
  Weak weight;
  at::ScalarType dtype;
};

Key key_of(const at::Tensor& weight, at::ScalarType dtype) {
  return {weight.unsafeGetTensorImpl(), dtype};
}

struct Cast {
  at::Tensor weight, out;
  bool used;
};

struct Filter {
  at::Tensor weight, out;
};

struct Casts {
  // The casts that the current autocast region has made.
  std::map<Key, Cast> made;
  // The casts to channels_last that the current autocast region has made for convolutions.
  std::map<Key, Filter> filters;
  // The weights that the current autocast region has used, in the order of their first use. Each
  // weight occurs once.
  std::vector<Use> used;
  // The weights that each earlier region used. The key of a region is the first weight that it
  // used.
  std::map<Key, std::vector<Use>> known;
};

// The casts are thread-local, because autocast's state is thread-local.
thread_local Casts casts;

void cast_all(const std::vector<at::Tensor>& weights, at::ScalarType dtype) {
  static amp::KernelSource source("cast.cu", amp_kernels_cast);
  std::vector<amp::Start<Tensors>> starts;
  for (const auto& weight : weights) {
    const auto out = at::empty_like(weight, weight.options().dtype(dtype));
    casts.made[key_of(weight, dtype)] = {weight, out, false};
    if (weight.numel() == 0) continue;
    const int at = amp::add(starts, out);
    auto& data = starts.back().tensors.data;
    data[0][at] = const_cast<float*>(weight.const_data_ptr<float>());
    data[1][at] = out.mutable_data_ptr();
  }
  for (auto& start : starts) {
    void* arguments[] = {&start.tensors};
    source.launch("cast", {amp::kernel_dtype(dtype)}, weights[0].device(), start.blocks, 256,
                  arguments);
  }
}

// Returns whether the kernel supports the weight and the weight is a leaf. A leaf, such as a
// parameter, is the same tensor in the next region.
bool is_plain(const at::Tensor& weight) {
  return weight.is_leaf() && weight.is_non_overlapping_and_dense() &&
         weight.scalar_type() == at::kFloat;
}

}  // namespace
}  // namespace cast

at::Tensor cast_weight(const at::Tensor& weight, at::ScalarType dtype) {
  using namespace cast;
  const c10::NoGradGuard no_grad;
  if (!is_plain(weight)) return weight.to(dtype);
  const auto key = key_of(weight, dtype);
  auto found = casts.made.find(key);
  if (found == casts.made.end()) {
    // The weights that one kernel call casts. All of them have the same device and dtype.
    std::vector<at::Tensor> weights{weight};
    if (casts.used.empty()) {
      for (const auto& use : casts.known[key]) {
        auto other = use.weight.lock();
        if (!other || other.get() == weight.unsafeGetTensorImpl() || use.dtype != dtype) continue;
        const at::Tensor tensor(std::move(other));
        if (is_plain(tensor) && tensor.device() == weight.device()) weights.push_back(tensor);
      }
    }
    cast_all(weights, dtype);
    found = casts.made.find(key);
  }
  auto& cast = found->second;
  if (!cast.used) casts.used.push_back({Weak(weight.getIntrusivePtr()), dtype});
  cast.used = true;
  return cast.out;
}

at::Tensor cast_filter(const at::Tensor& weight, at::ScalarType dtype) {
  using namespace cast;
  const c10::NoGradGuard no_grad;
  // If the filter covers a single pixel, contiguous and channels_last are the same layout. One
  // kernel then casts the filter together with other weights.
  if (weight.is_cuda() && is_plain(weight) && weight.is_contiguous() &&
      weight.numel() == weight.size(0) * weight.size(1)) {
    return cast_weight(weight, dtype);
  }
  const auto key = key_of(weight, dtype);
  const auto found = casts.filters.find(key);
  if (found != casts.filters.end()) return found->second.out;
  const auto out = weight.to(dtype, /*non_blocking=*/false, /*copy=*/false,
                             at::MemoryFormat::ChannelsLast);
  if (is_plain(weight)) casts.filters[key] = {weight, out};
  return out;
}

void end_cast_weights() {
  using namespace cast;
  if (!casts.used.empty()) {
    const auto& first = casts.used.front();
    const Key key(first.weight._unsafe_get_target(), first.dtype);
    casts.known[key] = std::move(casts.used);
  }
  casts.used.clear();
  casts.made.clear();
  casts.filters.clear();
  // Removes the weights of models that were freed.
  for (auto at = casts.known.begin(); at != casts.known.end();) {
    at = at->second.empty() || at->second.front().weight.expired() ? casts.known.erase(at)
                                                                    : std::next(at);
  }
}

}  // namespace amp
