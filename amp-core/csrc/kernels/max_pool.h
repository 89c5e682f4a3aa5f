// Declarations for the kernels of max_pool.cu and for the code that launches them.

// The windows' options, each for rows and columns.
struct Windows {
  int size[2], stride[2], padding[2], dilation[2];
};

// The number of images and of their channels, and the height and width of the input and of the output.
struct Images {
  int count, channels, in[2], out[2];
};
