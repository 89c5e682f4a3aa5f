// What copy.cu is started with: bytes, and where they go.

using Bytes = TensorList<2, 128, 4096>;
