// What gradient.cu is started with.

using Tensors = TensorList<1, 128, 8192>;
