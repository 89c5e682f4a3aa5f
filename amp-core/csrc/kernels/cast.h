// What cast.cu is started with: f32 tensors, and where they go.

using Tensors = TensorList<2, 128, 8192>;
