// What the kernels of max_pool.cu and their host half have in common.

// Of rows and of columns.
struct Windows {
  int size[2], stride[2], padding[2], dilation[2];
};

struct Images {
  int count, channels, in[2], out[2];
};
