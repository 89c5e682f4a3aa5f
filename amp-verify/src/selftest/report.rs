//! The report of the self-test.

use amp_core::trainer::Invariant;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::{Deserialize, Serialize};

use super::Fault;
use crate::{
    faults::Area,
    gate::{Reason, Status},
    view::wrap_to_terminal,
};

/// The outcome for one fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultResult {
    /// The fault.
    pub fault: Fault,
    /// The part of training that it breaks.
    pub area: Area,
    /// The model in which it was planted.
    pub model: String,
    /// The checks that reported it.
    pub killed_by: Vec<Reason>,
    /// The invariants of training that it broke, by name.
    #[serde(default)]
    pub invariants: Vec<String>,
    /// Whether the metrics over seeds showed it.
    pub by_seeds: bool,
    /// Whether whole runs were needed, because no rule was broken.
    pub trained: bool,
    /// The first line of the gate's report about it.
    pub said: String,
    /// The result of the diagnosis; null unless it was requested.
    #[serde(default)]
    pub finding: Option<String>,
}

impl FaultResult {
    /// Whether the gate failed.
    pub fn is_killed(&self) -> bool {
        self.by_seeds || !self.killed_by.is_empty()
    }
}

/// The self-test's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The faults.
    pub faults: Vec<FaultResult>,
    /// Faults that were not planted, with their requirements.
    pub left_out: Vec<String>,
    /// Unchanged runs of the gate, over all models in turn.
    pub repetitions: u64,
    /// Their cells.
    pub cells: usize,
    /// The failing cells among them, by model, precision and seed.
    pub false_alarms: Vec<String>,
    /// The inconclusive cells, which do not count as alarms.
    pub inconclusive: usize,
    /// Whether a golden that is not a number was refused.
    pub nan_golden_refused: bool,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Checks that need a golden or do not compare numbers: no planted fault can trigger them.
const ELSEWHERE: &[Reason] = &[Reason::Moved, Reason::NotComparable, Reason::Crashed];

impl Report {
    /// Faults that the gate reported.
    pub fn killed(&self) -> usize {
        self.faults.iter().filter(|result| result.is_killed()).count()
            + usize::from(self.nan_golden_refused)
    }

    /// Planted faults: those of [`Fault`], and a NaN in a golden.
    pub fn injected(&self) -> usize {
        self.faults.len() + 1
    }

    /// Whether the gate reported every fault and no unchanged run.
    pub fn passes(&self) -> bool {
        self.killed() == self.injected() && self.false_alarms.is_empty()
    }

    /// The checks that reported no fault, if all faults were planted.
    pub fn idle(&self) -> Vec<Reason> {
        let all = self.faults.len() + self.left_out.len() == Fault::ALL.len();
        let saw =
            |check: Reason| self.faults.iter().any(|result| result.killed_by.contains(&check));
        let idle = |check: &Reason| !ELSEWHERE.contains(check) && !saw(*check);
        Reason::ALL.iter().copied().filter(|check| all && idle(check)).collect()
    }

    /// The printed form: a table of faults and checks, with a letter for each check, and the legend.
    pub fn table(&self) -> String {
        let checks: Vec<Reason> =
            Reason::ALL.iter().copied().filter(|check| !ELSEWHERE.contains(check)).collect();
        let letters: Vec<char> = ('a'..='z').take(checks.len()).collect();
        let mut table = Table::new();
        let mut header = vec!["fault".to_owned(), "in".to_owned(), "model".to_owned()];
        let joined: String = letters.iter().collect();
        header.extend([format!("{joined} seeds"), "said".to_owned()]);
        table.load_preset(UTF8_FULL_CONDENSED).set_header(header);
        wrap_to_terminal(&mut table);
        for result in &self.faults {
            let marks = checks.iter().zip(&letters).map(|(check, letter)| {
                if result.killed_by.contains(check) { *letter } else { '·' }
            });
            let marks: String = marks.collect();
            let seeds = match (result.by_seeds, result.trained) {
                (true, _) => "yes",
                (false, true) => "no",
                (false, false) => "–",
            };
            let marks = if result.is_killed() { marks } else { "SURVIVED".to_owned() };
            let area = format!("{:?}", result.area);
            let cells = [result.fault.about(), &area, &result.model, &format!("{marks} {seeds}")];
            table.add_row(cells.into_iter().chain([result.said.as_str()]));
        }
        let golden = if self.nan_golden_refused { "refused" } else { "SURVIVED" };
        table.add_row(["a golden that is not a number", "Metrics", "", golden, ""]);
        let mut out = format!("{table}\n");
        let idle = self.idle();
        for (check, letter) in checks.iter().zip(&letters) {
            let kills =
                self.faults.iter().filter(|result| result.killed_by.contains(check)).count();
            let mark = if idle.contains(check) { ": kills nothing" } else { "" };
            out += &format!("{letter}  {}: {kills}{mark}\n", check.name());
        }
        let by_seeds = self.faults.iter().filter(|result| result.by_seeds).count();
        out += &format!(
            "seeds: {by_seeds}; – where a rule was broken, and no whole runs were needed\n"
        );
        for invariant in Invariant::ALL {
            let breaks = |result: &&FaultResult| {
                result.invariants.iter().any(|name| name == invariant.name())
            };
            let broken = self.faults.iter().filter(breaks).count();
            out += &format!("invariant {invariant}: {broken}\n");
        }
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

/// Whether the gate would exit with a failure for a cell of this status.
pub(super) fn is_red(status: Status) -> bool {
    status == Status::Regression
}
