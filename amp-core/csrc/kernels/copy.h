// The arguments of copy.cu: sources of bytes, and their destinations.

using Bytes = TensorList<2, 128, 4096>;
