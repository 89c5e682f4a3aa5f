//! Formats results for the terminal.

mod bench;
mod diagnosis;
mod doctor;
mod epochs;
mod layers;
mod parity;
mod phases;
mod summary;
mod table;

pub use bench::{bench, bench_markdown};
pub use diagnosis::diagnosis;
pub use doctor::doctor;
pub use epochs::EpochTable;
pub use layers::layers;
pub use parity::parity;
pub use phases::{PhaseTables, phases};
pub use summary::summary;
pub use table::table;
pub(crate) use table::{failure, heading};

use comfy_table::{ContentArrangement, Table};

/// Wraps the texts in `table` to the width of the terminal. A width of 0 means that the width of
/// the terminal is unknown. In this case the table is as wide as its texts.
pub(crate) fn wrap_to_terminal(table: &mut Table) {
    table.set_content_arrangement(match table.width() {
        Some(0) => ContentArrangement::Disabled,
        _ => ContentArrangement::Dynamic,
    });
}

/// Formats a number with three significant digits. A number of 100 or more is shown as an integer,
/// with all its digits.
fn significant(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Table, wrap_to_terminal};

    #[test]
    fn a_terminal_without_a_width_does_not_break_words() {
        let lines = |width: u16| {
            let mut table = Table::new();
            table.set_width(width).set_header(["a verdict", "a mean"]);
            wrap_to_terminal(&mut table);
            table.lines().count()
        };
        assert_eq!(lines(0), lines(80));
        assert!(lines(12) > lines(80));
    }
}
