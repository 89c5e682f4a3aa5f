//! Examples from files and from series.

mod mapped;
mod npy;
mod series;
mod table;
mod tokens;

pub use npy::{map_npy, read_npy};
pub use series::Windows;
pub use table::{Categories, Table};
pub use tokens::{TokenFile, TokenWidth};
