//! Data sets from files and from time series.

mod mapped;
mod npy;
mod series;
mod table;
mod tokens;

pub use npy::{map_npy, read_npy};
pub use series::Windows;
pub use table::{Categories, Columns, Table};
#[cfg(feature = "parquet")]
pub use table::{ParquetSet, ParquetTable};
pub use tokens::{TokenFile, TokenWidth};
