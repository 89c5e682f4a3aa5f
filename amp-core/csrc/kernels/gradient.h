// The arguments of gradient.cu.

using Tensors = TensorList<1, 128, 8192>;
