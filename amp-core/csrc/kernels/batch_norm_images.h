// Declarations that the kernels of batch_norm_images.cu share with the code that launches them.

// Images as a matrix of `rows` pixels and `columns` channels; the channels of a pixel are
// neighbours in memory. A block processes a tile of columns, with eight columns for each of its
// `lanes` threads, and every `chunks`th group of `rows_at_once` rows.
struct Shape {
  int rows, columns, lanes, rows_at_once, tiles, chunks;
};

// The rows of two matrices with values for each column: `Known` holds values of the forward pass, and `Slope` the
// coefficients of the input's gradient.
enum Known { mean_row, inverse_row, scale_row, shift_row, known_rows };
enum Slope { of_input_row, constant_row, slope_rows };
