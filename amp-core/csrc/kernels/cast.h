// The arguments of cast.cu: f32 tensors, and their destinations.

using Tensors = TensorList<2, 128, 8192>;
