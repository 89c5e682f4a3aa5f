// What the kernels of batch_norm_images.cu and their host half have in common.

// A pixel's channels are neighbours in memory: a matrix of `rows` pixels and `columns` channels. Blocks
// take tiles of columns, `lanes` threads of eight columns each, and of the rows every `chunks`th group of
// `rows_at_once`.
struct Shape {
  int rows, columns, lanes, rows_at_once, tiles, chunks;
};

// Of each column, one row of a matrix each.
enum Known { mean_row, inverse_row, scale_row, shift_row, known_rows };
enum Slope { of_input_row, constant_row, slope_rows };
