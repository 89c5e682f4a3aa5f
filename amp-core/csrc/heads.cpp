// Splits the product of attention's input projection into the queries, keys and values of each head. On CUDA devices a
// kernel joins the gradients of queries, keys and values into the gradient of the product, and sums the columns of this
// gradient (kernels/heads.cu).

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

#include "column_sums.h"
#include "guard.h"
#include "kernel.h"
#include "kernels/heads.cu.h"
#include "own_kernels.h"

namespace amp::heads {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int parts_of_product = 3;

// The gradients of queries, keys and values, for the kernel. `Heads` in kernels/heads.cu has the same layout.
struct Heads {
  const void* data[parts_of_product];
  long long batch[parts_of_product], head[parts_of_product], place[parts_of_product];
  int heads, width;
};

amp::KernelSource& source() {
  static amp::KernelSource source("heads.cu", amp_kernels_heads);
  return source;
}

int64_t line_of(const at::Tensor& tensor) { return 16 / tensor.element_size(); }

// Returns the gradient if its elements lie in aligned lines of 16 bytes, as the kernel reads them. Otherwise returns a
// contiguous copy.
at::Tensor in_lines(const at::Tensor& grad) {
  const auto line = line_of(grad);
  bool fits = grad.stride(3) == 1 && reinterpret_cast<uintptr_t>(grad.const_data_ptr()) % 16 == 0;
  for (int dimension = 0; dimension < 3; ++dimension) fits &= grad.stride(dimension) % line == 0;
  return fits ? grad : grad.contiguous();
}

// Returns queries, keys and values, each [batch, heads, length, width]. All three are views of the product.
variable_list by_head(const at::Tensor& product, int64_t heads) {
  variable_list out;
  for (const auto& part : product.chunk(parts_of_product, 2)) {
    const at::IntArrayRef sizes = part.sizes();
    out.push_back(part.reshape({sizes[0], sizes[1], heads, sizes[2] / heads}).transpose(1, 2));
  }
  return out;
}

struct AmpSplitHeads : torch::autograd::Function<AmpSplitHeads> {
  static variable_list forward(AutogradContext*, const at::Tensor& product, int64_t heads) {
    return by_head(product, heads);
  }

  static variable_list backward(AutogradContext*, const variable_list& given) {
    const auto sizes = given.at(0).sizes();
    const int64_t batch = sizes[0], heads = sizes[1], length = sizes[2], width = sizes[3];
    const int64_t columns = parts_of_product * heads * width, rows = batch * length;
    if (c10::GradMode::is_enabled()) {
      variable_list joined;
      for (const auto& grad : given) {
        joined.push_back(grad.transpose(1, 2).reshape({batch, length, heads * width}));
      }
      return {at::cat(joined, 2), {}};
    }
    Heads from{};
    variable_list held;
    for (int part = 0; part < parts_of_product; ++part) {
      held.push_back(in_lines(given.at(part)));
      from.data[part] = held.back().const_data_ptr();
      from.batch[part] = held.back().stride(0);
      from.head[part] = held.back().stride(1);
      from.place[part] = held.back().stride(2);
    }
    from.heads = static_cast<int>(heads);
    from.width = static_cast<int>(width);
    constexpr int rows_of_a_part = 256;
    const auto options = given.at(0).options();
    const auto wide = options.dtype() == at::kDouble ? at::kDouble : at::kFloat;
    int parts = static_cast<int>((rows + rows_of_a_part - 1) / rows_of_a_part);
    const auto out = at::empty({batch, length, columns}, options);
    const auto sums = at::empty({parts, columns}, options.dtype(wide));
    const auto total = at::empty({columns}, options.dtype(wide));
    const int64_t columns_of_a_block = 32 * line_of(out);
    const int64_t across = (columns + columns_of_a_block - 1) / columns_of_a_block;
    const amp::Types types{amp::kernel_dtype(out.scalar_type())};
    void *to = amp::data(out), *each = amp::data(sums), *all = amp::data(total);
    long long height = rows;
    int places = static_cast<int>(length), part = rows_of_a_part, width_of_all = static_cast<int>(columns);
    void* arguments[] = {&from, &to, &each, &height, &places, &part};
    source().launch("join_heads", types, out.device(), static_cast<unsigned>(parts * across), 256,
                    arguments);
    void* rest[] = {&each, &parts, &width_of_all, &all};
    source().launch("add_parts", types, out.device(), static_cast<unsigned>((columns + 31) / 32), 256,
                    rest);
    amp::note_column_sums(out, total);
    return {out, {}};
  }
};

// Returns whether the kernel supports the gradients. The elements of each head must fill whole lines of 16 bytes.
bool fits(const at::Tensor& product, int64_t heads) {
  constexpr int64_t largest = std::numeric_limits<int>::max();
  return amp::own_kernels() && product.is_cuda() && product.is_contiguous() && product.numel() > 0 &&
         amp::kernel_dtype(product.scalar_type()) != nullptr && product.size(2) < largest &&
         product.size(0) * product.size(1) < largest &&
         product.size(2) / (parts_of_product * heads) % line_of(product) == 0;
}

}  // namespace

extern "C" {

// Splits [batch, length, 3·heads·width] into queries, keys and values, each [batch, heads, length,
// width], and writes new handles of the views to `out`.
int amp_split_heads(const at::Tensor* product, int64_t heads, at::Tensor** out) {
  return amp::guarded([&] {
    const auto made = fits(*product, heads) ? AmpSplitHeads::apply(*product, heads)
                                            : by_head(*product, heads);
    for (int part = 0; part < parts_of_product; ++part) out[part] = new at::Tensor(made.at(part));
  });
}

}  // extern "C"

}  // namespace amp::heads
