//! What steps log: sums on the device, read back at the logging interval and the epoch's end.

mod captured;

pub(crate) use captured::CapturedLog;

use serde::{Deserialize, Deserializer, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    loss::Counted,
    metric::{Metric, Reduction},
    state::State,
};

/// When a value is reported; the names are Lightning's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// The batch's own value, at the logging interval.
    pub on_step: bool,
    /// The epoch's value, at its end.
    pub on_epoch: bool,
    /// Whether the progress bar shows it.
    pub prog_bar: bool,
}

impl LogOptions {
    /// The batch's value alone.
    pub const ON_STEP: Self = Self { on_step: true, on_epoch: false, prog_bar: false };
    /// The epoch's value alone.
    pub const ON_EPOCH: Self = Self { on_step: false, on_epoch: true, prog_bar: false };
    /// Both values.
    pub const ON_BOTH: Self = Self { on_step: true, on_epoch: true, prog_bar: false };
}

/// One reported value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logged {
    /// Its name, as in `train_loss`.
    pub name: String,
    /// Its value; one that is not finite is null in JSON.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
    /// Whether the progress bar shows it.
    pub prog_bar: bool,
}

/// JSON has no number for what is not finite.
fn null_is_nan<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// The values of one epoch and stage.
#[derive(Debug, Default)]
pub struct Log {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    options: LogOptions,
    reduction: Reduction,
    /// The same tensor as the latest one's, until there is a second to add.
    counts: Tensor,
    weight: f64,
    latest: (Tensor, f64),
    /// Whether a hook logs it, and no step; unknown of an older file's.
    of_hook: Option<bool>,
    /// 0 while all that it holds is of steps that were left out.
    batches: u64,
}

impl Log {
    /// Adds a scalar of `batch_size` examples. At least f64 is kept, whatever the precision.
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

    /// Adds what a hook logs, beside what steps do.
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
        // One kernel and without a graph: a scalar that is f64 makes the product so.
        let sum = tch::no_grad(|| value.f_mul(&Tensor::from(weight)))?;
        self.add(name, options, Reduction::Mean, sum, weight)
    }

    /// Adds the loss of a batch that counts so much in the epoch's mean. Where nothing counts, nothing is
    /// added: the loss is NaN there.
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
        self.add(name, options, Reduction::Ratio, counts, 0.0)
    }

    /// Adds a metric's counts.
    ///
    /// # Errors
    /// When shapes do not fit the metric.
    pub fn metric(
        &mut self,
        name: &str,
        metric: &dyn Metric,
        output: &Tensor,
        target: &Tensor,
        options: LogOptions,
    ) -> Result<()> {
        let (counts, weight) = tch::no_grad(|| metric.counts(&output.detach(), target))?;
        self.add(name, options, metric.reduction(), counts, weight)
    }

    fn add(
        &mut self,
        name: &str,
        options: LogOptions,
        reduction: Reduction,
        counts: Tensor,
        weight: f64,
    ) -> Result<()> {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) {
            entry.forget_left_out()?;
            return entry.add(reduction, counts, weight);
        }
        self.entries.push(Entry {
            name: name.to_owned(),
            options,
            reduction,
            counts: counts.shallow_clone(),
            weight,
            latest: (counts, weight),
            of_hook: Some(false),
            batches: 1,
        });
        Ok(())
    }

    /// Takes in what the batches of a step that was left out have logged: its values are the latest, and
    /// count in a mean only while no other does.
    pub(crate) fn merge_left_out(&mut self, step: Self) -> Result<()> {
        for entry in step.entries {
            let latest = (entry.counts.shallow_clone(), entry.weight);
            match self.entries.iter_mut().find(|own| own.name == entry.name) {
                Some(own) if own.batches == 0 => {
                    own.is_logged_by(false)?;
                    own.add(entry.reduction, entry.counts, entry.weight)?;
                    own.batches = 0;
                }
                Some(own) if own.reduction == entry.reduction => own.latest = latest,
                Some(_) => {}
                None => self.entries.push(Entry { latest, batches: 0, ..entry }),
            }
        }
        Ok(())
    }

    /// Takes in what one batch logged, perhaps in parts.
    pub(crate) fn merge(&mut self, batch: Self) -> Result<()> {
        for entry in batch.entries {
            match self.entries.iter_mut().find(|own| own.name == entry.name) {
                Some(own) => {
                    own.is_logged_by(false)?;
                    own.forget_left_out()?;
                    own.add(entry.reduction, entry.counts, entry.weight)?;
                }
                None => {
                    let latest = (entry.counts.shallow_clone(), entry.weight);
                    self.entries.push(Entry { latest, batches: 1, ..entry });
                }
            }
        }
        Ok(())
    }

    /// The sums so far, to go on from.
    pub(crate) fn state(&self) -> Result<State> {
        let mut state = State::default();
        let names: Vec<&str> = self.entries.iter().map(|entry| entry.name.as_str()).collect();
        state.put("names", &names)?;
        for entry in &self.entries {
            let mut part = State::default();
            part.put("options", &entry.options)?;
            part.put("reduction", &entry.reduction)?;
            part.put("weights", &(entry.weight, entry.latest.1, entry.batches))?;
            part.put("of_hook", &entry.of_hook)?;
            part.put_tensor("counts", &entry.counts);
            part.put_tensor("latest", &entry.latest.0);
            state.put_part(&entry.name, part);
        }
        Ok(state)
    }

    /// The log that was saved, on `device`.
    pub(crate) fn from_state(state: &State, device: Device) -> Result<Self> {
        let entry = |name: String| -> Result<Entry> {
            let part = state.part(&name);
            let (weight, latest, batches) = part.get("weights")?;
            Ok(Entry {
                options: part.get("options")?,
                of_hook: part.get("of_hook").unwrap_or(None),
                reduction: part.get("reduction")?,
                // Of its own: sums are added to in place.
                counts: part.tensor("counts")?.f_to_device_(device, Kind::Double, false, true)?,
                weight,
                latest: (part.tensor("latest")?.f_to_device(device)?, latest),
                batches,
                name,
            })
        };
        let names: Vec<String> = state.get("names")?;
        Ok(Self { entries: names.into_iter().map(entry).collect::<Result<_>>()? })
    }

    /// Reads the latest batch's values.
    ///
    /// # Errors
    /// When the device reports an earlier failure.
    pub fn step_values(&self) -> Result<Vec<Logged>> {
        let step = self.in_order().filter(|entry| entry.options.on_step);
        step.map(|entry| entry.read(&entry.latest.0, entry.latest.1)).collect()
    }

    /// Reads the epoch's values.
    ///
    /// # Errors
    /// When the device reports an earlier failure.
    pub fn epoch_values(&self) -> Result<Vec<Logged>> {
        let epoch = self.in_order().filter(|entry| entry.options.on_epoch);
        epoch.map(|entry| entry.read(&entry.counts, entry.weight)).collect()
    }

    /// What steps have logged, then what hooks have: which came first depends on how a step runs.
    fn in_order(&self) -> impl Iterator<Item = &Entry> {
        let of_hook = |entry: &&Entry| entry.of_hook == Some(true);
        let steps = self.entries.iter().filter(move |entry| !of_hook(entry));
        steps.chain(self.entries.iter().filter(of_hook))
    }
}

/// A sum with its weight, on its device.
fn as_ratio(sum: &Tensor, weight: f64) -> Result<Tensor> {
    let sum = sum.f_to_kind(Kind::Double)?;
    Ok(Tensor::f_stack(&[&sum, &sum.f_full_like(weight)?], 0)?)
}

/// The value without dimensions.
fn scalar(name: &str, value: &Tensor) -> Result<Tensor> {
    match (value.numel(), value.dim()) {
        (1, 0) => Ok(value.shallow_clone()),
        (1, _) => Ok(value.f_reshape([] as [i64; 0])?),
        _ => Err(Error::config(format!(
            "log `{name}`: a logged value is a scalar, got shape {:?}",
            value.size()
        ))),
    }
}

impl Entry {
    /// Refuses a step's value and a hook's under one name: their mean is neither's.
    fn is_logged_by(&self, hook: bool) -> Result<()> {
        match self.of_hook {
            Some(own) if own != hook => Err(Error::config(format!(
                "log `{}`: the step and a hook log under one name: rename one of them",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// Begins anew where it holds nothing but what was left out.
    fn forget_left_out(&mut self) -> Result<()> {
        if self.batches == 0 {
            (self.counts, self.weight) = (self.counts.f_zeros_like()?, 0.0);
        }
        Ok(())
    }

    fn add(&mut self, reduction: Reduction, counts: Tensor, weight: f64) -> Result<()> {
        let (counts, weight) = match (self.reduction, reduction) {
            (own, given) if own == given && self.counts.size() == counts.size() => (counts, weight),
            // A mean, whose weight was on the host for some batches and on the device for others.
            (Reduction::Ratio, Reduction::Mean) => (as_ratio(&counts, weight)?, 0.0),
            (Reduction::Mean, Reduction::Ratio) => {
                self.counts = as_ratio(&self.counts, std::mem::take(&mut self.weight))?;
                self.reduction = reduction;
                (counts, weight)
            }
            _ => {
                return Err(Error::config(format!(
                    "log `{}`: its counts were of shape {:?} and are of shape {:?} now",
                    self.name,
                    self.counts.size(),
                    counts.size()
                )));
            }
        };
        // What a hook logs is the host's or the device's, as its step ran.
        let (own, device) = (counts.device(), self.counts.device());
        let counts = if own == device { counts } else { counts.f_to_device(device)? };
        match self.batches {
            0 | 1 => self.counts = self.counts.f_add(&counts)?,
            _ => _ = self.counts.f_add_(&counts)?,
        }
        self.batches += 1;
        self.weight += weight;
        self.latest = (counts, weight);
        Ok(())
    }

    fn read(&self, counts: &Tensor, weight: f64) -> Result<Logged> {
        let counts = Vec::<f64>::try_from(&counts.f_reshape([-1])?)?;
        Ok(Logged {
            name: self.name.clone(),
            value: self.reduction.compute(&counts, weight),
            prog_bar: self.options.prog_bar,
        })
    }
}
