//! How figures are shown.

mod doctor;
mod epochs;
mod phases;
mod progress;
mod table;

pub use doctor::doctor;
pub use epochs::EpochTable;
pub use phases::{PhaseTables, phases};
pub use progress::Progress;
pub(crate) use table::heading;
pub use table::table;
