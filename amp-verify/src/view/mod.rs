//! How figures are shown.

mod bench;
mod diagnosis;
mod doctor;
mod epochs;
mod layers;
mod phases;
mod progress;
mod table;

pub use bench::{bench, bench_markdown};
pub use diagnosis::diagnosis;
pub use doctor::doctor;
pub use epochs::EpochTable;
pub use layers::layers;
pub use phases::{PhaseTables, phases};
pub use progress::Progress;
pub(crate) use table::heading;
pub use table::table;

/// Three significant digits, or all before the point.
fn significant(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
