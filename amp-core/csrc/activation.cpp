#include "activation.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "kernel.h"
#include "kernels/linear.cu.h"

namespace amp::activation {
namespace {

amp::KernelSource& source() {
  static amp::KernelSource source("linear.cu", amp_kernels_linear);
  return source;
}

// Returns whether the matrix is large and has aligned rows. A matrix is large if most of a kernel's time goes into
// reading it. Rows are aligned if each row begins at a multiple of 16 bytes, so that a thread can read 16 bytes at
// once.
bool is_large(const at::Tensor& matrix) {
  constexpr int64_t large = 1 << 21;
  const auto line = 16 / matrix.element_size();
  return matrix.numel() >= large && matrix.size(1) % line == 0 &&
         reinterpret_cast<uintptr_t>(matrix.const_data_ptr()) % 16 == 0;
}

// A kernel that sums columns, the dtypes for which it is compiled, and the number of threads per block.
struct SumKernel {
  const char* name;
  amp::Types types;
  unsigned threads;
};

// Launches `kernel` on `matrix`. Each block sums the columns over up to `part` rows and writes its sums to `sums`.
// `sums` may be undefined if the caller needs only the gradient of the activation's input.
void start_sums(const SumKernel& kernel, const at::Tensor& matrix, const Activated& activated,
                const at::Tensor& sums, long long part, int64_t blocks) {
  const void *from = matrix.const_data_ptr(), *kept = amp::const_data(activated.kept);
  void *to = amp::data(sums), *passed = amp::data(activated.passed);
  int activation = activated.activation;
  auto dropout = activated.dropout;
  long long rows = matrix.size(0), columns = matrix.size(1);
  void* arguments[] = {&from, &kept, &activation, &dropout, &passed, &to, &rows, &columns, &part};
  source().launch(kernel.name, kernel.types, matrix.device(), static_cast<unsigned>(blocks), kernel.threads,
                  arguments);
}

// Computes `column_sums` for a large matrix.
void large_column_sums(const at::Tensor& matrix, const Activated& activated, const at::Tensor& out) {
  constexpr int64_t rows_per_block = 256;
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const int64_t columns_per_block = 32 * (16 / matrix.element_size());
  const int64_t parts = (rows + rows_per_block - 1) / rows_per_block;
  const int64_t blocks = parts * ((columns + columns_per_block - 1) / columns_per_block);
  const auto wide = matrix.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor sums;
  if (out.defined()) sums = at::empty({parts, columns}, matrix.options().dtype(wide));
  start_sums({"large_column_sums", {amp::kernel_dtype(matrix.scalar_type())}, 256}, matrix, activated, sums,
             rows_per_block, blocks);
  if (out.defined()) column_sums(sums, {}, out);
}

}  // namespace

void column_sums(const at::Tensor& matrix, const Activated& activated, const at::Tensor& out) {
  if (is_large(matrix)) {
    large_column_sums(matrix, activated, out);
    return;
  }
  constexpr int64_t rows_per_block = 1024, columns_per_block = 32;
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const int64_t parts = std::max<int64_t>(1, (rows + rows_per_block - 1) / rows_per_block);
  const int64_t blocks = parts * ((columns + columns_per_block - 1) / columns_per_block);
  if (blocks == 0) return;
  // If the rows are summed in several parts, `sums` holds one row of sums per part. A second call of `column_sums`
  // adds up these rows.
  const bool in_parts = out.defined() && parts > 1;
  const auto wide = matrix.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto sums = in_parts ? at::empty({parts, columns}, matrix.options().dtype(wide)) : out;
  const auto summed = sums.defined() ? sums.scalar_type() : matrix.scalar_type();
  const amp::Types types{amp::kernel_dtype(matrix.scalar_type()), amp::kernel_dtype(summed)};
  start_sums({"column_sums", types, 512}, matrix, activated, sums, rows_per_block, blocks);
  if (in_parts) column_sums(sums, {}, out);
}

void activate(at::Tensor& values, const at::Tensor& bias, amp::Dropout dropout) {
  long long count = values.numel(), columns = values.size(-1);
  if (count == 0) return;
  constexpr long long per_block = 256 * 4;
  void* at = values.mutable_data_ptr();
  const void* addend = amp::const_data(bias);
  void* arguments[] = {&at, &addend, &count, &columns, &dropout};
  source().launch("activate", {amp::kernel_dtype(values.scalar_type())}, values.device(),
                  static_cast<unsigned>((count + per_block - 1) / per_block), 256, arguments);
}

at::Tensor gelu_and_dropout(const at::Tensor& values, int activation, amp::Dropout dropout) {
  const auto in = amp::aligned(values);
  const auto out = at::empty_like(in);
  long long count = in.numel();
  if (count == 0) return out;
  const long long per_block = 256 * (16 / in.element_size());
  const void* from = in.const_data_ptr();
  void* to = out.mutable_data_ptr();
  void* arguments[] = {&from, &to, &count, &activation, &dropout};
  source().launch("gelu_and_dropout", {amp::kernel_dtype(in.scalar_type())}, in.device(),
                  static_cast<unsigned>((count + per_block - 1) / per_block), 256, arguments);
  return out;
}

}  // namespace amp::activation
