//! Reads tables, whose columns become tensors.

mod categories;
mod cells;
mod columns;
mod csv;
mod fields;
#[cfg(feature = "parquet")]
mod parquet;
mod saved;

#[cfg(feature = "parquet")]
pub use self::parquet::{ParquetSet, ParquetTable};
pub use self::{categories::Categories, columns::Columns, csv::Table};
