//! The result of checking one of the gate's rules: a measured value (in the field `figure`) and its
//! bound.

use amp_core::memory::show_bytes;
use serde::{Deserialize, Serialize};

use super::reason::{Failure, Reason};
use crate::text::{percent, significant};

/// What the comparison of a measured value with its bound shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// The measured value is within its bound, or the values that must be equal are equal.
    Held,
    /// The measured value exceeds its bound, or the values that must be equal differ.
    Broken,
    /// The measured value has no bound. Reports show it, but it has no effect on the verdict.
    Shown,
    /// There are too few seeds to decide whether the measured value is within its bound.
    Open,
    /// Nothing was compared. The field [`what`](Checked::what) contains the reason.
    LeftOut,
}

/// The unit of a measured value and of its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// No unit, because nothing was measured: the rule only requires that values are equal.
    Equal,
    /// A fraction, printed as a percentage.
    Share,
    /// A number without a unit.
    Number,
    /// A number that must be at least as large as its bound.
    AtLeast,
    /// The distance of a count from its expected value, in standard errors.
    StandardErrors,
    /// A number of bytes.
    Bytes,
}

/// The result of checking one of the gate's rules once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The rule that was checked. A rule has the type `Reason`, because a broken rule is the reason
    /// of a failure.
    pub rule: Reason,
    /// A description of the compared quantity, or the reason why nothing was compared.
    pub what: String,
    /// The runs from which the value comes, for example their mode and number of steps. Empty if
    /// nothing was compared.
    pub over: String,
    /// What the comparison shows.
    pub result: Comparison,
    /// The measured value. Null if it is not finite, or if the rule only requires that values are
    /// equal.
    pub figure: Option<f64>,
    /// The largest accepted value. For the unit `at_least`, the smallest accepted value. Null if
    /// nothing was measured or there is no bound.
    pub bound: Option<f64>,
    /// The unit of the measured value and of its bound.
    pub unit: Unit,
}

impl Checked {
    /// Compares a measured value (`figure`) with its bound. The bound is the largest accepted
    /// value. For [`Unit::AtLeast`], it is the smallest accepted value. If the bound is infinite,
    /// reports only show the value.
    pub fn at_most(
        rule: Reason,
        what: impl Into<String>,
        over: impl Into<String>,
        unit: Unit,
        (figure, bound): (f64, f64),
    ) -> Self {
        let is_within = match unit {
            Unit::AtLeast => figure >= bound,
            _ => figure <= bound,
        };
        // A value that is NaN exceeds every bound.
        let result = match (bound == f64::INFINITY, is_within) {
            (true, _) if !figure.is_nan() => Comparison::Shown,
            (_, true) => Comparison::Held,
            _ => Comparison::Broken,
        };
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        let (what, over) = (what.into(), over.into());
        Self { rule, what, over, result, figure: finite(figure), bound: finite(bound), unit }
    }

    /// Creates the result of checking a rule that requires equal values. `is_equal` says whether
    /// the values were equal.
    pub fn equal(
        rule: Reason,
        what: impl Into<String>,
        over: impl Into<String>,
        is_equal: bool,
    ) -> Self {
        let result = if is_equal { Comparison::Held } else { Comparison::Broken };
        let (what, over) = (what.into(), over.into());
        Self { rule, what, over, result, figure: None, bound: None, unit: Unit::Equal }
    }

    /// Returns whether the rule was checked.
    pub fn is_done(&self) -> bool {
        self.result != Comparison::LeftOut
    }

    /// Returns whether the rule is broken.
    pub fn is_broken(&self) -> bool {
        self.result == Comparison::Broken
    }

    /// Formats the measured value with its unit.
    pub fn figure(&self) -> String {
        match (self.unit, self.figure) {
            _ if !self.is_done() => "–".to_owned(),
            (Unit::Equal, _) if self.is_broken() => "different".to_owned(),
            (Unit::Equal, _) => "equal".to_owned(),
            (_, None) => "not finite".to_owned(),
            (_, Some(figure)) => self.number(figure),
        }
    }

    /// Formats the bound with its unit.
    pub fn bound(&self) -> String {
        match (self.unit, self.bound) {
            (Unit::Equal, _) if self.is_done() => "equal".to_owned(),
            (Unit::AtLeast, Some(bound)) => format!("at least {}", self.number(bound)),
            (_, Some(bound)) => self.number(bound),
            (_, None) => "–".to_owned(),
        }
    }

    fn number(&self, value: f64) -> String {
        let largest = self.figure.unwrap_or(0.0).abs().max(self.bound.unwrap_or(0.0).abs());
        match self.unit {
            _ if value == 0.0 => "0".to_owned(),
            Unit::Bytes if value < 0.0 => format!("-{}", show_bytes(-value as u64)),
            Unit::Bytes => show_bytes(value as u64),
            Unit::StandardErrors => format!("{} σ", significant(value, 2)),
            // If the value and its bound would both be printed as 0 %, prints them with an
            // exponent.
            Unit::Share if largest >= 1e-4 => percent(value),
            _ => significant(value, 2),
        }
    }

    /// Returns the measured value divided by its bound. For [`Unit::AtLeast`], returns the bound
    /// divided by the value. So a broken rule has a result above 1. Returns `None` if there is no
    /// bound, or if the quotient is not finite.
    pub fn share(&self) -> Option<f64> {
        let (figure, bound) = (self.figure?.abs(), self.bound?.abs());
        let share = match self.unit {
            Unit::AtLeast => bound / figure,
            _ => figure / bound,
        };
        Some(share).filter(|share| share.is_finite())
    }

    /// Describes in one line what was compared, the measured value and its bound.
    pub fn in_words(&self) -> String {
        let Self { what, over, .. } = self;
        match (self.unit, self.bound) {
            _ if !self.is_done() => what.clone(),
            (Unit::Equal, _) => format!("{over}: {what}: {}", self.figure()),
            (_, None) => format!("{over}: {what}: {}", self.figure()),
            (Unit::AtLeast, _) => format!("{over}: {what}: {}, {}", self.figure(), self.bound()),
            _ => format!("{over}: {what}: {}, at most {}", self.figure(), self.bound()),
        }
    }
}

/// The failures that a job of the gate has found, and the results of all its comparisons.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) failures: Vec<Failure>,
    pub(super) checked: Vec<Checked>,
}

impl Findings {
    /// Adds a failure, unless there already is a failure of the same rule.
    pub(super) fn fail(&mut self, reason: Reason, text: impl Into<String>) {
        if self.failures.iter().all(|failure| failure.reason != reason) {
            self.failures.push(Failure::new(reason, text));
        }
    }

    /// Adds the result of checking a rule that requires equal values. If the values differ, `wrong`
    /// describes the difference, and a failure is added. If they are equal, `wrong` is `None`.
    pub(super) fn equal(
        &mut self,
        rule: Reason,
        what: impl Into<String>,
        over: impl Into<String>,
        wrong: Option<String>,
    ) {
        self.checked.push(Checked::equal(rule, what, over, wrong.is_none()));
        if let Some(text) = wrong {
            self.fail(rule, text);
        }
    }

    /// Adds a measured value with its bound. If the value exceeds the bound, also adds a failure.
    pub(super) fn measured(
        &mut self,
        rule: Reason,
        what: impl Into<String>,
        over: &str,
        unit: Unit,
        figure: (f64, f64),
    ) {
        let checked = Checked::at_most(rule, what, over, unit, figure);
        if checked.is_broken() {
            let text = format!(
                "{over}: {}: {} (bound: {})",
                checked.what,
                checked.figure(),
                checked.bound()
            );
            self.fail(rule, text);
        }
        self.checked.push(checked);
    }

    /// Records that one of the gate's rules was not checked, and why.
    pub(super) fn left_out(&mut self, rule: Reason, why: &str) {
        self.checked.push(Checked {
            rule,
            what: why.to_owned(),
            over: String::new(),
            result: Comparison::LeftOut,
            figure: None,
            bound: None,
            unit: Unit::Equal,
        });
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::share(Unit::Share, 0.000_85, 0.01, "0.085 %", "1 %", Comparison::Held)]
    #[case::zero(Unit::Share, 0.0, 0.01, "0", "1 %", Comparison::Held)]
    #[case::small(Unit::Share, 1.3e-7, 4e-6, "1.3e-7", "4e-6", Comparison::Held)]
    #[case::beyond(Unit::Number, 3.21, 3.0, "3.2", "3", Comparison::Broken)]
    #[case::nan(Unit::Share, f64::NAN, 0.01, "not finite", "1 %", Comparison::Broken)]
    #[case::nan_unbounded(
        Unit::Share,
        f64::NAN,
        f64::INFINITY,
        "not finite",
        "–",
        Comparison::Broken
    )]
    #[case::shown(Unit::Share, 0.07, f64::INFINITY, "7 %", "–", Comparison::Shown)]
    #[case::bytes(Unit::Bytes, 0.0, 0.0, "0", "0", Comparison::Held)]
    #[case::two_sizes(
        Unit::Bytes,
        143_380.0,
        1_048_576.0,
        "140.0 KiB",
        "1.0 MiB",
        Comparison::Held
    )]
    #[case::fewer_bytes(Unit::Bytes, -2048.0, 0.0, "-2.0 KiB", "0", Comparison::Held)]
    #[case::learned(Unit::AtLeast, 0.5, 0.3, "0.5", "at least 0.3", Comparison::Held)]
    #[case::not_learned(Unit::AtLeast, 0.1, 0.3, "0.1", "at least 0.3", Comparison::Broken)]
    fn a_figure_is_shown_in_its_unit(
        #[case] unit: Unit,
        #[case] figure: f64,
        #[case] bound: f64,
        #[case] shown: &str,
        #[case] most: &str,
        #[case] result: Comparison,
    ) {
        let checked = Checked::at_most(Reason::Gradient, "size", "2 steps", unit, (figure, bound));
        assert_eq!((checked.figure().as_str(), checked.bound().as_str()), (shown, most));
        assert_eq!(checked.result, result);
    }

    #[test]
    fn the_share_of_a_bound_is_a_number_or_none() {
        let share = |unit, figure: (f64, f64)| {
            Checked::at_most(Reason::Gradient, "", "", unit, figure).share()
        };
        assert_eq!(share(Unit::Share, (-0.005, 0.01)), Some(0.5));
        assert_eq!(share(Unit::AtLeast, (0.6, 0.3)), Some(0.5));
        assert_eq!(share(Unit::Bytes, (0.0, 0.0)), None);
        assert_eq!(share(Unit::Share, (0.1, f64::INFINITY)), None);
        assert_eq!(Checked::equal(Reason::Skip, "", "", true).share(), None);
    }
}
