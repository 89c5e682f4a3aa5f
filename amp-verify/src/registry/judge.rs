//! The logged validation value by which a model is judged, that is, by which its runs under
//! different precisions are compared.

use amp_core::{Error, Result, callback::Mode};
use serde::{Deserialize, Serialize};

/// Whether larger or smaller values of a metric are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Larger is better. The metric is a fraction of the examples, for example an accuracy.
    #[default]
    HigherIsBetter,
    /// Larger is better. The metric is not a fraction, for example a reward.
    HigherScoreIsBetter,
    /// Smaller is better, for example a loss.
    LowerIsBetter,
}

impl Direction {
    /// Returns how much worse the metric of a run (`own`) is than the metric of the run with which
    /// it is compared (`baseline`), in the unit of the metric. The result is negative if `own` is
    /// better.
    pub fn regression(self, baseline: f64, own: f64) -> f64 {
        match self {
            Self::HigherIsBetter | Self::HigherScoreIsBetter => baseline - own,
            Self::LowerIsBetter => own - baseline,
        }
    }

    /// Returns this direction as the `mode` argument of callbacks such as `EarlyStopping`.
    pub fn mode(self) -> Mode {
        match self {
            Self::HigherIsBetter | Self::HigherScoreIsBetter => Mode::Max,
            Self::LowerIsBetter => Mode::Min,
        }
    }

    /// Returns whether larger values are better.
    pub fn is_higher(&self) -> bool {
        *self != Self::LowerIsBetter
    }

    /// Returns whether the metric is a fraction of the examples. Such a metric is shown in percent.
    pub fn is_share(&self) -> bool {
        *self == Self::HigherIsBetter
    }

    /// Returns an error message if the metric `name` is declared as a fraction, but one of its
    /// `values` is not between 0 and 1. Otherwise returns `None`.
    pub(crate) fn no_share(
        self,
        name: &str,
        values: impl IntoIterator<Item = f64>,
    ) -> Option<String> {
        let mut values = values.into_iter().filter(|_| self.is_share());
        let value = values.find(|value| value.is_finite() && !(0.0..=1.0).contains(value))?;
        Some(format!(
            "`{name}` is {value:.4}, which is no fraction of the examples, but the registry \
             declares it as one: declare it with `.score(\"{name}\")` if higher values are better, or \
             with `.error_metric(\"{name}\")` if lower values are better"
        ))
    }
}

/// The validation value by which a model is judged: the name under which the value is logged, and
/// whether larger or smaller values are better.
///
/// # Examples
///
/// ```
/// use amp_verify::registry::{Direction, Judge};
///
/// let error = Judge::lower("val_mae");
/// assert_eq!(error.direction, Direction::LowerIsBetter);
/// // The error rose from 0.30 to 0.35.
/// assert!((error.direction.regression(0.30, 0.35) - 0.05).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judge {
    /// The name under which the value is logged, for example `val_acc`.
    pub name: &'static str,
    /// Whether larger or smaller numbers are better.
    pub direction: Direction,
}

/// The last words of the names of errors, for which lower values are better. A word may also end in
/// `loss` or `error`, as `logloss`.
const ERRORS: &[&str] = &["mae", "mse", "rmse", "mape", "nll", "perplexity", "wer", "cer"];

/// Words by which a name says that an error is negated, so that higher values are better.
const NEGATIONS: &[&str] = &["neg", "negative", "negated", "minus"];

/// Returns whether the name of a logged value ends in the name of an error, as `val_loss`,
/// `val_mae` and `val_error_rate` do.
fn names_an_error(name: &str) -> bool {
    let name = name.to_lowercase();
    let mut words: Vec<&str> = name.split(|letter: char| !letter.is_alphanumeric()).collect();
    if words.last() == Some(&"rate") {
        words.pop();
    }
    let is_error =
        |word: &&str| ERRORS.contains(word) || word.ends_with("loss") || word.ends_with("error");
    words.last().is_some_and(is_error) && !words.iter().any(|word| NEGATIONS.contains(word))
}

/// The name under which the validation loss is logged.
pub(crate) const LOSS: &str = "val_loss";

impl Judge {
    /// The value by which a model is judged by default: the accuracy, `val_acc`.
    pub const DEFAULT: Self = Self::higher("val_acc");

    /// Judges a model by the logged value `name`, a fraction, for example `val_acc`. Larger values
    /// are better.
    pub const fn higher(name: &'static str) -> Self {
        Self { name, direction: Direction::HigherIsBetter }
    }

    /// Judges a model by the logged value `name`, which is not a fraction, for example `val_psnr`.
    /// Larger values are better.
    pub const fn score(name: &'static str) -> Self {
        Self { name, direction: Direction::HigherScoreIsBetter }
    }

    /// Judges a model by the logged value `name`, for example `val_mae`. Smaller values are better.
    pub const fn lower(name: &'static str) -> Self {
        Self { name, direction: Direction::LowerIsBetter }
    }

    /// Judges a model by its validation loss.
    pub const fn loss() -> Self {
        Self::lower(LOSS)
    }

    /// Checks that the value is not declared as one for which higher values are better if its name
    /// is that of an error. The worst epoch would be kept as the best one.
    ///
    /// # Errors
    /// When the name ends in the name of an error. The message names the declaration to use.
    pub(crate) fn check(self) -> Result<()> {
        let Self { name, direction } = self;
        if !direction.is_higher() || !names_an_error(name) {
            return Ok(());
        }
        let declared = if direction.is_share() { "metric" } else { "score" };
        let remedy = match name {
            LOSS => ".judged_by_loss()".to_owned(),
            _ => format!(".error_metric(\"{name}\")"),
        };
        Err(Error::config(format!(
            "`.{declared}(\"{name}\")` declares that higher values are better, but `{name}` has the \
             name of an error, of which lower values are better: declare it with `{remedy}`, or give \
             the metric another name if higher values are better"
        )))
    }

    /// Checks the declared direction against `mode`, the direction of the model's metric of this name.
    /// It is `None` if the model has no such metric, or if the metric does not know its direction.
    ///
    /// # Errors
    /// When the directions differ. The message names the declaration to use.
    pub(crate) fn check_declared(self, mode: Option<Mode>) -> Result<()> {
        let Self { name, direction } = self;
        let (declared, better, remedy) = match (mode, direction) {
            (Some(Mode::Max), Direction::LowerIsBetter) => (
                "error_metric",
                ["lower", "higher"],
                format!(
                    ".metric(\"{name}\")`, or `.score(\"{name}\")` if its values are no fractions"
                ),
            ),
            (Some(Mode::Min), Direction::HigherIsBetter) => {
                ("metric", ["higher", "lower"], format!(".error_metric(\"{name}\")`"))
            }
            (Some(Mode::Min), Direction::HigherScoreIsBetter) => {
                ("score", ["higher", "lower"], format!(".error_metric(\"{name}\")`"))
            }
            _ => return Ok(()),
        };
        let [said, known] = better;
        Err(Error::config(format!(
            "`.{declared}(\"{name}\")` declares that {said} values are better, but {known} values of \
             this metric are better: declare it with `{remedy}"
        )))
    }

    /// Returns the smallest possible difference between two values of the metric, where `examples`
    /// is the number of validation examples. For a fraction of the examples, this is 1/`examples`.
    /// Any other metric is assumed to be continuous, and the result is 0.
    pub fn resolution(self, examples: i64) -> f64 {
        match self.direction.is_share() {
            true => 1.0 / examples.max(1) as f64,
            false => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Judge, Mode};

    #[rstest]
    #[case::loss(Judge::higher("val_loss"), "declare it with `.judged_by_loss()`")]
    #[case::score(Judge::score("val_loss"), "`.score(\"val_loss\")` declares that higher")]
    #[case::error(Judge::higher("val_mae"), "declare it with `.error_metric(\"val_mae\")`")]
    #[case::word(Judge::higher("val_top1_error"), "`.metric(\"val_top1_error\")` declares")]
    #[case::rate(Judge::higher("val_error_rate"), ".error_metric(\"val_error_rate\")")]
    #[case::joined(Judge::score("val/LogLoss"), ".error_metric(\"val/LogLoss\")")]
    #[case::perplexity(Judge::score("val_perplexity"), ".error_metric(\"val_perplexity\")")]
    fn an_error_of_which_higher_values_are_better_is_refused(
        #[case] judge: Judge,
        #[case] expected: &str,
    ) {
        let said = judge.check().expect_err("an error").to_string();
        assert!(said.contains(expected), "{said}");
    }

    #[rstest]
    #[case(Judge::loss())]
    #[case(Judge::lower("val_mae"))]
    #[case(Judge::DEFAULT)]
    #[case(Judge::score("val_psnr"))]
    #[case(Judge::score("val_neg_mean_squared_error"))]
    #[case(Judge::higher("val_error_recall"))]
    #[case(Judge::higher("val_success_rate"))]
    fn every_other_value_is_accepted(#[case] judge: Judge) {
        assert!(judge.check().is_ok());
    }

    #[rstest]
    #[case::accuracy(
        Judge::lower("val_acc"),
        Mode::Max,
        "declare it with `.metric(\"val_acc\")`, or `.score("
    )]
    #[case::share(
        Judge::higher("val_gap"),
        Mode::Min,
        "declare it with `.error_metric(\"val_gap\")`"
    )]
    #[case::score(Judge::score("val_gap"), Mode::Min, "`.score(\"val_gap\")` declares that higher")]
    fn the_direction_of_the_models_metric_is_compared(
        #[case] judge: Judge,
        #[case] mode: Mode,
        #[case] expected: &str,
    ) {
        let said = judge.check_declared(Some(mode)).expect_err("an error").to_string();
        assert!(said.contains(expected), "{said}");
        assert!(judge.check_declared(None).is_ok());
        assert!(judge.check_declared(Some(judge.direction.mode())).is_ok());
    }

    /// A value above 1 is no fraction. The note names the declarations for both directions, because
    /// the name alone does not say which values are better.
    #[test]
    fn the_note_on_a_metric_that_is_no_fraction_names_both_remedies() {
        let judge = Judge::higher("val_level");
        let said = judge.direction.no_share(judge.name, [1.5]).expect("a note");
        assert!(said.contains(".score(\"val_level\")` if higher values are better"), "{said}");
        assert!(
            said.contains(".error_metric(\"val_level\")` if lower values are better"),
            "{said}"
        );
        assert_eq!(judge.direction.no_share(judge.name, [0.5]), None);
    }
}
