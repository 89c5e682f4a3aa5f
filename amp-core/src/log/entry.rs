//! The values that were logged under one name, and how the value of an epoch is computed from them.

use tch::{Device, Kind, Tensor};

use super::{LogOptions, Logged};
use crate::{
    Error, Result,
    metric::{Merge, MetricState, Part, Reduction},
    state::State,
};

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) options: LogOptions,
    /// How the reported value is computed from the state, for example as a mean. A log that is
    /// restored from a checkpoint has `None` here until the model provides the function.
    pub(super) reduction: Option<Reduction>,
    /// The sums over the steps of the epoch. Until a second step is added, the sums share their
    /// tensors with `latest`.
    pub(super) state: MetricState,
    /// The state of the latest step that logged the value.
    pub(super) latest: MetricState,
    /// Whether a hook logs the value (true) or a step (false). `None` in a log from an older
    /// checkpoint, which does not contain this information.
    pub(super) of_hook: Option<bool>,
    /// The number of batches in the sums. Skipped steps do not count, so the number is 0 if all
    /// steps that logged a value were skipped.
    pub(super) batches: u64,
}

impl Entry {
    /// Returns an error if both a step and a hook log a value under this name, because a mean over
    /// their values has no meaning.
    pub(super) fn is_logged_by(&self, hook: bool) -> Result<()> {
        match self.of_hook {
            Some(own) if own != hook => Err(Error::config(format!(
                "log `{}`: the step and a hook log the same name: rename one of them",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// Adds the name of the logged value to the text of an error.
    pub(super) fn named(&self, error: Error) -> Error {
        match error {
            Error::Config(text) => Error::config(format!("log `{}`: {text}", self.name)),
            other => other,
        }
    }

    /// Returns whether `other` reduces values in the same way as this entry. Returns true if one of
    /// the two reductions is unknown.
    pub(super) fn is_reduced_like(&self, other: Option<&Reduction>) -> bool {
        match (&self.reduction, other) {
            (Some(own), Some(other)) => own.name() == other.name(),
            _ => true,
        }
    }

    /// Empties the sums if they contain only values of skipped steps.
    pub(super) fn forget_left_out(&mut self) -> Result<()> {
        if self.batches == 0 {
            self.state = self.state.nothing_like()?;
        }
        Ok(())
    }

    pub(super) fn add(&mut self, reduction: Option<&Reduction>, state: MetricState) -> Result<()> {
        let state = match (&self.reduction, reduction) {
            (Some(Reduction::Ratio), Some(Reduction::Mean)) => as_ratio(&state)?,
            // So far the entry summed the weights of its mean on the host. This batch has its
            // weight on the device, so the sum of the weights is moved there.
            (Some(Reduction::Mean), Some(Reduction::Ratio)) => {
                self.state = as_ratio(&self.state)?;
                self.reduction = reduction.cloned();
                state
            }
            _ => state,
        };
        if !self.is_reduced_like(reduction) || !self.state.is_like(&state) {
            let error = self.state.differs(&state);
            return Err(self.named(error));
        }
        if self.reduction.is_none() {
            self.reduction = reduction.cloned();
        }
        self.state.add(&state, self.batches > 1)?;
        self.batches += 1;
        self.latest = state;
        Ok(())
    }

    /// Reads the value from the device. If it has several elements, returns one value per element,
    /// whose name ends in the element's index.
    pub(super) fn read(&self, state: &MetricState) -> Result<Vec<Logged>> {
        let name = &self.name;
        let Some(reduction) = &self.reduction else {
            return Err(Error::config(format!(
                "log `{name}`: the run was saved at the end of an epoch, and the model does not \
                 define how `{name}` is computed: define it in `LightningModule::reduction`, or \
                 resume from a file that was saved within the epoch"
            )));
        };
        let value = reduction.compute(state).map_err(|error| self.named(error))?;
        let logged = |name: String, value| Logged { name, value, prog_bar: self.options.prog_bar };
        let sizes = value.size();
        let values = Vec::<f64>::try_from(&value.f_reshape([-1])?)?;
        if sizes.is_empty() {
            return Ok(values.into_iter().map(|value| logged(name.clone(), value)).collect());
        }
        let places = values.into_iter().zip(0_i64..).map(|(value, at)| {
            let (mut name, mut rest, mut within) =
                (name.clone(), at, sizes.iter().product::<i64>());
            for size in &sizes {
                within /= size;
                name = format!("{name}_{}", rest / within);
                rest %= within;
            }
            logged(name, value)
        });
        Ok(places.collect())
    }

    pub(super) fn copied(&self, device: Device) -> Result<Self> {
        Ok(Self {
            name: self.name.clone(),
            reduction: self.reduction.clone(),
            state: self.state.copied_to(device)?,
            latest: self.latest.copied_to(device)?,
            ..*self
        })
    }

    pub(super) fn to_state(&self) -> Result<State> {
        let mut to = State::default();
        to.put("options", &self.options)?;
        to.put("reduction", &self.reduction.as_ref().map_or("Of", Reduction::name))?;
        to.put("weights", &(self.state.weight, self.latest.weight, self.batches))?;
        to.put("of_hook", &self.of_hook)?;
        let merges: Vec<Merge> = self.state.parts.iter().map(|part| part.merge).collect();
        to.put("merges", &merges)?;
        for (state, key) in [(&self.state, "counts"), (&self.latest, "latest")] {
            for (tensor, at) in state.tensors()?.iter().zip(0..) {
                to.put_tensor(name_of(key, at), tensor);
            }
        }
        Ok(to)
    }

    pub(super) fn from_state(from: &State, name: String, device: Device) -> Result<Self> {
        let (weight, latest, batches) = from.get("weights")?;
        // Checkpoints of older versions have no field `merges`. Their entries have one sum.
        let merges: Vec<Merge> = from.get("merges").unwrap_or_else(|_| vec![Merge::Sum]);
        let state = |key: &str, weight: f64| -> Result<MetricState> {
            let parts = merges.iter().zip(0..).map(|(merge, at)| {
                let pieces = vec![from.tensor(&name_of(key, at))?.shallow_clone()];
                Ok(Part { merge: *merge, pieces })
            });
            // The tensors are copied, because sums are updated in place.
            MetricState { parts: parts.collect::<Result<_>>()?, weight }.copied_to(device)
        };
        Ok(Self {
            options: from.get("options")?,
            of_hook: from.get("of_hook").unwrap_or(None),
            reduction: Reduction::named(&from.get::<String>("reduction")?),
            state: state("counts", weight)?,
            latest: state("latest", latest)?,
            batches,
            name,
        })
    }
}

/// Returns the name under which the tensor at an index is saved.
fn name_of(key: &str, at: usize) -> String {
    match at {
        0 => key.to_owned(),
        at => format!("{key}_{at}"),
    }
}

/// Converts a mean whose weight is on the host to a sum and a weight on the device.
fn as_ratio(mean: &MetricState) -> Result<MetricState> {
    let [sum] = mean
        .tensors()?
        .try_into()
        .map_err(|_| Error::config("the state of a mean must be one sum"))?;
    let weight = sum.f_full_like(mean.weight)?;
    MetricState::sum(&Tensor::f_stack(&[sum.f_to_kind(Kind::Double)?, weight], 0)?)
}
