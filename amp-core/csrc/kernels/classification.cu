// Cross entropy and the number of correct predictions, for logits [rows, classes] and class indices
// as targets. For few logits, a single block computes the whole loss, and each thread processes whole
// rows. This takes less time than the launch of the kernel. For many logits, as in a language model,
// each block processes one row.

constexpr long long ignored = -100;

// The values from which the softmax of a row is computed, as exp(x - largest - log_sum).
template <typename W>
struct Row {
  W largest, log_sum;
};

__device__ float logarithm(float x) { return logf(x); }
__device__ double logarithm(double x) { return log(x); }

template <typename W>
__device__ Row<W> row_of(const T* logits, int classes) {
  W largest = widen(logits[0]);
  for (int c = 1; c < classes; ++c) {
    const W value = widen(logits[c]);
    // A NaN replaces the largest value, so that the result is NaN.
    if (value > largest || value != value) largest = value;
  }
  W sum = 0;
  for (int c = 0; c < classes; ++c) sum += exponential(widen(logits[c]) - largest);
  return {largest, logarithm(sum)};
}

// Computes the mean loss of the rows that are not ignored, the number of these rows, and the values of each row that
// the backward pass needs. Runs in a single block.
extern "C" __global__ void cross_entropy(const T* logits, const long long* targets, int rows,
                                         int classes, Wide<T>* mean, double* counted,
                                         Row<Wide<T>>* kept) {
  using W = Wide<T>;
  double sum = 0, count = 0;
  for (int r = threadIdx.x; r < rows; r += blockDim.x) {
    const T* row = logits + static_cast<long long>(r) * classes;
    const auto of = row_of<W>(row, classes);
    kept[r] = of;
    const long long target = targets[r];
    if (target == ignored) continue;
    // As in libtorch, a target that is not a class is a device-side error.
    if (target < 0 || target >= classes) __trap();
    sum += of.log_sum - (widen(row[target]) - of.largest);
    count += 1;
  }
  sum = block_sum(sum);
  __syncthreads();
  count = block_sum(count);
  if (threadIdx.x != 0) return;
  *mean = static_cast<W>(sum / count);
  *counted = count;
}

// Computes the gradient of each logit. Each thread computes one logit's gradient.
extern "C" __global__ void cross_entropy_backward(const T* logits, const long long* targets,
                                                  int rows, int classes, const double* counted,
                                                  const Row<Wide<T>>* kept, const Wide<T>* grad,
                                                  T* out) {
  using W = Wide<T>;
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= rows * classes) return;
  const int r = at / classes;
  const long long target = targets[r];
  W value = 0;
  if (target != ignored) {
    const W share = exponential(widen(logits[at]) - kept[r].largest - kept[r].log_sum);
    value = (share - (at % classes == target)) * (*grad / static_cast<W>(*counted));
  }
  narrow(value, out[at]);
}

// Counts the rows in which the target's class has the largest logit, and the rows whose target is not ignored. If
// several logits are the largest, the first of them counts. The first count is NaN if a row that is not ignored has
// a NaN logit, and the second is NaN if a target is not a class. Runs in a single block.
extern "C" __global__ void hits(const T* logits, const long long* targets, int rows, int classes,
                                double* out) {
  double count = 0, counted = 0;
  for (int r = threadIdx.x; r < rows; r += blockDim.x) {
    const long long target = targets[r];
    if (target == ignored) continue;
    counted += target < 0 || target >= classes ? nan("") : 1;
    const T* row = logits + static_cast<long long>(r) * classes;
    auto largest = widen(row[0]);
    int at = 0;
    for (int c = 1; c < classes && largest == largest; ++c) {
      const auto value = widen(row[c]);
      // The comparison is false for a NaN, so a NaN becomes the largest value and ends the loop.
      if (value <= largest) continue;
      largest = value;
      at = c;
    }
    count += largest == largest ? static_cast<double>(at == target) : nan("");
  }
  count = block_sum(count);
  __syncthreads();
  counted = block_sum(counted);
  if (threadIdx.x != 0) return;
  out[0] = count;
  out[1] = counted;
}

// Returns exp(x). For 16-bit logits the function uses a fast instruction, whose error is far below the rounding error
// of the logits.
__device__ float share_of(float x) {
  if constexpr (sizeof(T) == 2) return __expf(x);
  return expf(x);
}
__device__ double share_of(double x) { return exp(x); }

// Calls `each` for all logits of the block's row, whose address may be unaligned. For a logit outside of
// the aligned lines, `each` gets the class and a reference to the logit. For the remaining logits,
// `each` gets the class of the first logit and a line of 16 bytes.
template <typename U, typename Each>
__device__ void for_row(U* row, int classes, const Each& each) {
  const int offset = static_cast<int>(reinterpret_cast<unsigned long long>(row) % sizeof(Line) / sizeof(T));
  const int before = (Line::length - offset) % Line::length;
  const int head = before < classes ? before : classes;
  const int lines = (classes - head) / Line::length, end = head + lines * Line::length;
  if (static_cast<int>(threadIdx.x) < head) each(threadIdx.x, row[threadIdx.x]);
#pragma unroll 2
  for (int line = threadIdx.x; line < lines; line += blockDim.x) {
    const int first = head + line * Line::length;
    auto* place = reinterpret_cast<Line*>(const_cast<T*>(row + first));
    Line values = *place;
    each.line(first, values);
    if constexpr (Each::writes) *place = values;
  }
  const int rest = end + threadIdx.x;
  if (rest < classes) each(rest, row[rest]);
}

// Three values of a part of a row: the largest logit, the sum of exp(x - largest) over the logits x, and the sum of the
// logits.
template <typename W>
struct Softmax {
  W largest = sizeof(W) == 8 ? W(-1.7976931348623157e308) : W(-3.402823466e38f);
  W exponentials = 0, total = 0;

  // Adds a logit. A NaN makes the two sums NaN.
  __device__ void add(W value) {
    if (value > largest) {
      exponentials *= exponential(largest - value);
      largest = value;
    }
    exponentials += exponential(value - largest);
    total += value;
  }

  __device__ void add(const Softmax& other) {
    const W most = other.largest > largest ? other.largest : largest;
    exponentials = exponentials * exponential(largest - most) +
                   other.exponentials * exponential(other.largest - most);
    largest = most;
    total += other.total;
  }

  __device__ Softmax from_lane(int offset) const {
    Softmax other;
    other.largest = __shfl_xor_sync(~0u, largest, offset);
    other.exponentials = __shfl_xor_sync(~0u, exponentials, offset);
    other.total = __shfl_xor_sync(~0u, total, offset);
    return other;
  }
};

template <typename W>
struct AddToSoftmax {
  static constexpr bool writes = false;
  Softmax<W>& sums;

  __device__ void operator()(int, const T& logit) const { sums.add(widen(logit)); }

  __device__ void line(int, const Line& logits) const {
    W most = sums.largest, part = 0;
    // A NaN is not used as the largest logit, but makes the sums NaN.
    for (int k = 0; k < Line::length; ++k) {
      const W value = widen(logits.at[k]);
      if (value > most) most = value;
    }
    for (int k = 0; k < Line::length; ++k) {
      const W value = widen(logits.at[k]);
      part += share_of(value - most);
      sums.total += value;
    }
    if (most > sums.largest) sums.exponentials *= share_of(sums.largest - most);
    sums.largest = most;
    sums.exponentials += part;
  }
};

// Computes the sums over the block's row. Only the first thread gets the whole sums. When the first
// thread returns, every thread has read its part of the row.
template <typename W>
__device__ Softmax<W> softmax_of(const T* row, int classes) {
  __shared__ Softmax<W> parts[32];
  Softmax<W> sums;
  for_row(row, classes, AddToSoftmax<W>{sums});
  for (int offset = 16; offset > 0; offset /= 2) sums.add(sums.from_lane(offset));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x >= 32) return sums;
  sums = threadIdx.x < (blockDim.x + 31) / 32 ? parts[threadIdx.x] : Softmax<W>();
  for (int offset = 16; offset > 0; offset /= 2) sums.add(sums.from_lane(offset));
  return sums;
}

// Computes the loss of a row from the sums over the row and from the logarithm of the softmax's
// denominator. The fraction `smoothing` of the target is divided equally among all classes. `z` is the
// factor of the square of log Σ exp(logits).
template <typename W>
__device__ W loss_of(const T* row, const Softmax<W>& sums, W log_sum, int classes, long long target,
                     long long left_out, double smoothing, double z) {
  if (target == left_out) return 0;
  // As in libtorch, a target that is not a class is a device-side error.
  if (target < 0 || target >= classes) __trap();
  const W own = widen(row[target]) - sums.largest;
  W loss = log_sum - own;
  if (smoothing != 0) loss += W(smoothing) * (own - (sums.total / classes - sums.largest));
  const W denominator = sums.largest + log_sum;
  if (z != 0) loss += W(z) * denominator * denominator;
  return loss;
}

// Computes the loss of each row, and stores the values of the row that the backward pass needs. Each
// block processes one row.
extern "C" __global__ void __launch_bounds__(1024)
    row_losses(const T* logits, const long long* targets, int classes, long long left_out,
               double smoothing, double z, Wide<T>* losses, Row<Wide<T>>* kept) {
  using W = Wide<T>;
  const T* row = logits + static_cast<long long>(blockIdx.x) * classes;
  const auto sums = softmax_of<W>(row, classes);
  if (threadIdx.x != 0) return;
  const W log_sum = logarithm(sums.exponentials);
  kept[blockIdx.x] = {sums.largest, log_sum};
  losses[blockIdx.x] =
      loss_of(row, sums, log_sum, classes, targets[blockIdx.x], left_out, smoothing, z);
}

// Computes the mean of the losses of the rows that are not ignored, and the number of these rows. Runs
// in a single block.
extern "C" __global__ void mean_of_rows(const Wide<T>* losses, const long long* targets, int rows,
                                        long long left_out, Wide<T>* mean, double* counted) {
  double sum = 0, count = 0;
  for (int r = threadIdx.x; r < rows; r += blockDim.x) {
    if (targets[r] == left_out) continue;
    sum += losses[r];
    count += 1;
  }
  sum = block_sum(sum);
  __syncthreads();
  count = block_sum(count);
  if (threadIdx.x != 0) return;
  *mean = static_cast<Wide<T>>(sum / count);
  *counted = count;
}

template <typename W>
struct ToGradient {
  static constexpr bool writes = true;
  // The values of a row. `largest` and `log_sum` are subtracted from each logit before the
  // exponential. `scale` multiplies the softmax (z-loss). `factor` is the gradient of the row's
  // loss. The smoothed target is `every` for each class, plus `hit` for the true class.
  W largest, log_sum, scale, factor, hit, every;
  long long target;
  bool counts;

  __device__ void operator()(int at, T& logit) const {
    const W share = share_of(widen(logit) - largest - log_sum);
    const W wanted = at == target ? hit + every : every;
    narrow(counts ? (share * scale - wanted) * factor : W(0), logit);
  }

  __device__ void line(int first, Line& logits) const {
    for (int k = 0; k < Line::length; ++k) (*this)(first + k, logits.at[k]);
  }
};

// Replaces the logits of each row by their gradients. Each block processes one row. `grad` is the
// gradient of the mean loss.
extern "C" __global__ void __launch_bounds__(1024)
    row_gradients(T* logits, const long long* targets, int classes, long long left_out,
                  double smoothing, double z, const double* counted, const Row<Wide<T>>* kept,
                  const Wide<T>* grad) {
  using W = Wide<T>;
  const long long target = targets[blockIdx.x];
  const auto of = kept[blockIdx.x];
  T* row = logits + static_cast<long long>(blockIdx.x) * classes;
  for_row(row, classes,
          ToGradient<W>{of.largest, of.log_sum, 1 + 2 * W(z) * (of.largest + of.log_sum),
                        *grad / static_cast<W>(*counted), W(1 - smoothing), W(smoothing / classes), target,
                        target != left_out});
}

// Computes the loss of each row. If `factor` is not 0, replaces the logits of the row by the gradients
// of this loss, times `factor`. Each block processes one row.
extern "C" __global__ void __launch_bounds__(1024)
    row_losses_and_gradients(T* logits, const long long* targets, int classes, long long left_out,
                             double smoothing, double z, double factor, Wide<T>* losses) {
  using W = Wide<T>;
  __shared__ Row<W> of;
  const long long target = targets[blockIdx.x];
  T* row = logits + static_cast<long long>(blockIdx.x) * classes;
  const auto sums = softmax_of<W>(row, classes);
  if (threadIdx.x == 0) {
    const W log_sum = logarithm(sums.exponentials);
    of = {sums.largest, log_sum};
    losses[blockIdx.x] = loss_of(row, sums, log_sum, classes, target, left_out, smoothing, z);
  }
  if (factor == 0) return;
  // The threads wait, because the loss must be computed from the target's logit before the gradient
  // replaces the logit.
  __syncthreads();
  for_row(row, classes,
          ToGradient<W>{of.largest, of.log_sum, 1 + 2 * W(z) * (of.largest + of.log_sum), W(factor),
                        W(1 - smoothing), W(smoothing / classes), target, target != left_out});
}
