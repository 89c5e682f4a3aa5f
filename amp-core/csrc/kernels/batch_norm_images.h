// Types shared by the kernels of batch_norm_images.cu and their host code.

// A pixel's channels are adjacent in memory, so the images are a matrix of `rows` pixels and
// `columns` channels. Blocks process tiles of columns, `lanes` threads with eight columns each, and
// every `chunks`th group of `rows_at_once` rows.
struct Shape {
  int rows, columns, lanes, rows_at_once, tiles, chunks;
};

// For each column; each is one row of a matrix.
enum Known { mean_row, inverse_row, scale_row, shift_row, known_rows };
enum Slope { of_input_row, constant_row, slope_rows };
