//! The report of the self-test, which puts faults (mistakes on purpose) into training and checks
//! that the gate reports them.

use amp_core::trainer::Invariant;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::{Deserialize, Serialize};

use super::Fault;
use crate::{
    faults::Area,
    gate::{Reason, Status},
    view::wrap_to_terminal,
};

/// The result of testing the gate with one fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultResult {
    /// The fault that was put into training.
    pub fault: Fault,
    /// The part of training that the fault affects.
    pub area: Area,
    /// The name of the model into whose training the fault was put.
    pub model: String,
    /// The checks of the gate that reported the fault. A check that the model fails without the fault
    /// as well is left out.
    pub reported_by: Vec<Reason>,
    /// The names of the training invariants that the fault violated.
    #[serde(default)]
    pub invariants: Vec<String>,
    /// Whether the statistical test of the metrics reported the fault.
    pub by_seeds: bool,
    /// Whether full training runs were made. They are made only if the rules and the first steps
    /// did not reveal the fault.
    pub trained: bool,
    /// The text of the first failure that the gate reported.
    pub first_line: String,
    /// The cause that the diagnosis found. Null if no diagnosis was made.
    #[serde(default)]
    pub finding: Option<String>,
}

impl FaultResult {
    /// Returns whether the gate reported the fault.
    pub fn is_reported(&self) -> bool {
        self.by_seeds || !self.reported_by.is_empty()
    }
}

/// The report of the self-test: which faults the gate reported, and how many false alarms it
/// raised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The result for each fault.
    pub faults: Vec<FaultResult>,
    /// The failures that were not counted, because the model fails in the same way without a fault.
    /// Each begins with the model's name.
    #[serde(default)]
    pub not_counted: Vec<String>,
    /// The faults that were not tested, each with the reason.
    pub left_out: Vec<String>,
    /// How many unchanged runs (into which no fault was put) the gate judged. Each run trains the
    /// next model of the registry.
    pub repetitions: u64,
    /// How many verdicts the gate gave on unchanged runs: one for each run and precision. In JSON
    /// this field is called `cells`.
    #[serde(rename = "cells")]
    pub verdicts: usize,
    /// The verdicts FAIL on unchanged runs, each with the model, the precision and the seed.
    pub false_alarms: Vec<String>,
    /// The number of verdicts INCONCLUSIVE on unchanged runs. They do not count as false alarms.
    pub inconclusive: usize,
    /// Whether the comparison with a golden (recorded results) that contains NaN failed, as it
    /// must.
    pub nan_golden_refused: bool,
    /// The duration of the self-test in seconds.
    pub seconds: f64,
}

/// The kinds of failure that no fault of the self-test can cause. The first two occur only in a
/// comparison with a golden (recorded results), and the third is a run that ended with an error.
const ELSEWHERE: &[Reason] = &[Reason::Moved, Reason::NotComparable, Reason::Crashed];

impl Report {
    /// Returns the number of faults that the gate reported.
    pub fn reported(&self) -> usize {
        self.faults.iter().filter(|result| result.is_reported()).count()
            + usize::from(self.nan_golden_refused)
    }

    /// Returns the number of tested faults: those in `faults`, and one more, a golden (recorded
    /// results) that contains NaN.
    pub fn injected(&self) -> usize {
        self.faults.len() + 1
    }

    /// Returns whether the gate reported every fault and raised no false alarm.
    pub fn passes(&self) -> bool {
        self.reported() == self.injected() && self.false_alarms.is_empty()
    }

    /// Returns the checks that reported no fault. If only some faults were tested, returns no
    /// checks, because a check might report one of the other faults.
    pub fn idle(&self) -> Vec<Reason> {
        let all = self.faults.len() + self.left_out.len() == Fault::ALL.len();
        let saw =
            |check: Reason| self.faults.iter().any(|result| result.reported_by.contains(&check));
        let idle = |check: &Reason| !ELSEWHERE.contains(check) && !saw(*check);
        Reason::ALL.iter().copied().filter(|check| all && idle(check)).collect()
    }

    /// Formats the report as a table of the faults. In each row, letters stand for the checks that
    /// reported the fault. A legend explains the letters.
    pub fn table(&self) -> String {
        let checks: Vec<Reason> =
            Reason::ALL.iter().copied().filter(|check| !ELSEWHERE.contains(check)).collect();
        let letters: Vec<char> = ('a'..='z').take(checks.len()).collect();
        let mut table = Table::new();
        let mut header = vec!["fault".to_owned(), "in".to_owned(), "model".to_owned()];
        let joined: String = letters.iter().collect();
        header.extend([format!("{joined} seeds"), "first line of the report".to_owned()]);
        table.load_preset(UTF8_FULL_CONDENSED).set_header(header);
        wrap_to_terminal(&mut table);
        for result in &self.faults {
            let marks = checks.iter().zip(&letters).map(|(check, letter)| {
                if result.reported_by.contains(check) { *letter } else { '·' }
            });
            let marks: String = marks.collect();
            let seeds = match (result.by_seeds, result.trained) {
                (true, _) => "yes",
                (false, true) => "no",
                (false, false) => "–",
            };
            let marks = if result.is_reported() { marks } else { "MISSED".to_owned() };
            let area = format!("{:?}", result.area);
            let cells = [result.fault.about(), &area, &result.model, &format!("{marks} {seeds}")];
            table.add_row(cells.into_iter().chain([result.first_line.as_str()]));
        }
        let golden = if self.nan_golden_refused { "refused" } else { "MISSED" };
        table.add_row(["a golden that contains NaN", "Metrics", "", golden, ""]);
        let mut out = format!("{table}\n");
        let idle = self.idle();
        for (check, letter) in checks.iter().zip(&letters) {
            let count =
                self.faults.iter().filter(|result| result.reported_by.contains(check)).count();
            let mark = if idle.contains(check) { " (reported no fault)" } else { "" };
            out += &format!("{letter}  {}: {count}{mark}\n", check.name());
        }
        let by_seeds = self.faults.iter().filter(|result| result.by_seeds).count();
        out += &format!(
            "seeds: {by_seeds}; –: no full runs (a rule already reported the fault, or --rules)\n"
        );
        for invariant in Invariant::ALL {
            let breaks = |result: &&FaultResult| {
                result.invariants.iter().any(|name| name == invariant.name())
            };
            let broken = self.faults.iter().filter(breaks).count();
            out += &format!("invariant {invariant}: {broken}\n");
        }
        for failure in &self.not_counted {
            out +=
                &format!("not counted, because the model fails without a fault too: {failure}\n");
        }
        for left_out in &self.left_out {
            out += &format!("not tested: {left_out}\n");
        }
        for alarm in &self.false_alarms {
            out += &format!("false alarm: {alarm}\n");
        }
        let (reported, injected) = (self.reported(), self.injected());
        out += &format!(
            "reported faults: {reported} of {injected} ({:.0}%)\nfalse alarms: {} of {} verdicts in \
             {} unchanged runs ({:.1}%), {} inconclusive\n{:.1} s\n",
            100.0 * reported as f64 / injected as f64,
            self.false_alarms.len(),
            self.verdicts,
            self.repetitions,
            100.0 * self.false_alarms.len() as f64 / self.verdicts.max(1) as f64,
            self.inconclusive,
            self.seconds
        );
        out
    }
}

/// Returns whether the gate fails a model and precision with this status.
pub(super) fn is_red(status: Status) -> bool {
    status == Status::Regression
}

/// Lists all faults, one per line: the name of the fault, the part of training that it affects, and
/// its description.
pub fn fault_list() -> String {
    let width = Fault::ALL.iter().map(|fault| fault.name().len()).max().unwrap_or_default();
    let line = |fault: &Fault| {
        let area = format!("{:?}", fault.area());
        format!("{:width$}  {area:12}  {}\n", fault.name(), fault.about())
    };
    Fault::ALL.iter().map(line).collect()
}
