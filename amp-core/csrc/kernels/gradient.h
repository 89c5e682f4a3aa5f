// The argument of the kernels of gradient.cu: a list of gradients.

using Tensors = TensorList<1, 128, 8192>;
