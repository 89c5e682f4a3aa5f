//! What the self-test found.

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::{Deserialize, Serialize};

use super::Fault;
use crate::{gate::Status, view::wrap_to_terminal};

/// What became of a fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fate {
    /// The fault.
    pub fault: Fault,
    /// The model it was injected into.
    pub model: String,
    /// The precisions whose cell turned red.
    pub caught_under: Vec<String>,
    /// What the gate said first.
    pub said: String,
}

/// The self-test's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The faults.
    pub faults: Vec<Fate>,
    /// Faults that were not injected since no model reveals them, with what they need.
    pub left_out: Vec<String>,
    /// Unchanged runs of the gate, over all models in turn.
    pub repetitions: u64,
    /// Their cells.
    pub cells: usize,
    /// Those of them that were red, by model, precision and seed.
    pub false_alarms: Vec<String>,
    /// Those that stayed inconclusive, which is no alarm.
    pub inconclusive: usize,
    /// Whether a golden that is not a number was refused.
    pub nan_golden_refused: bool,
    /// Seconds in all.
    pub seconds: f64,
}

impl Report {
    /// Faults that were caught.
    pub fn killed(&self) -> usize {
        self.faults.iter().filter(|fate| !fate.caught_under.is_empty()).count()
            + usize::from(self.nan_golden_refused)
    }

    /// Faults that were injected: those of [`Fault`], and a golden that is not a number.
    pub fn injected(&self) -> usize {
        self.faults.len() + 1
    }

    /// Whether every fault was caught and no unchanged run was.
    pub fn passes(&self) -> bool {
        self.killed() == self.injected() && self.false_alarms.is_empty()
    }

    /// As it is printed.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED).set_header([
            "fault",
            "model",
            "caught under",
            "said",
        ]);
        wrap_to_terminal(&mut table);
        for fate in &self.faults {
            let caught = match fate.caught_under.as_slice() {
                [] => "SURVIVED".to_owned(),
                names => names.join(" "),
            };
            table.add_row([fate.fault.about(), &fate.model, &caught, &fate.said]);
        }
        let golden = if self.nan_golden_refused { "refused" } else { "SURVIVED" };
        table.add_row(["a golden that is not a number", "", golden, ""]);
        let mut out = format!("{table}\n");
        for left_out in &self.left_out {
            out += &format!("left out: {left_out}\n");
        }
        for alarm in &self.false_alarms {
            out += &format!("false alarm: {alarm}\n");
        }
        let (killed, injected) = (self.killed(), self.injected());
        out += &format!(
            "kill rate: {killed} of {injected} ({:.0}%)\nfalse-alarm rate: {} of {} cells in {} \
             unchanged runs ({:.1}%), {} inconclusive\n{:.1} s\n",
            100.0 * killed as f64 / injected as f64,
            self.false_alarms.len(),
            self.cells,
            self.repetitions,
            100.0 * self.false_alarms.len() as f64 / self.cells.max(1) as f64,
            self.inconclusive,
            self.seconds
        );
        out
    }
}

/// The worst status of a plan's cells is what the gate would exit with.
pub(super) fn is_red(status: Status) -> bool {
    status == Status::Regression
}
