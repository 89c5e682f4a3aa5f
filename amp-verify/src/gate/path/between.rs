//! Finds what the model's hooks change between two steps of the observed run: a hook may set the
//! model's state, and write to its weights and buffers. The gate repeats the steps on copies of the
//! model that run no hooks, so it applies these changes to the copies before the next step.

use std::collections::BTreeMap;

use amp_core::{
    LightningModule, Result,
    nn::{Role, named_tensors},
    state::State,
    tch::Tensor,
};

use crate::{gate::hooks::copy_of, scalars::all_equal};

/// Copies of a run's parameters or buffers from the end of a step, by name.
pub(super) struct Kept {
    role: Role,
    pub(super) copies: BTreeMap<String, Tensor>,
}

/// A tensor that was changed between two steps: copies of its values before and after the change.
pub(super) struct Change {
    pub(super) name: String,
    pub(super) before: Tensor,
    pub(super) after: Tensor,
}

impl Kept {
    /// Copies the model's tensors of this role (parameters or buffers).
    pub(super) fn of(model: &dyn LightningModule, role: Role) -> Result<Self> {
        let own = named_tensors(model).into_iter().filter(|(.., one)| *one == role);
        let copies = own.map(|(name, tensor, _)| Ok((name, copy_of(&tensor)?)));
        Ok(Self { role, copies: copies.collect::<Result<_>>()? })
    }

    /// Returns the copies, without copying them again.
    pub(super) fn shallow_copies(&self) -> BTreeMap<String, Tensor> {
        self.copies.iter().map(|(name, copy)| (name.clone(), copy.shallow_clone())).collect()
    }

    /// Returns the tensors of the model that differ from the kept copies, with the values of both.
    pub(super) fn changes(&self, model: &dyn LightningModule) -> Result<Vec<Change>> {
        let own = named_tensors(model).into_iter().filter(|(.., role)| *role == self.role);
        let pairs = own.filter_map(|(name, after, _)| {
            let before = self.copies.get(&name)?.shallow_clone();
            Some(Change { name, before, after })
        });
        let pairs: Vec<Change> = pairs.collect();
        // Usually nothing has changed. So all tensors are first compared together, which
        // synchronizes with the device only once.
        if all_equal(pairs.iter().map(|pair| (&pair.before, &pair.after)))? {
            return Ok(Vec::new());
        }
        let mut changes = Vec::new();
        for pair in pairs {
            if !all_equal([(&pair.before, &pair.after)])? {
                let after = copy_of(&pair.after)?;
                changes.push(Change { after, ..pair });
            }
        }
        Ok(changes)
    }
}

/// Returns what a checkpoint would save of the model besides its tensors: its `#[state]` fields.
pub(super) fn state_of(model: &dyn LightningModule) -> Result<State> {
    let mut state = State::default();
    model.on_save_checkpoint(&mut state)?;
    state.copied()
}

#[cfg(test)]
mod tests {
    use amp_core::{
        nn::{self, parameters},
        prelude::*,
        tch::no_grad,
        trainer::Freeze,
    };

    use super::super::{
        bounds::REPEATED,
        compared::Figures,
        run::{STEPS, Scenario, Setup},
    };
    use crate::{
        DataSet, Model, Registry,
        gate::{
            Task, budget::Budget, checked::Checked, deadline::Deadline, job::Job, waves::waves,
        },
        length::Length,
        model, project,
    };

    /// Trains the model in bf16-mixed and checks that it breaks none of the gate's rules about
    /// training steps.
    fn passes(model: Model) -> Result<()> {
        let precision = Precision::Bf16Mixed;
        let model = model.judged_by_loss().margin(1.0).batch_size(4);
        let job = Job::new(model.name(), precision, 3, Length::Epochs(1), Task::Path);
        let registry =
            Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(model);
        let outcome = crate::gate::path::run(&job, &registry, &Deadline::default())?;
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        let checked = outcome.path.expect("a report").checked;
        let left_out = |checked: &Checked| checked.what.starts_with("not repeated in float64");
        assert!(!checked.iter().any(left_out), "{checked:?}");
        Ok(())
    }

    /// Repeats each step of an epoch, of two batches each, with further passes with emulated
    /// rounding. Checks that these passes start from the weights, buffers and state from before the
    /// step: their losses and gradients differ from those under 32-true by the rounding alone.
    fn repeats(model: Model) -> Result<()> {
        let precision = Precision::Bf16Mixed;
        let model = model.judged_by_loss().margin(1.0).batch_size(4).accumulate_grad_batches(2);
        let job = Job::new(model.name(), precision, 3, Length::Epochs(1), Task::Path);
        let registry =
            Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(model);
        let case = job.case(&registry, precision)?;
        let (budget, deadline) = (Budget::of(&case, STEPS)?, Deadline::default());
        let setup = Setup { job: &job, case: &case, precision, budget, deadline: &deadline };
        let (_, observation, _) = setup.observed_with(Scenario::Epoch, (0..100).collect())?;
        let steps = observation.reference.expect("a reference").steps;
        assert!(steps.len() > 4, "{}", steps.len());
        for (at, step) in steps.iter().enumerate() {
            assert_eq!(step.rounded.len(), REPEATED);
            let is_off = |pass: &&Figures| !(pass.loss < 0.02 && pass.error < 0.05);
            assert_eq!(step.rounded.iter().find(is_off), None, "step {at}");
        }
        Ok(())
    }

    #[derive(LightningModule)]
    #[forward(|x| -> Result<(Tensor, Tensor)> {
        let x = body(x)?;
        Ok((head(&x)?, x))
    })]
    #[loss(with = |output, target| {
        let size = output.1.f_square()?.f_sum(Kind::Float)?;
        let size = size.f_mul_scalar(self.beta)?.f_mul(&self.gain)?;
        Ok(loss::mse_loss(&output.0, target)?.f_add(&size)?)
    })]
    #[optimizer(sgd, lr = 0.01)]
    #[on_train_start(Self::start)]
    #[on_train_batch_end(Self::warm_up)]
    struct WarmUp {
        #[state]
        beta: f64,
        #[buffer(shape = [], init = zeros)]
        gain: Tensor,
        #[layer(sequential(linear(4, 8), batch_norm1d(8), tanh))]
        body: Sequential,
        #[layer(linear(8, 1))]
        head: Linear,
    }

    impl WarmUp {
        fn start(&mut self) -> Result<()> {
            // The hook also runs when training is resumed. `beta` is then above 0, and `gain` keeps
            // the value from the checkpoint.
            if self.beta == 0.0 {
                let _ = self.gain.f_fill_(0.5)?;
            }
            Ok(())
        }

        fn warm_up(
            &mut self,
            _: &Tensor,
            _: Option<&StepOutcome>,
            hook: &mut Hook<'_>,
        ) -> Result<()> {
            self.beta = (hook.global_step as f64 / 8.0).min(1.0);
            let _ = self.gain.f_fill_(self.beta + 0.5)?;
            Ok(())
        }
    }

    /// Checks that the gate's 32-true copy of the model gets the state and the buffers that hooks
    /// have set, before each step and before the validation. Otherwise the losses of the copy and
    /// of the run would differ.
    #[test]
    fn a_weight_of_the_loss_may_grow_from_step_to_step() -> Result<()> {
        passes(model!(WarmUp))?;
        repeats(model!(WarmUp))
    }

    #[derive(LightningModule)]
    #[forward(|x| -> Result<(Tensor, Tensor)> {
        let target = no_grad(|| slow(x))?;
        Ok((head(&quick(x)?.f_tanh()?)?, target.f_detach()?))
    })]
    #[loss(with = |output, target| {
        let gap = loss::mse_loss(&output.0, &output.1.f_mean_dim([1].as_slice(), true, output.1.kind())?)?;
        Ok(loss::mse_loss(&output.0, target)?.f_add(&gap.f_mul_scalar(0.1)?)?)
    })]
    #[optimizer(adamw, lr = 1e-2, params = ["quick.*", "head.*"])]
    #[on_train_start(Self::start)]
    #[on_train_batch_end(Self::follow)]
    struct Momentum {
        #[layer(linear(4, 8))]
        quick: Linear,
        #[layer(linear(8, 1))]
        head: Linear,
        #[layer(linear(4, 8))]
        slow: Linear,
        #[state]
        started: bool,
    }

    impl Momentum {
        fn mix(&self, keep: f64) -> Result<()> {
            for (slow, quick) in parameters(&self.slow).iter().zip(parameters(&self.quick)) {
                no_grad(|| -> Result<()> {
                    let part = quick.tensor.f_mul_scalar(1.0 - keep)?;
                    let mixed = slow.tensor.f_mul_scalar(keep)?.f_add(&part)?;
                    slow.tensor.shallow_clone().f_copy_(&mixed)?;
                    Ok(())
                })?;
            }
            Ok(())
        }

        fn start(&mut self) -> Result<()> {
            // The hook also runs when training is resumed. `started` is then true, and the slow
            // weights keep the values from the checkpoint.
            if !std::mem::replace(&mut self.started, true) {
                self.mix(0.0)?;
            }
            Ok(())
        }

        fn follow(
            &mut self,
            _: &Tensor,
            outcome: Option<&StepOutcome>,
            _: &mut Hook<'_>,
        ) -> Result<()> {
            if outcome == Some(&StepOutcome::Applied) { self.mix(0.9) } else { Ok(()) }
        }
    }

    /// Checks that a hook may write to frozen weights that belong to no optimizer, for example
    /// those of a momentum encoder.
    #[test]
    fn a_hook_may_write_to_frozen_weights() -> Result<()> {
        passes(model!(Momentum).freeze([Freeze::new("slow.*")]))?;
        repeats(model!(Momentum).freeze([Freeze::new("slow.*")]))
    }

    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[optimizer(adamw, lr = 1e-2)]
    #[on_train_batch_end(Self::clamp)]
    struct Clamped {
        #[layer(linear(4, 1))]
        body: Linear,
    }

    impl Clamped {
        fn clamp(&mut self, _: &Tensor, _: Option<&StepOutcome>, _: &mut Hook<'_>) -> Result<()> {
            for nn::Parameter { tensor, .. } in parameters(&self.body) {
                let _ = no_grad(|| tensor.shallow_clone().f_clamp_(-0.2, 0.2))?;
            }
            Ok(())
        }
    }

    /// Checks that a hook may change weights that the optimizer trains.
    #[test]
    fn a_hook_may_limit_trained_weights() -> Result<()> {
        passes(model!(Clamped))
    }
}
