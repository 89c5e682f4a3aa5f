//! The state of an optimizer for one parameter.

use tch::Tensor;

use super::{Codes, Moment, Moments, Slot};
use crate::{
    Error, Result,
    nn::Parameter,
    optim::{
        Algorithm, Storage,
        weight_update::wide,
        working_tensors::{Working, moments, working, zeros},
    },
};

/// The optimizer state of a parameter, and the index of its parameter group.
pub(in crate::optim) struct Kept {
    pub(in crate::optim) group: usize,
    /// The index of the list of slots (state tensors) that the parameter has.
    pub(in crate::optim) layout: usize,
    /// The state of the parameter; `None` if the parameter has been frozen since the optimizer was
    /// built.
    pub(in crate::optim) state: Option<ParameterState>,
}

/// Returns the different lists of slots (state tensors) that the parameters have, and, for each
/// parameter, the index of its list.
pub(in crate::optim) fn laid_out<A: Algorithm>(
    options: &[A],
    parameters: &[Parameter],
    group_of: &[usize],
) -> Result<(Vec<Vec<Slot>>, Vec<Kept>)> {
    let mut layouts: Vec<Vec<Slot>> = Vec::new();
    let mut kept = Vec::with_capacity(parameters.len());
    for (parameter, &group) in parameters.iter().zip(group_of) {
        let slots = options[group].slots(parameter)?;
        let layout = layouts.iter().position(|other| *other == slots).unwrap_or_else(|| {
            layouts.push(slots);
            layouts.len() - 1
        });
        kept.push(Kept { group, layout, state: None });
    }
    Ok((layouts, kept))
}

/// Drops the state of parameters that do not require gradients and have not been updated yet.
pub(in crate::optim) fn drop_unused(parameters: &[Parameter], all: &mut [Kept]) {
    for (parameter, kept) in parameters.iter().zip(all) {
        let is_trained = parameter.tensor.requires_grad();
        kept.state.take_if(|state| !is_trained && !state.updated);
    }
}

/// The state of an optimizer for one parameter.
pub(in crate::optim) struct ParameterState {
    /// The state tensor of each slot.
    pub(in crate::optim) slots: Vec<Moment>,
    /// The f32 master weight of a 16-bit parameter.
    pub(in crate::optim) master: Option<Tensor>,
    /// Whether the next step follows the rule for later steps: true after the first step, and from
    /// the start if the first step does not differ ([`Algorithm::first_step_differs`]).
    pub(in crate::optim) started: bool,
    /// Whether a step has updated the parameter, in this run or in the run that was loaded.
    updated: bool,
}

impl ParameterState {
    /// Creates the state of a parameter before its first step.
    pub(in crate::optim) fn new<A: Algorithm>(
        parameter: &Parameter,
        slots: &[Slot],
        storage: Storage,
        started: bool,
        codes: &mut Codes,
    ) -> Result<Self> {
        let Parameter { name, tensor } = parameter;
        let working = working::<A>(tensor.kind(), storage);
        let moments = moments(tensor.kind(), storage);
        let in_parts = working != Working::Itself || moments != Moments::Full;
        if in_parts && !tensor.is_contiguous() {
            // A flat piece of a non-contiguous tensor is a copy, so an update of the piece would be
            // lost.
            return Err(Error::config(format!(
                "optimizer: `{name}` is not contiguous, so it cannot be updated in parts: make it contiguous"
            )));
        }
        let zeros = |slot| zeros(slot, tensor, working, moments, codes);
        let slots = slots.iter().map(zeros).collect::<Result<_>>()?;
        let master = match working {
            Working::Masters => Some(wide(tensor)?),
            _ => None,
        };
        Ok(Self { slots, master, started, updated: false })
    }

    /// Notes that a step has updated the parameter.
    pub(in crate::optim) fn note_update(&mut self) {
        (self.started, self.updated) = (true, true);
    }

    /// Notes that the state comes from a checkpoint. `started` is the value in the checkpoint.
    pub(in crate::optim) fn note_loaded(&mut self, started: bool) {
        (self.started, self.updated) = (started, true);
    }
}
