// Layer normalisation of the rows of a matrix in training mode. The matrix is the input, or the sum
// of a residual and the input after dropout. GELU and dropout follow if requested. Of the
// activations, the backward pass reads only this matrix. It recomputes the other activations.
//
// T is the dtype of the input, P the dtype of the sum, and Q the dtype of weights and output. R is
// the dtype of the cached cast, which has the values of the output in the dtype of autocast.

struct Layer {
  int rows, columns, gelu;
  double eps;
  // Dropout of the input, before the residual is added, and dropout of the output.
  Dropout before, after;
};

using W = Wide<Q>;

// The largest number of threads in a block. In f64 more threads would need too many registers.
constexpr int most_threads = 512;

__device__ float error_function(float x) { return erff(x); }
__device__ double error_function(double x) { return erf(x); }

// Compute GELU, x·Φ(x), and the derivative of GELU, Φ(x) + x·φ(x). Φ and φ are the distribution and
// the density of the standard normal distribution.
__device__ W normal_share(W x) { return W(0.5) * (1 + error_function(x * W(0.70710678118654752))); }
__device__ W gelu(W x) { return x * normal_share(x); }
__device__ W gelu_slope(W x) {
  return normal_share(x) + x * W(0.39894228040143268) * exponential(x * x * W(-0.5));
}

// Computes the sum over the block. Every thread gets the sum.
__device__ double all_sum(double value) {
  __shared__ double sum;
  // Waits for threads that still read the sum of the previous call.
  __syncthreads();
  value = block_sum(value);
  if (threadIdx.x == 0) sum = value;
  __syncthreads();
  return sum;
}

// Computes the layer norm. Each block processes one row. Without a residual, `sums` is the input.
extern "C" __global__ void __launch_bounds__(most_threads)
    forward(const T* in, const P* residual, const Q* weights, const Q* biases, P* sums, W* means,
            W* inverses, Q* out, R* twin, const Layer layer) {
  const long long row = static_cast<long long>(blockIdx.x) * layer.columns;
  const int first = threadIdx.x * per_thread, stride = blockDim.x * per_thread;

  const Factors before(layer.before);
  W sum = 0;
  for (int column = first; column < layer.columns; column += stride) {
    const long long at = row + column;
    if (residual != nullptr) {
      const auto x = pack_at(in, at);
      auto added = pack_at(residual, at);
      float factors[per_thread];
      before.of(at / per_thread, factors);
      for (int k = 0; k < per_thread; ++k) {
        const auto left = rounded<T>(product(widen(x.at[k]), Wide<T>(factors[k])));
        narrow(widen(added.at[k]) + left, added.at[k]);
      }
      pack_at(sums, at) = added;
    }
    const auto x = pack_at(sums, at);
    for (int k = 0; k < per_thread; ++k) sum += widen(x.at[k]);
  }
  const W mean = all_sum(sum) / layer.columns;
  W squares = 0;
  for (int column = first; column < layer.columns; column += stride) {
    const auto x = pack_at(sums, row + column);
    for (int k = 0; k < per_thread; ++k) {
      const W distance = widen(x.at[k]) - mean;
      squares += distance * distance;
    }
  }
  const W inverse = 1 / sqrt(all_sum(squares) / layer.columns + layer.eps);
  if (threadIdx.x == 0) {
    means[blockIdx.x] = mean;
    inverses[blockIdx.x] = inverse;
  }

  const Factors after(layer.after);
  for (int column = first; column < layer.columns; column += stride) {
    const long long at = row + column;
    const auto x = pack_at(sums, at);
    const auto w = pack_at(weights, column), b = pack_at(biases, column);
    float factors[per_thread];
    after.of(at / per_thread, factors);
    Pack<Q> pack;
    Pack<R> cast;
    for (int k = 0; k < per_thread; ++k) {
      W y = rounded<Q>((widen(x.at[k]) - mean) * inverse * widen(w.at[k]) + widen(b.at[k]));
      if (layer.gelu) y = rounded<Q>(gelu(y));
      narrow(y * factors[k], pack.at[k]);
      narrow(widen(pack.at[k]), cast.at[k]);
    }
    pack_at(out, at) = pack;
    if (twin != nullptr) pack_at(twin, at) = cast;
  }
}

// The tensors that the backward pass reads.
struct Behind {
  const P* sums;
  // The gradients of the output and of the cached cast. One of the two may be null.
  const Q* grads;
  const R* twin_grads;
  const Q *weights, *biases;
  const W *means, *inverses;
};

// Computes, for four neighbours, the normalised values and the gradient of the output before GELU
// and dropout.
__device__ void read(const Behind& behind, const Layer& layer, const Factors& after, int row,
                     int column, W (&normal)[per_thread], W (&grad)[per_thread]) {
  const long long at = static_cast<long long>(row) * layer.columns + column;
  const auto x = pack_at(behind.sums, at);
  W incoming[per_thread] = {};
  if (behind.grads != nullptr) {
    const auto g = pack_at(behind.grads, at);
    for (int k = 0; k < per_thread; ++k) incoming[k] = widen(g.at[k]);
  }
  if (behind.twin_grads != nullptr) {
    const auto g = pack_at(behind.twin_grads, at);
    for (int k = 0; k < per_thread; ++k) incoming[k] = rounded<Q>(incoming[k] + widen(g.at[k]));
  }
  const W mean = behind.means[row], inverse = behind.inverses[row];
  float factors[per_thread];
  after.of(at / per_thread, factors);
  for (int k = 0; k < per_thread; ++k) {
    normal[k] = (widen(x.at[k]) - mean) * inverse;
    grad[k] = rounded<Q>(product(incoming[k], W(factors[k])));
    if (!layer.gelu) continue;
    const W w = widen(behind.weights[column + k]), b = widen(behind.biases[column + k]);
    grad[k] = rounded<Q>(grad[k] * gelu_slope(rounded<Q>(normal[k] * w + b)));
  }
}

// The tensors that the backward pass writes.
struct Gradients {
  // The gradients of the sum and of the input. Each may be null.
  P* sum;
  T* in;
  Q *weight, *bias;
  // If rows are summed in several parts, the sums of each part: [parts, 2, columns].
  W* parts;
};

// Computes the gradients of the elements of one row. Each block processes one row.
__device__ void input_grads(int row, const Behind& behind, const Gradients& out,
                            const Layer& layer) {
  const int first = threadIdx.x * per_thread, stride = blockDim.x * per_thread;
  const Factors before(layer.before), after(layer.after);
  W normal[per_thread], grad[per_thread];

  W sum = 0, products = 0;
  for (int column = first; column < layer.columns; column += stride) {
    read(behind, layer, after, row, column, normal, grad);
    for (int k = 0; k < per_thread; ++k) {
      const W weighted = grad[k] * widen(behind.weights[column + k]);
      sum += weighted;
      products += weighted * normal[k];
    }
  }
  const W mean = all_sum(sum) / layer.columns, slope = all_sum(products) / layer.columns;
  const W inverse = behind.inverses[row];
  for (int column = first; column < layer.columns; column += stride) {
    const long long at = static_cast<long long>(row) * layer.columns + column;
    read(behind, layer, after, row, column, normal, grad);
    float factors[per_thread];
    before.of(at / per_thread, factors);
    Pack<P> summed;
    Pack<T> given;
    for (int k = 0; k < per_thread; ++k) {
      const W weighted = grad[k] * widen(behind.weights[column + k]);
      narrow((weighted - mean - normal[k] * slope) * inverse, summed.at[k]);
      narrow(rounded<T>(widen(summed.at[k])) * factors[k], given.at[k]);
    }
    if (out.sum != nullptr) pack_at(out.sum, at) = summed;
    if (out.in != nullptr) pack_at(out.in, at) = given;
  }
}

// Computes the gradients of weight and bias. Each block processes 32 columns of up to `part` rows.
__device__ void parameter_grads(int index, int part, const Behind& behind, const Gradients& out,
                                const Layer& layer) {
  const int across = (layer.columns + columns_per_block - 1) / columns_per_block;
  const int block = index % across, at = index / across;
  const int lane = threadIdx.x % lanes;
  const int column = block * columns_per_block + lane * per_thread;
  const int begin = at * part, end = layer.rows - begin < part ? layer.rows : begin + part;
  const Factors after(layer.after);
  W sum[per_thread] = {}, products[per_thread] = {};
  if (column < layer.columns) {
    for (int row = begin + threadIdx.x / lanes; row < end; row += rows_at_once) {
      W normal[per_thread], grad[per_thread];
      read(behind, layer, after, row, column, normal, grad);
      for (int k = 0; k < per_thread; ++k) {
        sum[k] += grad[k];
        products[k] += grad[k] * normal[k];
      }
    }
  }
  for_column_sums(products, sum, [&](double product, double total) {
    const int own = block * columns_per_block + threadIdx.x;
    if (own >= layer.columns) return;
    if (out.parts != nullptr) {
      W* to = out.parts + 2 * static_cast<long long>(at) * layer.columns + own;
      to[0] = product;
      to[layer.columns] = total;
    } else {
      narrow(product, out.weight[own]);
      narrow(total, out.bias[own]);
    }
  });
}

// The first blocks compute the gradients of the rows of the input, if requested. The remaining
// blocks compute the gradients of weight and bias. In one launch, both kinds of blocks can run at
// the same time.
extern "C" __global__ void __launch_bounds__(most_threads)
    backward(const Behind behind, const Gradients out, int row_blocks, int part,
             const Layer layer) {
  const int block = blockIdx.x;
  if (block < row_blocks) {
    input_grads(block, behind, out, layer);
  } else {
    parameter_grads(block - row_blocks, part, behind, out, layer);
  }
}

// Adds up the sums of all parts, which gives the gradients of weight and bias. Each thread
// processes one column.
extern "C" __global__ void add_parts(const Gradients out, int count, const Layer layer) {
  const int own = blockIdx.x * blockDim.x + threadIdx.x;
  if (own >= layer.columns) return;
  double product = 0, total = 0;
  for (int at = 0; at < count; ++at) {
    const W* from = out.parts + 2 * static_cast<long long>(at) * layer.columns + own;
    product += from[0];
    total += from[layer.columns];
  }
  narrow(product, out.weight[own]);
  narrow(total, out.bias[own]);
}
