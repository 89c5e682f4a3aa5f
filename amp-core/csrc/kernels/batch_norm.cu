// Batch normalisation of [rows, columns] in training mode, followed by ReLU and dropout if
// requested. The forward pass reads the batch twice: first to compute the statistics, and then to
// compute the output. The backward pass reads only the input, and recomputes which elements ReLU
// and dropout set to zero. It also sums the input's gradient over the rows, which gives the
// gradient of the preceding layer's bias.

struct Layer {
  int rows, columns, relu;
  double momentum, eps;
  Dropout dropout;
};

__device__ float scaled(float x, float mean, float inverse, float weight, float bias) {
  return fmaf((x - mean) * inverse, weight, bias);
}
__device__ double scaled(double x, double mean, double inverse, double weight, double bias) {
  return fma((x - mean) * inverse, weight, bias);
}

// Returns the index of the group of four elements that begins at this row and column.
__device__ long long group_of(const Layer& layer, int row, int column) {
  return (static_cast<long long>(row) * layer.columns + column) / per_thread;
}

extern "C" __global__ void forward(const T* in, const P* weights, const P* biases, P* running_means,
                        P* running_vars, long long* tracked, Wide<T>* means, Wide<T>* inverses,
                        T* out, const Layer layer) {
  using W = Wide<T>;
  __shared__ W mean[columns_per_block], inverse[columns_per_block];
  const int lane = threadIdx.x % lanes, first_row = threadIdx.x / lanes;
  const int column = blockIdx.x * columns_per_block + lane * per_thread;
  const bool within = column < layer.columns;
  if (tracked != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *tracked += 1;

  // The kernel sums the distances from the first row, so that no precision is lost if the mean of a
  // column is far from zero.
  W shift[per_thread] = {}, sum[per_thread] = {}, squares[per_thread] = {};
  if (within) {
    const auto pack = pack_at(in, column);
    for (int k = 0; k < per_thread; ++k) shift[k] = widen(pack.at[k]);
#pragma unroll 4
    for (int row = first_row; row < layer.rows; row += rows_at_once) {
      const auto x = pack_at(in, static_cast<long long>(row) * layer.columns + column);
      for (int k = 0; k < per_thread; ++k) {
        const W distance = widen(x.at[k]) - shift[k];
        sum[k] += distance;
        squares[k] += distance * distance;
      }
    }
  }
  for_column_sums(sum, squares, [&](double distances, double squared) {
    const int at = blockIdx.x * columns_per_block + threadIdx.x;
    if (at >= layer.columns) return;
    const double n = layer.rows, offset = distances / n;
    const double centre = widen(in[at]) + offset;
    const double spread = squared / n - offset * offset, variance = spread < 0 ? 0 : spread;
    means[at] = mean[threadIdx.x] = centre;
    inverses[at] = inverse[threadIdx.x] = 1 / sqrt(variance + layer.eps);
    if (running_means != nullptr) {
      const double old = 1 - layer.momentum, unbiased = variance * n / (n - 1);
      narrow(old * widen(running_means[at]) + layer.momentum * centre, running_means[at]);
      narrow(old * widen(running_vars[at]) + layer.momentum * unbiased, running_vars[at]);
    }
  });
  if (!within) return;

  const Factors drops(layer.dropout);
  const auto w = pack_at(weights, column), b = pack_at(biases, column);
#pragma unroll 4
  for (int row = first_row; row < layer.rows; row += rows_at_once) {
    const long long at = static_cast<long long>(row) * layer.columns + column;
    auto x = pack_at(in, at);
    float factors[per_thread];
    drops.of(group_of(layer, row, column), factors);
    for (int k = 0; k < per_thread; ++k) {
      const int own = lane * per_thread + k;
      W y = rounded<T>(
          scaled(widen(x.at[k]), mean[own], inverse[own], W(widen(w.at[k])), W(widen(b.at[k]))));
      // The comparison is false for a NaN, so ReLU returns the NaN.
      if (layer.relu && y <= 0) y = 0;
      narrow(y * factors[k], x.at[k]);
    }
    pack_at(out, at) = x;
  }
}

extern "C" __global__ void backward(const T* in, const T* grads, const P* weights, const P* biases,
                         const Wide<T>* means, const Wide<T>* inverses, T* input_grads,
                         P* weight_grads, P* bias_grads, P* input_sums, const Layer layer) {
  using W = Wide<T>;
  __shared__ W grad_mean[columns_per_block], grad_slope[columns_per_block];
  const int lane = threadIdx.x % lanes, first_row = threadIdx.x / lanes;
  const int column = blockIdx.x * columns_per_block + lane * per_thread;
  const bool within = column < layer.columns;

  const Factors drops(layer.dropout);
  Pack<W> mean, inverse;
  Pack<P> w, b;
  if (within) {
    mean = pack_at(means, column), inverse = pack_at(inverses, column);
    w = pack_at(weights, column), b = pack_at(biases, column);
  }
  // Reads the gradient of the normalised values and the distance from the mean, for four columns of
  // a row.
  const auto read = [&](int row, W (&grad)[per_thread], W (&distance)[per_thread]) {
    const long long at = static_cast<long long>(row) * layer.columns + column;
    const auto x = pack_at(in, at), g = pack_at(grads, at);
    float factors[per_thread];
    drops.of(group_of(layer, row, column), factors);
    for (int k = 0; k < per_thread; ++k) {
      const W value = widen(x.at[k]);
      const W y =
          rounded<T>(scaled(value, mean.at[k], inverse.at[k], W(widen(w.at[k])), W(widen(b.at[k]))));
      grad[k] = layer.relu && y <= 0 ? W(0) : rounded<T>(widen(g.at[k]) * factors[k]);
      distance[k] = value - mean.at[k];
    }
  };

  W sum[per_thread] = {}, products[per_thread] = {};
  if (within) {
#pragma unroll 4
    for (int row = first_row; row < layer.rows; row += rows_at_once) {
      W grad[per_thread], distance[per_thread];
      read(row, grad, distance);
      for (int k = 0; k < per_thread; ++k) {
        sum[k] += grad[k];
        products[k] += grad[k] * distance[k];
      }
    }
  }
  for_column_sums(sum, products, [&](double total, double product) {
    const int at = blockIdx.x * columns_per_block + threadIdx.x;
    if (at >= layer.columns) return;
    const double by = inverses[at], slope = product * by;
    narrow(slope, weight_grads[at]);
    narrow(total, bias_grads[at]);
    grad_mean[threadIdx.x] = total / layer.rows;
    grad_slope[threadIdx.x] = slope * by / layer.rows;
  });
  if (input_grads == nullptr) return;

  W passed[per_thread] = {}, none[per_thread] = {};
  if (within) {
#pragma unroll 4
    for (int row = first_row; row < layer.rows; row += rows_at_once) {
      W grad[per_thread], distance[per_thread];
      read(row, grad, distance);
      Pack<T> out;
      for (int k = 0; k < per_thread; ++k) {
        const int own = lane * per_thread + k;
        const W centred = grad[k] - grad_mean[own] - distance[k] * grad_slope[own];
        narrow(centred * inverse.at[k] * W(widen(w.at[k])), out.at[k]);
        passed[k] += widen(out.at[k]);
      }
      pack_at(input_grads, static_cast<long long>(row) * layer.columns + column) = out;
    }
  }
  for_column_sums(passed, none, [&](double total, double) {
    const int at = blockIdx.x * columns_per_block + threadIdx.x;
    if (at < layer.columns) narrow(total, input_sums[at]);
  });
}
