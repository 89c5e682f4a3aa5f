// Connectionist temporal classification (Graves et al. 2006). The path of an example with n labels goes
// through 2n + 1 states: each label, with blanks before, between and after them. Odd states are labels.
// All probabilities are stored as logarithms.
//
// The kernels read the lengths on the device. An example with an invalid length or label has the
// loss NaN. Sums are added up in a fixed order, so that the same arguments give the same bits.

constexpr long long padding = -100;

__device__ float logarithm(float x) { return logf(x); }
__device__ double logarithm(double x) { return log(x); }

__device__ T infinity() { return static_cast<T>(__int_as_float(0x7f800000)); }
__device__ T not_a_number() { return static_cast<T>(__int_as_float(0x7fffffff)); }

// Returns log(exp(a) + exp(b) + exp(c)).
__device__ T log_of_sum(T a, T b, T c) {
  T largest = a > b ? a : b;
  if (c > largest) largest = c;
  if (largest == -infinity()) return largest;
  return largest +
         logarithm(exponential(a - largest) + exponential(b - largest) + exponential(c - largest));
}

struct Example {
  const T* log_probs;
  const long long* labels;
  long long length, count;
  // The index of the example's first value in a tensor [examples, steps, width] with a value for each
  // step and state.
  long long first;
  int width, classes, blank;

  __device__ Example(const Examples& all, int at)
      : log_probs(static_cast<const T*>(all.log_probs) +
                  static_cast<long long>(at) * all.steps * all.classes),
        labels(all.labels + static_cast<long long>(at) * all.most_labels),
        length(all.lengths[at]),
        count(all.counts[at]),
        width(2 * all.most_labels + 1),
        classes(all.classes),
        blank(all.blank) {
    first = static_cast<long long>(at) * all.steps * width;
  }

  __device__ int states() const { return static_cast<int>(2 * count + 1); }

  // Returns whether a path may go to this state from the label before it, without the blank between
  // the two labels.
  __device__ bool may_skip_blank(int state) const {
    return state % 2 == 1 && state > 1 && labels[state / 2] != labels[state / 2 - 1];
  }

  __device__ T log_prob(int step, int state) const {
    const long long class_of = state % 2 == 0 ? blank : labels[state / 2];
    return log_probs[static_cast<long long>(step) * classes + class_of];
  }
};

// Returns whether the example's length and labels are valid. Must be called by all threads of the
// block.
__device__ bool is_valid(const Examples& all, const Example& example) {
  bool valid = example.length >= 0 && example.length <= all.steps;
  for (int i = threadIdx.x; i < all.most_labels; i += blockDim.x) {
    const long long label = example.labels[i];
    const bool is_class = label >= 0 && label < all.classes && label != all.blank;
    valid = valid && (i < example.count ? is_class : label == padding);
  }
  return __syncthreads_and(valid);
}

// Each block processes an example. It computes the loss and writes it to `exact`. For the backward
// pass it computes, for each step and state, the probability of all paths from the start to this
// state. `losses` gets the same loss, but 0 for an infinite loss with `zero_infinity`.
extern "C" __global__ void forward(Examples all, bool zero_infinity, T* from_start, T* exact,
                                   T* losses) {
  const Example example(all, blockIdx.x);
  T loss = not_a_number();
  if (is_valid(all, example)) {
    const int states = example.states();
    T* now = from_start + example.first;
    for (int t = 0; t < example.length; ++t, now += example.width) {
      const T* before = now - example.width;
      for (int s = threadIdx.x; s < states; s += blockDim.x) {
        T reached = s < 2 ? 0 : -infinity();
        if (t > 0) {
          const T neighbour = s > 0 ? before[s - 1] : -infinity();
          const T label = example.may_skip_blank(s) ? before[s - 2] : -infinity();
          reached = log_of_sum(before[s], neighbour, label);
        }
        now[s] = reached + example.log_prob(t, s);
      }
      __syncthreads();
    }
    if (example.length == 0) {
      loss = example.count == 0 ? 0 : infinity();
    } else {
      const T* last = now - example.width;
      const T label = states > 1 ? last[states - 2] : -infinity();
      loss = -log_of_sum(last[states - 1], label, -infinity());
    }
  }
  if (threadIdx.x != 0) return;
  exact[blockIdx.x] = loss;
  losses[blockIdx.x] = zero_infinity && loss == infinity() ? 0 : loss;
}

// Each block processes an example with a finite loss. It computes, for each step and state, the
// probability of all paths from this state to the end.
extern "C" __global__ void backward(Examples all, const T* exact, T* to_end) {
  if (!(exact[blockIdx.x] < infinity())) return;
  const Example example(all, blockIdx.x);
  const int states = example.states();
  T* now = to_end + example.first + (example.length - 1) * example.width;
  for (int t = static_cast<int>(example.length) - 1; t >= 0; --t, now -= example.width) {
    const T* after = now + example.width;
    for (int s = threadIdx.x; s < states; s += blockDim.x) {
      T left = s >= states - 2 ? 0 : -infinity();
      if (t + 1 < example.length) {
        const T neighbour = s + 1 < states ? after[s + 1] : -infinity();
        const bool may_skip = s + 2 < states && example.may_skip_blank(s + 2);
        left = log_of_sum(after[s], neighbour, may_skip ? after[s + 2] : -infinity());
      }
      now[s] = left + example.log_prob(t, s);
    }
    __syncthreads();
  }
}

// Each block computes the gradients of the log probabilities of a step. As in libtorch, the log
// probabilities must be the output of a log-softmax, whose derivative the gradients include. `grad`
// are the gradients of the losses.
extern "C" __global__ void gradients(Examples all, bool zero_infinity, const T* from_start,
                                     const T* to_end, const T* exact, const T* grad, T* out) {
  const int at = blockIdx.x / all.steps, t = blockIdx.x % all.steps;
  const Example example(all, at);
  const T loss = exact[at], factor = grad[at];
  const T* log_probs = example.log_probs + static_cast<long long>(t) * all.classes;
  T* row = out + static_cast<long long>(blockIdx.x) * all.classes;
  const bool is_nan = loss != loss, is_finite = loss < infinity();
  const bool is_zero = !is_nan && (t >= example.length || (!is_finite && zero_infinity));
  for (int c = threadIdx.x; c < all.classes; c += blockDim.x) {
    const T gradient = is_finite ? exponential(log_probs[c]) * factor : not_a_number();
    row[c] = is_zero ? 0 : gradient;
  }
  if (is_zero || !is_finite) return;
  const T* start = from_start + example.first + static_cast<long long>(t) * example.width;
  const T* end = to_end + example.first + static_cast<long long>(t) * example.width;
  // Returns the probability, given the labels, that the path is in state `s` at this step. Both
  // `start` and `end` contain the probability of the state's class, so it is divided out once.
  const auto share = [&](int s) -> T {
    const T both = start[s] + end[s];
    return both == -infinity() ? T(0) : exponential(both + loss - example.log_prob(t, s));
  };
  double blanks = 0;
  for (int s = 2 * threadIdx.x; s < example.states(); s += 2 * blockDim.x) blanks += share(s);
  // `block_sum` also waits until all threads have written `row`.
  blanks = block_sum(blanks);
  if (threadIdx.x == 0) {
    row[all.blank] = (exponential(log_probs[all.blank]) - static_cast<T>(blanks)) * factor;
  }
  for (int i = threadIdx.x; i < example.count; i += blockDim.x) {
    const long long label = example.labels[i];
    // If a label occurs several times, the thread of its first occurrence adds up all occurrences.
    bool is_first = true;
    for (int other = 0; other < i; ++other) is_first = is_first && example.labels[other] != label;
    if (!is_first) continue;
    T shares = 0;
    for (int other = i; other < example.count; ++other) {
      if (example.labels[other] == label) shares += share(2 * other + 1);
    }
    row[label] = (exponential(log_probs[label]) - shares) * factor;
  }
}
