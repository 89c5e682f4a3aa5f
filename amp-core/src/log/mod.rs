//! The log of a run's steps. It keeps sums on the device, and reads them at the logging interval
//! and at the end of the epoch.

mod captured;
mod entry;
mod interval;
mod media;

pub(crate) use captured::{CapturedLog, LogRoom};
pub(crate) use interval::Interval;
pub use media::{Histogram, Image, Media};

use serde::{Deserialize, Deserializer, Serialize};
use tch::{Device, Kind, Tensor};

use self::entry::Entry;
use crate::{
    Error, Result,
    loss::Counted,
    metric::{Metric, MetricState, Reduction},
    state::State,
};

/// When a value is reported. The names of the fields are Lightning's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// Whether the value of each batch is reported, at the logging interval.
    pub on_step: bool,
    /// Whether the value of the epoch is reported, at the end of the epoch.
    pub on_epoch: bool,
    /// Whether the progress bar shows the value.
    pub prog_bar: bool,
}

impl LogOptions {
    /// Only the value of each batch is reported, at the logging interval.
    pub const ON_STEP: Self = Self { on_step: true, on_epoch: false, prog_bar: false };
    /// Only the value of the epoch is reported, at the end of the epoch.
    pub const ON_EPOCH: Self = Self { on_step: false, on_epoch: true, prog_bar: false };
    /// Both the value of the batch and the value of the epoch are reported.
    pub const ON_BOTH: Self = Self { on_step: true, on_epoch: true, prog_bar: false };
}

/// A reported value with its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logged {
    /// The name of the value, such as `train_loss`.
    pub name: String,
    /// The value itself. In JSON, NaN and infinities are written as null.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
    /// Whether the progress bar shows the value.
    pub prog_bar: bool,
}

/// Reads a null as NaN, because JSON has no number for values that are not finite.
fn null_is_nan<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// The values that were logged in an epoch of training, or in one evaluation.
#[derive(Debug, Default)]
pub struct Log {
    entries: Vec<Entry>,
    /// Images, texts and histograms that were not yet reported, with their names.
    media: Vec<(String, Media)>,
    interval: Interval,
}

impl Log {
    /// Adds a scalar that belongs to a batch of `batch_size` examples. The value of the epoch is
    /// the mean of these scalars, weighted by `batch_size`. The mean is computed in f64 under every
    /// precision.
    ///
    /// # Errors
    /// When `value` is not a scalar.
    pub fn value(
        &mut self,
        name: &str,
        value: &Tensor,
        batch_size: i64,
        options: LogOptions,
    ) -> Result<()> {
        self.weighed(name, value, batch_size as f64, options)
    }

    /// Adds a value that a hook logs. A name may be logged by hooks or by steps, not by both.
    pub(crate) fn of_hook(
        &mut self,
        name: &str,
        value: &Tensor,
        options: LogOptions,
    ) -> Result<()> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.name == name) {
            entry.is_logged_by(true)?;
        }
        self.weighed(name, value, 1.0, options)?;
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) {
            entry.of_hook = Some(true);
        }
        Ok(())
    }

    fn weighed(
        &mut self,
        name: &str,
        value: &Tensor,
        weight: f64,
        options: LogOptions,
    ) -> Result<()> {
        let value = scalar(name, value)?;
        // The product of value and weight is computed in f64, because the weight is an f64 scalar.
        // A single kernel converts and multiplies.
        let sum = tch::no_grad(|| value.f_mul(&Tensor::from(weight)))?;
        self.add(name, options, Reduction::Mean, MetricState::mean(&sum, weight)?)
    }

    /// Adds the loss of a batch to the mean of the epoch, with the weight `counted`. A batch of
    /// weight 0 has a loss of NaN, which is left out of the mean.
    ///
    /// # Errors
    /// When `value` is not a scalar.
    pub fn loss(
        &mut self,
        name: &str,
        value: &Tensor,
        counted: &Counted,
        options: LogOptions,
    ) -> Result<()> {
        let counted = match counted {
            Counted::Examples(count) => return self.weighed(name, value, *count, options),
            Counted::OnDevice(counted) => counted,
        };
        let counts = tch::no_grad(|| -> Result<Tensor> {
            let sum = scalar(name, value)?.f_to_kind(Kind::Double)?.f_mul(counted)?;
            let sum = sum.f_masked_fill(&counted.f_eq(0.0)?, 0.0)?;
            Ok(Tensor::f_stack(&[&sum, counted], 0)?)
        })?;
        self.add(name, options, Reduction::Ratio, MetricState::sum(&counts)?)
    }

    /// Adds an image, a text or a histogram.
    ///
    /// # Errors
    /// When the batch runs within a CUDA graph, which cannot pass images or texts to the host.
    pub(crate) fn media(
        &mut self,
        name: &str,
        media: impl FnOnce() -> Result<Option<Media>>,
    ) -> Result<()> {
        self.interval.may_copy(name)?;
        let media = media().map_err(|error| match error {
            Error::Config(text) => Error::config(format!("log `{name}`: {text}")),
            other => other,
        })?;
        self.media.extend(media.map(|media| (name.to_owned(), media)));
        Ok(())
    }

    /// Removes all images, texts and histograms from the log and returns them with their names.
    pub(crate) fn take_media(&mut self) -> Vec<(String, Media)> {
        std::mem::take(&mut self.media)
    }

    /// Creates an empty log for a batch at this position in the logging interval.
    pub(crate) fn at(interval: Interval) -> Self {
        Self { interval, ..Self::default() }
    }

    /// Returns the batch's position in the logging interval.
    pub(crate) fn interval(&self) -> &Interval {
        &self.interval
    }

    /// Computes the state of a metric for a batch, and adds it to the state of the epoch.
    ///
    /// # Errors
    /// When the shapes are invalid for the metric.
    pub fn metric(
        &mut self,
        name: &str,
        metric: &dyn Metric,
        output: &Tensor,
        target: &Tensor,
        options: LogOptions,
    ) -> Result<()> {
        let state = tch::no_grad(|| metric.update(&output.detach(), target))?;
        self.metric_state(name, metric, state, options)
    }

    /// Adds the state of a metric to the state of the epoch. The caller has computed the state for
    /// one batch.
    pub(crate) fn metric_state(
        &mut self,
        name: &str,
        metric: &dyn Metric,
        state: MetricState,
        options: LogOptions,
    ) -> Result<()> {
        self.add(name, options, metric.reduction(), state)
    }

    fn add(
        &mut self,
        name: &str,
        options: LogOptions,
        reduction: Reduction,
        state: MetricState,
    ) -> Result<()> {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) {
            entry.forget_left_out()?;
            return entry.add(Some(&reduction), state);
        }
        self.entries.push(Entry {
            name: name.to_owned(),
            options,
            reduction: Some(reduction),
            state: state.shallow_clone(),
            latest: state,
            of_hook: Some(false),
            batches: 1,
        });
        Ok(())
    }

    /// Adds the values of a skipped step. They are reported as the values of the latest step, but
    /// are not part of the epoch's value. Only if all steps of the epoch are skipped is the epoch's
    /// value computed from them.
    pub(crate) fn merge_left_out(&mut self, mut step: Self) -> Result<()> {
        self.take_over(&mut step);
        for entry in step.entries {
            let latest = entry.state.shallow_clone();
            match self.entries.iter_mut().find(|own| own.name == entry.name) {
                Some(own) if own.batches == 0 => {
                    own.is_logged_by(false)?;
                    own.add(entry.reduction.as_ref(), entry.state)?;
                    own.batches = 0;
                }
                Some(own) if own.is_reduced_like(entry.reduction.as_ref()) => own.latest = latest,
                Some(_) => {}
                None => self.entries.push(Entry { latest, batches: 0, ..entry }),
            }
        }
        Ok(())
    }

    /// Adds the values that one batch, or one micro-batch of a batch, has logged.
    pub(crate) fn merge(&mut self, mut batch: Self) -> Result<()> {
        self.take_over(&mut batch);
        for entry in batch.entries {
            match self.entries.iter_mut().find(|own| own.name == entry.name) {
                Some(own) => {
                    own.is_logged_by(false)?;
                    own.forget_left_out()?;
                    own.add(entry.reduction.as_ref(), entry.state)?;
                }
                None => {
                    let latest = entry.state.shallow_clone();
                    self.entries.push(Entry { latest, batches: 1, ..entry });
                }
            }
        }
        Ok(())
    }

    fn take_over(&mut self, batch: &mut Self) {
        self.media.append(&mut batch.media);
        self.interval.follow(&batch.interval);
    }

    /// Returns the sums of the epoch so far, for a checkpoint.
    pub(crate) fn state(&self) -> Result<State> {
        let mut state = State::default();
        let names: Vec<&str> = self.entries.iter().map(|entry| entry.name.as_str()).collect();
        state.put("names", &names)?;
        for entry in &self.entries {
            state.put_part(&entry.name, entry.to_state()?);
        }
        Ok(state)
    }

    /// Restores a saved log on `device`. Call [`take_reductions`](Self::take_reductions) afterwards
    /// to set the functions that compute metrics from their states.
    pub(crate) fn from_state(state: &State, device: Device) -> Result<Self> {
        let names: Vec<String> = state.get("names")?;
        let entry = |name: String| Entry::from_state(&state.part(&name), name, device);
        let entries = names.into_iter().map(entry).collect::<Result<_>>()?;
        Ok(Self { entries, ..Self::default() })
    }

    /// Sets the functions that compute metrics from their states, in a restored log. `of` returns
    /// the model's function for the metric of a name.
    pub(crate) fn take_reductions(&mut self, of: impl Fn(&str) -> Option<Reduction>) {
        for entry in self.entries.iter_mut().filter(|entry| entry.reduction.is_none()) {
            entry.reduction = of(&entry.name);
        }
    }

    /// Returns a log with copies of all tensors, on `device`.
    pub(crate) fn copied(&self, device: Device) -> Result<Self> {
        let entries = self.entries.iter().map(|entry| entry.copied(device));
        Ok(Self { entries: entries.collect::<Result<_>>()?, ..Self::default() })
    }

    /// Reads the values that the latest step logged with `on_step`.
    ///
    /// # Errors
    /// When the device reports an earlier failure.
    pub fn step_values(&self) -> Result<Vec<Logged>> {
        let step = self.in_order().filter(|entry| entry.options.on_step);
        read(step.map(|entry| entry.read(&entry.latest)))
    }

    /// Reads the values of the epoch that were logged with `on_epoch`.
    ///
    /// # Errors
    /// When the device reports an earlier failure.
    pub fn epoch_values(&self) -> Result<Vec<Logged>> {
        let epoch = self.in_order().filter(|entry| entry.options.on_epoch);
        read(epoch.map(|entry| entry.read(&entry.state)))
    }

    /// Returns the entries that steps have logged, then the entries that hooks have logged.
    fn in_order(&self) -> impl Iterator<Item = &Entry> {
        let of_hook = |entry: &&Entry| entry.of_hook == Some(true);
        let steps = self.entries.iter().filter(move |entry| !of_hook(entry));
        steps.chain(self.entries.iter().filter(of_hook))
    }
}

fn read(values: impl Iterator<Item = Result<Vec<Logged>>>) -> Result<Vec<Logged>> {
    let mut all = Vec::new();
    for values in values {
        all.extend(values?);
    }
    Ok(all)
}

/// Reshapes a value with one element to a scalar.
fn scalar(name: &str, value: &Tensor) -> Result<Tensor> {
    match (value.numel(), value.dim()) {
        (1, 0) => Ok(value.shallow_clone()),
        (1, _) => Ok(value.f_reshape([] as [i64; 0])?),
        _ => Err(Error::config(format!(
            "log `{name}`: a logged value must be a scalar, but has shape {:?}: take the mean, as \
             with `value.f_mean(Kind::Float)?`",
            value.size()
        ))),
    }
}
