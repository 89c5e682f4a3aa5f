// The arguments of cast.cu's kernels: f32 tensors and their destinations.

using Tensors = TensorList<2, 128, 8192>;
