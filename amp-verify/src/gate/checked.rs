//! What was held against a rule, with the figure that was measured and its bound.

use amp_core::memory::show_bytes;
use serde::{Deserialize, Serialize};

use super::reason::{Failure, Reason};
use crate::text::{percent, significant};

/// What a comparison came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// Within its bound, or equal.
    Held,
    /// Beyond its bound, or different.
    Broken,
    /// Measured, and not judged.
    Shown,
    /// Measured, and too few seeds to judge by.
    Open,
    /// Not compared; `what` says why.
    LeftOut,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Nothing: values are equal or they are not.
    Equal,
    /// A share of one, shown as a percentage.
    Share,
    /// A number without a unit.
    Number,
    /// A number that must be at least its bound.
    AtLeast,
    /// Standard errors of a count.
    StandardErrors,
    /// Bytes.
    Bytes,
}

/// The result of one check of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The rule, as the reason that its violation gives.
    pub rule: Reason,
    /// What was compared, or why nothing was.
    pub what: String,
    /// The run that it was compared over, with its mode and steps; empty where nothing was compared.
    pub over: String,
    /// What came of it.
    pub result: Comparison,
    /// What was measured; null where values are equal or not, or it is not finite.
    pub figure: Option<f64>,
    /// The most that it may be (`at_least`: the least); null where there is no figure or no bound.
    pub bound: Option<f64>,
    /// What figure and bound count.
    pub unit: Unit,
}

impl Checked {
    /// A figure that must not exceed its bound; with a bound that is not finite it is shown alone.
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
        // NaN is within no bound.
        let result = match (bound == f64::INFINITY, is_within) {
            (true, _) if !figure.is_nan() => Comparison::Shown,
            (_, true) => Comparison::Held,
            _ => Comparison::Broken,
        };
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        let (what, over) = (what.into(), over.into());
        Self { rule, what, over, result, figure: finite(figure), bound: finite(bound), unit }
    }

    /// Values that must be equal.
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

    /// Whether it was looked at.
    pub fn is_done(&self) -> bool {
        self.result != Comparison::LeftOut
    }

    /// Whether its rule is broken.
    pub fn is_broken(&self) -> bool {
        self.result == Comparison::Broken
    }

    /// The figure as it is shown.
    pub fn figure(&self) -> String {
        match (self.unit, self.figure) {
            _ if !self.is_done() => "–".to_owned(),
            (Unit::Equal, _) if self.is_broken() => "different".to_owned(),
            (Unit::Equal, _) => "equal".to_owned(),
            (_, None) => "not finite".to_owned(),
            (_, Some(figure)) => self.number(figure),
        }
    }

    /// The bound as it is shown.
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
            // Below that both would be zeros.
            Unit::Share if largest >= 1e-4 => percent(value),
            _ => significant(value, 2),
        }
    }

    /// How much of its bound the figure takes; none where there is no bound other than zero.
    pub fn share(&self) -> Option<f64> {
        let (figure, bound) = (self.figure?.abs(), self.bound?.abs());
        let share = match self.unit {
            Unit::AtLeast => bound / figure,
            _ => figure / bound,
        };
        Some(share).filter(|share| share.is_finite())
    }

    /// In one line: what was compared, its figure and its bound.
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

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) failures: Vec<Failure>,
    pub(super) checked: Vec<Checked>,
}

impl Findings {
    /// Adds a failure, once for each rule.
    pub(super) fn fail(&mut self, reason: Reason, text: impl Into<String>) {
        if self.failures.iter().all(|failure| failure.reason != reason) {
            self.failures.push(Failure::new(reason, text));
        }
    }

    /// Values that are equal, unless something is said to be wrong.
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

    /// A figure with its bound; beyond the bound it fails.
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
                "{over}: {}: {}, beyond {}",
                checked.what,
                checked.figure(),
                checked.bound()
            );
            self.fail(rule, text);
        }
        self.checked.push(checked);
    }

    /// A rule that nothing was held against.
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
