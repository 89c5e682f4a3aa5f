//! The length of a run, the number of batches of each data set that the run uses, and the moments
//! at which it validates.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, data::Limit, optim::TrainingPlan};

/// When a run validates. Its text form is that of Lightning's `val_check_interval`.
///
/// ```
/// use std::time::Duration;
///
/// use amp_core::trainer::ValCheckInterval;
///
/// # fn main() -> amp_core::Result<()> {
/// assert_eq!("0.25".parse::<ValCheckInterval>()?, ValCheckInterval::Fraction(0.25));
/// assert_eq!("500".parse::<ValCheckInterval>()?, ValCheckInterval::Steps(500));
/// let minutes = Duration::from_secs(15 * 60);
/// assert_eq!("00:15:00".parse::<ValCheckInterval>()?, ValCheckInterval::Time(minutes));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ValCheckInterval {
    /// Each time this fraction of an epoch's batches has been trained, in the epochs that
    /// [`Loops::check_val_every_n_epoch`] selects. 1.0 means the epoch's end.
    Fraction(f64),
    /// Each time this number of optimizer steps has run, counted across epochs. A skipped step
    /// counts. A step that is repeated counts once.
    Steps(i64),
    /// After the first optimizer step that ends at least this long after the last validation.
    Time(Duration),
    /// No validation during training.
    Never,
}

impl Default for ValCheckInterval {
    /// Validates at the end of each epoch.
    fn default() -> Self {
        Self::Fraction(1.0)
    }
}

impl fmt::Display for ValCheckInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fraction(part) => write!(f, "{part:?}"),
            Self::Steps(steps) => write!(f, "{steps}"),
            Self::Time(time) => f.write_str(&show_time(*time)),
            Self::Never => f.write_str("never"),
        }
    }
}

impl FromStr for ValCheckInterval {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let steps = || text.parse().ok().map(Self::Steps);
        let fraction = || text.parse().ok().map(Self::Fraction);
        let interval = match text {
            "never" => Some(Self::Never),
            time if time.contains(':') => Some(Self::Time(parse_time(time)?)),
            _ => steps().or_else(fraction),
        };
        interval.ok_or_else(|| interval_error(text))?.checked()
    }
}

impl ValCheckInterval {
    fn checked(self) -> Result<Self> {
        let fits = match self {
            Self::Fraction(part) => part > 0.0 && part <= 1.0,
            Self::Steps(steps) => steps > 0,
            Self::Time(time) => !time.is_zero(),
            Self::Never => true,
        };
        if fits { Ok(self) } else { Err(interval_error(&self.to_string())) }
    }
}

fn interval_error(text: &str) -> Error {
    Error::config(format!(
        "val_check_interval is {text}: give a fraction of an epoch (above 0.0, at most 1.0), a number \
         of optimizer steps, a time as in 00:15:00, or never"
    ))
}

/// Parses a time in the form `HH:MM:SS` or `DD:HH:MM:SS`, the forms of Lightning's `max_time`.
///
/// # Errors
/// When the text has neither form.
pub fn parse_time(text: &str) -> Result<Duration> {
    let error = || {
        Error::config(format!(
            "`{text}` is not a time: give hours, minutes and seconds, as in 01:30:00"
        ))
    };
    let parts: Vec<u64> = text
        .split(':')
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| error())?;
    let (days, rest) = match parts.as_slice() {
        [days, rest @ ..] if rest.len() == 3 => (*days, rest),
        rest => (0, rest),
    };
    match rest {
        [hours, minutes, seconds] if *minutes < 60 && *seconds < 60 => {
            Ok(Duration::from_secs(((days * 24 + hours) * 60 + minutes) * 60 + seconds))
        }
        _ => Err(error()),
    }
}

/// Formats a time as `HH:MM:SS`, the form that [`parse_time`] reads.
pub(in crate::trainer) fn show_time(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The length of a run, the number of batches of each data set that the run uses, and the moments
/// at which it validates. Names and defaults are Lightning's, with one exception: the default of
/// [`num_sanity_val_steps`](Self::num_sanity_val_steps) is 0 instead of Lightning's 2, so no batch
/// is validated before training.
///
/// ```
/// use amp_core::{prelude::*, trainer::ValCheckInterval};
///
/// // Half of each epoch's training batches, and a validation after every 500 optimizer steps.
/// let config = TrainerConfig::new(Precision::F32True, Device::Cpu).with(|config| {
///     config.loops.limit_train_batches = amp_core::data::Limit::Fraction(0.5);
///     config.loops.val_check_interval = ValCheckInterval::Steps(500);
/// });
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Loops {
    /// No callback can stop the run before this number of epochs has ended.
    pub min_epochs: i64,
    /// No callback can stop the run before this number of optimizer steps has ended.
    pub min_steps: u64,
    /// The largest training time: training ends with the first step that ends after this time. In a
    /// resumed run, the training time before the checkpoint counts too. `None` means no limit.
    pub max_time: Option<Duration>,
    /// How many training batches of each epoch are used.
    pub limit_train_batches: Limit,
    /// How many batches of each validation set are used.
    pub limit_val_batches: Limit,
    /// How many batches of each test set are used.
    pub limit_test_batches: Limit,
    /// How many batches of each prediction set are used.
    pub limit_predict_batches: Limit,
    /// Trains only on this many batches from the beginning of the training set, in order, and
    /// validates on the same batches. If the training set is a stream, each epoch begins at the
    /// stream's beginning. A model that is able to learn memorizes these batches.
    pub overfit_batches: Option<Limit>,
    /// Trains for one epoch with this number of batches, and uses the same number of batches in
    /// validation, test and prediction. Nothing is saved. Use this option to test quickly that all
    /// code of a model runs.
    pub fast_dev_run: Option<i64>,
    /// The number of batches of each validation set that are validated before training, so that a
    /// mistake in the validation shows at once. The values of these batches are not reported. With
    /// 0, one batch is still validated if a callback or schedule reads a validation value, to check
    /// that the model logs it.
    pub num_sanity_val_steps: i64,
    /// When the run validates: at the ends of epochs, within epochs, or never.
    pub val_check_interval: ValCheckInterval,
    /// The number of training epochs from one validation to the next, if `val_check_interval` is a
    /// fraction of an epoch.
    pub check_val_every_n_epoch: i64,
}

impl Default for Loops {
    fn default() -> Self {
        Self {
            min_epochs: 0,
            min_steps: 0,
            max_time: None,
            limit_train_batches: Limit::default(),
            limit_val_batches: Limit::default(),
            limit_test_batches: Limit::default(),
            limit_predict_batches: Limit::default(),
            overfit_batches: None,
            fast_dev_run: None,
            num_sanity_val_steps: 0,
            val_check_interval: ValCheckInterval::default(),
            check_val_every_n_epoch: 1,
        }
    }
}

impl Loops {
    /// Checks that each option is in its allowed range.
    pub(in crate::trainer) fn check(&self) -> Result<()> {
        let limits = [
            ("limit_train_batches", Some(self.limit_train_batches)),
            ("limit_val_batches", Some(self.limit_val_batches)),
            ("limit_test_batches", Some(self.limit_test_batches)),
            ("limit_predict_batches", Some(self.limit_predict_batches)),
            ("overfit_batches", self.overfit_batches),
        ];
        for (name, limit) in limits {
            limit.map(|limit| limit.checked(name)).transpose()?;
        }
        let counts = [
            ("min_epochs", self.min_epochs, 0),
            ("num_sanity_val_steps", self.num_sanity_val_steps, 0),
            ("check_val_every_n_epoch", self.check_val_every_n_epoch, 1),
            ("fast_dev_run", self.fast_dev_run.unwrap_or(1), 1),
        ];
        for (name, value, least) in counts {
            if value < least {
                return Err(Error::config(format!(
                    "{name} is {value}, but must be at least {least}"
                )));
            }
        }
        self.val_check_interval.checked().map(drop)
    }

    /// Returns the options that apply after `fast_dev_run` and `overfit_batches` have overridden
    /// other options.
    pub(in crate::trainer) fn resolved(&self) -> Self {
        let mut loops = self.clone();
        if let Some(limit) = self.overfit_batches {
            (loops.limit_train_batches, loops.limit_val_batches) = (limit, limit);
        }
        if let Some(batches) = self.fast_dev_run {
            let limit = Limit::Batches(batches);
            loops.limit_train_batches = limit;
            loops.limit_val_batches = limit;
            loops.limit_test_batches = limit;
            loops.limit_predict_batches = limit;
            (loops.min_epochs, loops.min_steps, loops.num_sanity_val_steps) = (0, 0, 0);
            loops.val_check_interval = ValCheckInterval::default();
            loops.check_val_every_n_epoch = 1;
        }
        loops
    }
}

/// Which steps of a run are followed by a validation.
#[derive(Debug, Clone, Copy)]
pub(in crate::trainer) struct Validations {
    interval: ValCheckInterval,
    every_n_epoch: i64,
    /// The number of batches per epoch.
    batches: i64,
    /// The number of batches per optimizer step.
    window: i64,
}

impl Validations {
    pub(in crate::trainer) fn new(loops: &Loops, batches: i64, window: i64) -> Self {
        Self {
            interval: loops.val_check_interval,
            every_n_epoch: loops.check_val_every_n_epoch,
            batches,
            window,
        }
    }

    /// Returns whether a validation follows the step whose last batch has the index `end - 1` in
    /// this epoch. Returns false for [`ValCheckInterval::Time`], which
    /// [`is_due_after`](Self::is_due_after) handles.
    pub(in crate::trainer) fn follows(&self, epoch: i64, end: i64) -> bool {
        match self.interval {
            ValCheckInterval::Fraction(part) => {
                let every = ((self.batches as f64 * part) as i64).max(1);
                let start = end - (end - 1) % self.window - 1;
                // If the number of trained batches passes a multiple of `every` within a step, the
                // validation follows this step.
                (epoch + 1) % self.every_n_epoch == 0
                    && (end / every > start / every || (part == 1.0 && end == self.batches))
            }
            ValCheckInterval::Steps(every) => {
                let steps =
                    |batches: i64| batches / self.window + i64::from(batches % self.window > 0);
                (epoch * steps(self.batches) + steps(end)) % every == 0
            }
            ValCheckInterval::Time(_) | ValCheckInterval::Never => false,
        }
    }

    /// Returns a note if a run of this length never validates, unless the user chose `never`.
    pub(in crate::trainer) fn note(&self, length: TrainingPlan) -> Option<String> {
        let steps = length.estimated_stepping_batches;
        let steps_per_epoch = (self.batches - 1) / self.window + 1;
        match self.interval {
            ValCheckInterval::Steps(every) if steps < every => Some(format!(
                "this run validates nothing: it has {steps} optimizer steps and val_check_interval \
                 is {every} steps; lower val_check_interval, or set it to `never`"
            )),
            ValCheckInterval::Fraction(_) => {
                let epochs = (steps - 1) / steps_per_epoch + 1;
                (epochs < self.every_n_epoch).then(|| {
                    format!(
                        "this run validates nothing: it has {epochs} epochs and \
                         check_val_every_n_epoch is {}; lower it, or set val_check_interval to \
                         `never`",
                        self.every_n_epoch
                    )
                })
            }
            ValCheckInterval::Steps(_) | ValCheckInterval::Time(_) | ValCheckInterval::Never => {
                None
            }
        }
    }

    /// Returns whether a validation runs at the end of this epoch. `is_whole` is false if the run
    /// ends before it has trained all batches of the epoch.
    pub(in crate::trainer) fn ends_epoch(&self, epoch: i64, is_whole: bool) -> bool {
        let by_fraction = matches!(self.interval, ValCheckInterval::Fraction(_));
        (is_whole || by_fraction) && self.follows(epoch, self.batches)
    }

    /// Returns whether a validation is due under [`ValCheckInterval::Time`]. `passed` is the time
    /// since the last validation.
    pub(in crate::trainer) fn is_due_after(&self, passed: Duration) -> bool {
        matches!(self.interval, ValCheckInterval::Time(every) if passed >= every)
    }

    /// Returns whether a validation runs at the end of each epoch and at no other moment.
    pub(in crate::trainer) fn follow_each_epoch(&self) -> bool {
        self.interval == ValCheckInterval::Fraction(1.0) && self.every_n_epoch == 1
    }
}
