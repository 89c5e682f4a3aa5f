// The arguments of copy.cu's kernels: bytes and their destinations.

using Bytes = TensorList<2, 128, 4096>;
