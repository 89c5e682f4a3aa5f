// The arguments of gradient.cu's kernels.

using Tensors = TensorList<1, 128, 8192>;
