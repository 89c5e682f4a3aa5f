//! How figures are shown.

mod epochs;
mod progress;
mod table;

pub use epochs::EpochTable;
pub use progress::Progress;
pub use table::table;
