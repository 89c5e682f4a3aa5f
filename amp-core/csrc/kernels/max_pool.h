// Types shared by the kernels of max_pool.cu and their host code.

// For rows and for columns.
struct Windows {
  int size[2], stride[2], padding[2], dilation[2];
};

struct Images {
  int count, channels, in[2], out[2];
};
