//! The final state of a run: everything on which the next step depends, and the logged values.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Hook, LightningModule, Result,
    callback::{Action, Callback},
    memory::{MemoryMeter, cuda_free},
    nn::named_tensors,
    precision::StepOutcome,
    record::RunRecord,
    state::State,
    tch::{Device, Kind, Tensor, no_grad},
    trainer::StepAccess,
};
use serde_json::{Map, Value};

use super::tolerance::Tolerance;
use crate::gate::{deadline::Deadline, hooks::copy_of};

/// The state at the end of a run, in the form in which it is compared with the final state of
/// another run.
pub(super) struct FinalState {
    /// The tensors of the model and of its optimizers.
    pub(super) tensors: Vec<(String, Tensor)>,
    /// The learning rates, and the state of the schedules.
    values: Map<String, Value>,
    pub(super) record: RunRecord,
    pub(super) counts: Counts,
}

/// Records the optimizers' state at the end of each epoch and the memory after each step. It reads
/// no tensor within a step, because then the trainer could not use CUDA graphs.
#[derive(Clone, Default)]
pub(super) struct StateRecorder(Rc<RefCell<Recorded>>);

#[derive(Default)]
struct Recorded {
    deadline: Deadline,
    state: State,
    meter: Option<MemoryMeter>,
    counts: Counts,
}

/// The numbers of batches and steps of a run, and the memory after each step.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    pub(super) batches: i64,
    /// The number of steps, applied or skipped.
    pub(super) attempts: i64,
    /// For each step: the bytes of all tensors after the step, minus the bytes of all tensors
    /// before the run.
    pub(super) held: Vec<i64>,
}

impl StateRecorder {
    /// Creates a recorder that does not measure memory. The recorder ends the run when the deadline
    /// has passed.
    pub(super) fn until(deadline: &Deadline) -> Self {
        let deadline = deadline.clone();
        Self(Rc::new(RefCell::new(Recorded { deadline, ..Recorded::default() })))
    }

    /// Creates a recorder that also measures memory. The recorder ends the run when the deadline
    /// has passed.
    pub(super) fn new(device: Device, deadline: &Deadline) -> Result<Self> {
        let (meter, deadline) = (Some(MemoryMeter::start(device)?), deadline.clone());
        Ok(Self(Rc::new(RefCell::new(Recorded { meter, deadline, ..Recorded::default() }))))
    }
}

impl Callback for StateRecorder {
    fn name(&self) -> String {
        "the final state of a run".into()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }

    fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let mut state = State::default();
        for (at, scheduled) in hook.optimizers().iter().enumerate() {
            state.put_part(&format!("optimizer {at}"), scheduled.state()?);
        }
        self.0.borrow_mut().state = state.copied()?;
        Ok(())
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        let Recorded { meter, counts, deadline, .. } = &mut *self.0.borrow_mut();
        deadline.check()?;
        counts.batches += 1;
        if outcome.is_some() {
            counts.attempts += 1;
            if let Some(meter) = meter {
                counts.held.push(meter.allocated()?);
            }
        }
        Ok(Vec::new())
    }
}

impl FinalState {
    pub(super) fn new(
        model: &dyn LightningModule,
        recorder: &StateRecorder,
        record: RunRecord,
    ) -> Result<Self> {
        let mut tensors: Vec<(String, Tensor)> =
            named_tensors(model).into_iter().map(|(name, tensor, _)| (name, tensor)).collect();
        let Recorded { state, counts, .. } = recorder.0.take();
        tensors.extend(state.tensors().map(|(name, held)| (name.to_owned(), held.shallow_clone())));
        let tensors = snapshot(tensors)?;
        Ok(Self { tensors, values: state.values().clone(), record, counts })
    }

    /// Returns how far the final state of another run of the same steps may differ from this one.
    /// `again` is the final state after this run was repeated. If `again` has the same bits as this
    /// state, the other run must have the same bits, too. Otherwise the tolerance is computed from
    /// the difference between the two.
    pub(super) fn repeated(&self, again: &Self) -> Result<Tolerance> {
        match self.difference(again, &Tolerance::default())? {
            None => Ok(Tolerance::default()),
            Some(_) => Tolerance::of_repeated(&self.tensors, &again.tensors),
        }
    }

    /// Describes the first difference from the final state `other` that exceeds `tolerance`. The
    /// default tolerance accepts no difference at all. Returns `None` if there is no such
    /// difference.
    pub(super) fn difference(&self, other: &Self, tolerance: &Tolerance) -> Result<Option<String>> {
        let (own, others) = (&self.record.end, &other.record.end);
        if (own.global_step, own.skipped) != (others.global_step, others.skipped) {
            return Ok(Some(format!(
                "{} steps were applied and {} were skipped, not {} and {}",
                own.global_step, own.skipped, others.global_step, others.skipped
            )));
        }
        if own.scale != others.scale {
            let (own, other) = (own.scale.unwrap_or(1.0), others.scale.unwrap_or(1.0));
            return Ok(Some(format!("the loss scale is {own}, not {other}")));
        }
        if let Some(difference) = self.tensors_differ(other, tolerance)? {
            return Ok(Some(difference));
        }
        for (name, value) in &self.values {
            if other.values.get(name) != Some(value) {
                return Ok(Some(format!("`{name}` differs")));
            }
        }
        Ok(None)
    }

    /// Describes the first tensor that differs from the same tensor in `other` by more than
    /// `tolerance`. Returns `None` if there is none.
    pub(super) fn tensors_differ(
        &self,
        other: &Self,
        tolerance: &Tolerance,
    ) -> Result<Option<String>> {
        tolerance.exceeded(&self.tensors, &other.tensors)
    }

    /// Describes the first difference between the values that this run and the run `other` logged
    /// at the end of an epoch.
    pub(super) fn logged_difference(&self, other: &Self) -> Option<String> {
        let logged = |state: &Self| -> Vec<(String, u64)> {
            let epochs = state.record.epochs.iter();
            let values = epochs.flat_map(|epoch| epoch.train.iter().chain(&epoch.val));
            values.map(|logged| (logged.name.clone(), logged.value.to_bits())).collect()
        };
        let (own, others) = (logged(self), logged(other));
        let mut pairs = own.iter().zip(&others);
        let found = pairs.find(|(own, other)| own != other);
        let value = |bits: u64| f64::from_bits(bits);
        found.map(|((name, own), (_, other))| {
            format!("`{name}` is logged as {}, not {}", value(*own), value(*other))
        })
    }
}

/// A copy of a model's tensors may take up to 1/8 of a GPU's free memory. A larger copy is made on
/// the host.
const SHARE: u64 = 8;

/// Copies tensors: on their device, or to the host if the copy would take too much of the GPU's
/// memory.
pub(super) fn snapshot(tensors: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
    let bytes = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
    let on_cuda = || tensors.iter().map(|(_, tensor)| tensor).filter(|own| own.device().is_cuda());
    let is_large = match on_cuda().next() {
        Some(first) => on_cuda().map(bytes).sum::<u64>() > cuda_free(first.device())? / SHARE,
        None => false,
    };
    let copy = |(name, tensor): (String, Tensor)| -> Result<(String, Tensor)> {
        let tensor = match is_large {
            true => tensor.f_to_device(Device::Cpu)?,
            false => tensor,
        };
        Ok((name, copy_of(&tensor)?))
    };
    tensors.into_iter().map(copy).collect()
}

/// Converts a tensor to f64 on `device`. Tensors are converted one at a time, because all tensors
/// of a model together may take more memory than the run.
pub(super) fn exact_on(device: Device, tensor: &Tensor) -> Result<Tensor> {
    Ok(no_grad(|| tensor.f_detach()?.f_to_device(device)?.f_to_kind(Kind::Double))?)
}

/// Converts a tensor to f64 on the device of the tensor.
pub(super) fn exact(tensor: &Tensor) -> Result<Tensor> {
    exact_on(tensor.device(), tensor)
}

/// Returns the dot product of two tensors, Σaᵢbᵢ, computed in f64.
pub(super) fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(no_grad(|| a.f_mul(b)?.f_sum(Kind::Double)?.f_double_value(&[]))?)
}
