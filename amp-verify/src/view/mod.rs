//! How figures are shown.

mod doctor;
mod epochs;
mod layers;
mod phases;
mod progress;
mod table;

pub use doctor::doctor;
pub use epochs::EpochTable;
pub use layers::layers;
pub use phases::phases;
pub use progress::Progress;
pub use table::table;
