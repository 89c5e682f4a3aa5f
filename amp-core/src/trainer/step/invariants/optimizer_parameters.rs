//! Compares the parameters that optimizers update with the parameters of the model.

use std::collections::{HashMap, HashSet};

use super::{Invariant, Moment, Rule, run_state::RunView, sampled_tensors};
use crate::{
    Result, ffi,
    nn::Role,
    optim::{Scheduled, WeightUpdate},
};

/// Checks that each trained parameter belongs to an optimizer, and that the optimizer updates the
/// tensor that the model uses.
#[derive(Default)]
pub(super) struct OptimizerHoldsWeights {
    /// The names of the parameters that were trained before the step.
    trained: Vec<String>,
}

impl Rule for OptimizerHoldsWeights {
    fn invariant(&self) -> Invariant {
        Invariant::OptimizerHoldsWeights
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::Start, Moment::StepBegins, Moment::StepEnds, Moment::EpochEnds]
    }

    fn violation(&mut self, moment: Moment, seen: &RunView<'_>) -> Result<Option<String>> {
        if moment == Moment::StepEnds {
            return Ok(self.lost(seen));
        }
        if moment == Moment::StepBegins {
            let trained = parameters(seen).filter(|(_, tensor)| tensor.requires_grad());
            self.trained = trained.map(|(name, _)| name.clone()).collect();
        }
        if let Some(broken) = not_held(seen) {
            return Ok(Some(broken));
        }
        let masters = seen.state.config.numerics.weight_update == WeightUpdate::MasterWeights;
        if masters && moment != Moment::StepBegins { stale_master(seen) } else { Ok(None) }
    }
}

impl OptimizerHoldsWeights {
    /// Describes a parameter that required a gradient when the step began, but does not any more.
    fn lost(&self, seen: &RunView<'_>) -> Option<String> {
        let trained: HashSet<&str> = self.trained.iter().map(String::as_str).collect();
        let mut now = parameters(seen);
        let (name, _) =
            now.find(|(name, tensor)| trained.contains(name.as_str()) && !tensor.requires_grad())?;
        Some(format!(
            "`{name}` no longer requires a gradient: code that ran in this step has switched its \
             `requires_grad` off, so it is no longer trained; to freeze `{name}`, list it in \
             optimization.freeze"
        ))
    }
}

fn parameters<'s>(seen: &'s RunView<'_>) -> impl Iterator<Item = (&'s String, &'s tch::Tensor)> {
    let parameters = seen.tensors().iter().filter(|(_, _, role)| *role == Role::Parameter);
    parameters.map(|(name, tensor, _)| (name, tensor))
}

/// Describes a difference between the model's parameters and the optimizers' parameters.
fn not_held(seen: &RunView<'_>) -> Option<String> {
    let own = |scheduled: &'_ Scheduled| scheduled.optimizer.parameters().clone();
    let held: Vec<_> = seen.scheduled().iter().map(own).collect();
    let held = || held.iter().flat_map(|parameters| parameters.iter());
    let places: HashMap<usize, usize> =
        held().map(|held| (ffi::identity(&held.tensor), held.tensor.data_ptr() as usize)).collect();
    let mut known = HashSet::new();
    for (name, tensor) in parameters(seen) {
        let identity = ffi::identity(tensor);
        known.insert(identity);
        if !tensor.requires_grad() || places.contains_key(&identity) {
            continue;
        }
        return Some(match held().any(|held| held.name == *name) {
            true => format!(
                "the tensor that the optimizer holds as `{name}` is not the model's tensor: the \
                 module, or the code that builds the optimizer, has created a new tensor; change \
                 parameters in place (`f_set_data`, `f_copy_`)"
            ),
            false => format!(
                "no optimizer holds `{name}`, so it is never updated: the optimizer that \
                 `build_with` returns must contain all parameters passed to `build_with`; to \
                 freeze `{name}`, list it in optimization.freeze"
            ),
        });
    }
    let stale = held().find(|held| !known.contains(&ffi::identity(&held.tensor)))?;
    Some(format!(
        "the optimizer holds `{}`, which the model no longer has: the module has replaced or dropped the \
         tensor; change parameters in place",
        stale.name
    ))
}

/// Describes a 16-bit weight that differs from its rounded f32 master weight. The sampled elements
/// of all weights are read in one copy from the device.
fn stale_master(seen: &RunView<'_>) -> Result<Option<String>> {
    let (mut names, mut pieces) = (Vec::new(), Vec::new());
    for scheduled in seen.scheduled() {
        let state = scheduled.optimizer.state()?;
        for parameter in scheduled.optimizer.parameters().iter() {
            let Ok(master) = state.tensor(&format!("master/{}", parameter.name)) else { continue };
            let rounded = master.f_to_kind(parameter.tensor.kind())?;
            let pair = [
                sampled_tensors::elements(&rounded)?,
                sampled_tensors::elements(&parameter.tensor)?,
            ];
            if let [Some(master), Some(weight)] = pair {
                names.push((parameter.name.clone(), [master.numel(), weight.numel()]));
                pieces.extend([master, weight]);
            }
        }
    }
    let values = sampled_tensors::read(&pieces)?;
    let mut rest = values.as_slice();
    let mut take = |count: usize| {
        let (own, others) = rest.split_at(count);
        rest = others;
        own
    };
    let stale = names.into_iter().find(|(_, counts)| {
        let [master, weight] = counts.map(&mut take);
        master != weight
    });
    Ok(stale.map(|(name, _)| {
        format!(
            "`{name}` differs from its f32 master weight, rounded to 16 bits: something has written \
             to `{name}` after the optimizer was built, and the next step will overwrite the \
             written value; load weights before `fit`, or choose another --weight-update"
        )
    }))
}
