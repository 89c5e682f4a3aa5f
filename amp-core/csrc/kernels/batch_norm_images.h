// Declarations for the kernels of batch_norm_images.cu and for the code that launches them.

// Images as a matrix of `rows` pixels and `columns` channels. The channels of a pixel are neighbours in memory. A block
// processes a tile of columns: each of its `lanes` threads processes eight columns. The rows are divided into groups of
// `rows_at_once` rows, and a block processes every `chunks`th group.
struct Shape {
  int rows, columns, lanes, rows_at_once, tiles, chunks;
};

// The row indices of two matrices that have a column for each channel. The matrix with the rows `Known` holds values of
// the forward pass. The matrix with the rows `Slope` holds the coefficients of the input's gradient.
enum Known { mean_row, inverse_row, scale_row, shift_row, known_rows };
enum Slope { of_input_row, constant_row, slope_rows };
