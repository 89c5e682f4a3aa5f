//! Formats the layers of a model, and the memory of a step under each precision.

use amp_core::{memory::show_bytes, trainer::ModelSummary};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// Formats the tree of layers for the first precision, and a table of the memory of a step under
/// each precision. If there is only one precision, the memory is a line below the tree.
pub fn summary(summaries: &[ModelSummary]) -> String {
    let Some(first) = summaries.first() else { return String::new() };
    if summaries.len() == 1 {
        return first.to_string();
    }
    let tree = first.to_string();
    // Leaves out the line about the memory of a step, because the table below contains this memory
    // for every precision.
    let tree: Vec<&str> =
        tree.lines().filter(|line| !line.starts_with("memory of a step")).collect();
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header([
        "precision",
        "parameters",
        "buffers",
        "gradients",
        "optimizer state",
        "averages",
        "activations",
        "batch",
        "in all",
    ]);
    for summary in summaries {
        let memory = &summary.memory;
        let bytes = [
            memory.parameters,
            memory.buffers,
            memory.gradients,
            memory.optimizer_state,
            memory.averages,
            memory.activations,
            memory.batch,
            memory.total(),
        ];
        let cells = bytes.into_iter().map(show_bytes);
        table.add_row([summary.precision.to_string()].into_iter().chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n\nmemory of a step\n{table}\n", tree.join("\n"))
}
