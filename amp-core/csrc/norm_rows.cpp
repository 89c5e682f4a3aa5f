#include "norm_rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <string>

#include "kernel.h"
#include "kernels/norm_rows.cu.h"

namespace amp::norm_rows {
namespace {

// The largest number of warps in a block, and the number of sums for each column. kernels/norm_rows.cu has the same
// values.
constexpr int most_warps = 8, sums = 3;
// The number of columns that the 32 lanes of a warp process together, with four columns per lane.
constexpr int64_t columns_of_a_pack = 128;
// The largest number of columns. The registers of a lane have room for eight times four columns.
constexpr int64_t most_columns = 8 * columns_of_a_pack;

// The arguments of the kernels. This struct and the next struct have the same layout as those in
// kernels/norm_rows.cu.
struct Behind {
  const void *in, *stream_grads, *grads, *twin_grads, *weights, *means, *inverses;
};

struct Gradients {
  void *in, *branch, *parts;
};

amp::KernelSource& source() {
  static amp::KernelSource source("norm_rows.cu", amp_kernels_norm_rows);
  return source;
}

}  // namespace

bool fits(int64_t columns) {
  return columns > 0 && columns <= most_columns && columns % columns_of_a_pack == 0;
}

Outgoing backward(const Normalised& from, const Incoming& given, const amp::Dropout& before,
                  bool wants_branch) {
  const auto &in = from.in, &weight = from.weight, &means = from.means;
  const auto stream = amp::aligned(given.stream), grad = amp::aligned(given.out),
             twin = amp::aligned(given.twin);
  const Behind behind{in.const_data_ptr(),     amp::const_data(stream), amp::const_data(grad),
                      amp::const_data(twin),   weight.const_data_ptr(), means.const_data_ptr(),
                      from.inverses.const_data_ptr()};
  int rows = static_cast<int>(means.numel());
  const auto columns = weight.numel();
  // The largest number of blocks: two for each of the 132 multiprocessors of a Hopper GPU. The number is the same on
  // every GPU, because the order of the sums, and so their rounding, depends on it.
  constexpr int most_blocks = 264;
  // The largest number of rows for which a block has four warps instead of eight, if two warps share a row. Blocks of
  // four warps process two rows each. Blocks of eight warps would process eight rows each, four at a time, so that few
  // rows would occupy few multiprocessors.
  constexpr int few_rows = 256;
  const bool has_small_blocks = rows <= few_rows && columns % (2 * columns_of_a_pack) == 0;
  const int warps = has_small_blocks ? 4 : most_warps;
  const int rows_of_block = has_small_blocks ? 2 : most_warps;
  int blocks = std::min((rows + rows_of_block - 1) / rows_of_block, most_blocks);
  Outgoing out;
  out.in = at::empty_like(in);
  if (wants_branch) out.branch = at::empty_like(in, in.options().dtype(from.cast));
  const auto parts = at::empty({blocks, sums, columns}, means.options());
  const Gradients to{amp::data(out.in), amp::data(out.branch), amp::data(parts)};
  const auto* name = amp::kernel_dtype(in.scalar_type());
  const amp::Types types{name, name, amp::kernel_dtype(weight.scalar_type()),
                         amp::kernel_dtype(from.cast),
                         std::to_string(columns / columns_of_a_pack)};
  auto drops = before;
  void* arguments[] = {const_cast<Behind*>(&behind), const_cast<Gradients*>(&to), &rows, &drops};
  source().launch("backward", types, in.device(), static_cast<unsigned>(blocks),
                  32U * static_cast<unsigned>(warps), arguments);
  out.weight = at::empty_like(weight);
  out.bias = at::empty_like(weight);
  out.column_sums = at::empty({columns}, means.options());
  const void* summed = amp::const_data(parts);
  void *w = amp::data(out.weight), *b = amp::data(out.bias), *c = amp::data(out.column_sums);
  void* rest[] = {&summed, &blocks, &w, &b, &c};
  source().launch("add_parts", types, in.device(), static_cast<unsigned>(sums * columns / 32),
                  32 * most_warps, rest);
  return out;
}

}  // namespace amp::norm_rows
