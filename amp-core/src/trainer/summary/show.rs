//! Shows the summary of a model as a tree of layers.

use std::fmt;

use super::{LayerSummary, ModelSummary, StepMemory};
use crate::memory::show_bytes;

/// The headings of the columns.
const COLUMNS: [&str; 6] = ["layer", "type", "input", "output", "parameters", "FLOPs"];
/// The index of the first column with numbers. Numbers are aligned to the right.
const NUMBERS: usize = 4;

impl fmt::Display for ModelSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, data, precision, batch_size, .. } = self;
        writeln!(f, "{model} on {data} under {precision}, one batch of {batch_size}")?;
        for (name, shape) in &self.batch {
            writeln!(f, "  {name} {shape:?}")?;
        }
        writeln!(f)?;
        let mut rows = vec![COLUMNS.map(str::to_owned)];
        rows.extend((0..self.layers.len()).map(|place| self.row(place)));
        let width = |column: usize| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
        for row in &rows {
            let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
                if column < NUMBERS { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        writeln!(f)?;
        write!(f, "trainable parameters  {}", show_count(self.trainable))?;
        match self.trained_later {
            0 => writeln!(f)?,
            later => writeln!(f, " at first, {} in all", show_count(self.trainable + later))?,
        }
        writeln!(f, "frozen parameters     {}", show_count(self.frozen))?;
        writeln!(f, "values of buffers     {}", show_count(self.buffers))?;
        writeln!(f, "FLOPs, forward        {}", operations(self.flops))?;
        writeln!(f, "memory of a step      {}", self.memory)
    }
}

impl ModelSummary {
    fn row(&self, place: usize) -> [String; COLUMNS.len()] {
        let layer = &self.layers[place];
        let LayerSummary { kind, calls, trainable, frozen, flops, .. } = layer;
        let mut parameters = match trainable + frozen {
            0 => String::new(),
            count => show_count(count),
        };
        if *frozen > 0 {
            let part = if *trainable == 0 { "frozen" } else { "partly frozen" };
            parameters = format!("{parameters} ({part})");
        }
        let mut kind = kind.as_deref().unwrap_or("not run").to_owned();
        if *calls > 1 {
            kind = format!("{kind} ×{calls}");
        }
        let flops = if *flops > 0 { operations(*flops) } else { String::new() };
        [self.branch(place), kind, shapes(&layer.input), shapes(&layer.output), parameters, flops]
    }

    /// Returns the layer's name, preceded by the lines that draw its branch of the tree.
    fn branch(&self, place: usize) -> String {
        let layer = &self.layers[place];
        if layer.depth == 0 {
            return self.model.clone();
        }
        // Returns whether a later layer is a sibling of this layer, or of this layer's ancestor, at
        // this depth. If so, the vertical line of the tree continues down to that sibling.
        let continues = |depth: usize| {
            let mut later =
                self.layers[place + 1..].iter().take_while(|layer| layer.depth >= depth);
            later.any(|layer| layer.depth == depth)
        };
        let around = (1..layer.depth).map(|depth| if continues(depth) { "│  " } else { "   " });
        let own = if continues(layer.depth) { "├─ " } else { "└─ " };
        around.chain([own, layer.name()]).collect()
    }
}

impl fmt::Display for StepMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("parameters", self.parameters),
            ("buffers", self.buffers),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer_state),
            ("averages", self.averages),
            ("activations", self.activations),
            ("batch", self.batch),
        ];
        write!(f, "{}", show_bytes(self.total()))?;
        let mut separator = ": ";
        for (name, bytes) in parts.into_iter().filter(|(_, bytes)| *bytes > 0) {
            write!(f, "{separator}{name} {}", show_bytes(bytes))?;
            separator = ", ";
        }
        Ok(())
    }
}

fn shapes(shapes: &[Vec<i64>]) -> String {
    let shown: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
    match shown.len() {
        // If there are more than two tensors, only the first shape is shown. The state of a
        // recurrent layer may have many tensors.
        0..=2 => shown.join(" "),
        more => format!("{} +{}", shown[0], more - 1),
    }
}

/// Formats a count with a comma between groups of three digits: `1,234,567`.
pub fn show_count(count: i64) -> String {
    indicatif::HumanCount(count.cast_unsigned()).to_string()
}

/// Formats a number of operations with three significant digits and a unit: `1.81 G`.
fn operations(count: u64) -> String {
    const UNITS: [(f64, &str); 5] = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let count = count as f64;
    match UNITS.into_iter().find(|(unit, _)| count >= 0.9995 * unit) {
        None => format!("{count}"),
        Some((unit, name)) => match count / unit {
            value if value >= 99.95 => format!("{value:.0} {name}"),
            value if value >= 9.995 => format!("{value:.1} {name}"),
            value => format!("{value:.2} {name}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "0")]
    #[case(999, "999")]
    #[case(1_000, "1.00 k")]
    #[case(9_996, "10.0 k")]
    #[case(999_600, "1.00 M")]
    #[case(1_814_073_344, "1.81 G")]
    #[case(123_456_000_000_000, "123 T")]
    fn operations_have_three_digits(#[case] count: u64, #[case] shown: &str) {
        assert_eq!(operations(count), shown);
    }
}
