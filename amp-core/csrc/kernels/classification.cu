// Cross entropy and hits of logits [rows, classes] against classes, where there are so few that one
// block does it in less time than kernels take to start. A thread takes rows, each as a whole.

constexpr long long ignored = -100;

// The softmax of a row is exp(x - largest - log_sum).
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
    // A NaN is kept.
    if (value > largest || value != value) largest = value;
  }
  W sum = 0;
  for (int c = 0; c < classes; ++c) sum += exponential(widen(logits[c]) - largest);
  return {largest, logarithm(sum)};
}

// One block. The mean over the rows that count, how many those are, and what the backward pass needs
// of each row.
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
    // As in libtorch, an error of the device.
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

// A thread for each logit.
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

// One block. How many rows have their largest logit, the first of equal ones, at the target, and how many
// count; NaN where a target is no class.
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
      // A NaN counts as the largest.
      if (value <= largest) continue;
      largest = value;
      at = c;
    }
    count += at == target;
  }
  count = block_sum(count);
  __syncthreads();
  counted = block_sum(counted);
  if (threadIdx.x != 0) return;
  out[0] = count;
  out[1] = counted;
}
