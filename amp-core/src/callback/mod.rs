//! Callbacks act on a run: a callback can measure, save the model or end the run. The methods of a
//! callback, the hooks, have Lightning's names and run in Lightning's order. Code that only reads
//! events should implement [`Subscriber`](crate::event::Subscriber) instead.

mod early_stopping;
mod gradient_statistics;
mod learning_rate_monitor;
mod memory_monitor;
mod model_checkpoint;
mod speed_benchmark;

pub use crate::monitor::Mode;
pub use early_stopping::EarlyStopping;
pub use gradient_statistics::GradientStatistics;
pub use learning_rate_monitor::LearningRateMonitor;
pub use memory_monitor::MemoryMonitor;
pub use model_checkpoint::ModelCheckpoint;
pub use speed_benchmark::SpeedBenchmark;

use std::path::PathBuf;

use crate::{
    Hook, LightningModule, Result,
    event::EpochEnd,
    module::StepAccess,
    monitor::is_not_logged,
    precision::{Gradients, Precision, StepOutcome, Unscaled},
    state::State,
};

/// Measures or changes a run: the trainer calls the hooks at fixed points of the run. By default, a
/// hook does nothing.
///
/// On CUDA a hook must not wait for another thread that trains or validates a model on CUDA. That
/// thread may itself be waiting for the end of this run's step, and then neither thread would
/// continue.
///
/// # Errors
/// An error in a hook ends the run with this error.
///
/// # Examples
///
/// ```
/// use amp_core::{callback::Callback, prelude::*};
///
/// /// Prints the loss scale at the start of each epoch.
/// struct PrintScale;
///
/// impl Callback for PrintScale {
///     fn name(&self) -> String {
///         "print scale".into()
///     }
///
///     fn on_train_epoch_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
///         println!("scale {:?}", hook.scale);
///         Ok(())
///     }
/// }
/// ```
#[expect(clippy::missing_errors_doc, reason = "stated once, in the comment of the trait")]
pub trait Callback {
    /// Returns the name under which checkpoints store the callback's state. Two callbacks of one
    /// run need different names.
    fn name(&self) -> String;

    /// Returns the name of the logged value that the callback reads, if it reads one. If the sanity
    /// check (the validation before the first epoch) shows that the run does not log this value,
    /// the run ends with an error before any training step.
    fn monitors(&self) -> Option<&str> {
        None
    }

    /// Runs before the first epoch, also when the run is resumed from a checkpoint.
    fn on_train_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let _ = hook;
        Ok(())
    }

    /// Runs before the first batch of each epoch.
    fn on_train_epoch_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let _ = hook;
        Ok(())
    }

    /// Runs before an optimizer step, when gradients are unscaled and not yet clipped.
    fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        let _ = (gradients, hook);
        Ok(())
    }

    /// Runs after a batch, with the outcome of the optimizer step. The outcome is `None` while
    /// gradients are only accumulated.
    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        let _ = (outcome, hook);
        Ok(Vec::new())
    }

    /// Returns at which point the trainer must call this callback: within a training step, for
    /// example to read gradients, or only after the step. The trainer runs steps as CUDA graphs
    /// only if no callback must be called within a step.
    fn step_access(&self) -> StepAccess {
        StepAccess::InStep("a callback does not declare a step_access that allows CUDA graphs")
    }

    /// Runs after the last batch of an epoch, before the values that were logged in the epoch are
    /// read from the device.
    fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let _ = hook;
        Ok(())
    }

    /// Runs after a validation within an epoch.
    fn on_validation_end(&mut self, validation: &Epoch<'_>) -> Result<Vec<Action>> {
        let _ = validation;
        Ok(Vec::new())
    }

    /// Runs after each epoch. If a validation was due at the end of the epoch, runs after the
    /// validation.
    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<Vec<Action>> {
        let _ = epoch;
        Ok(Vec::new())
    }

    /// Returns the state that this callback needs in a resumed run.
    fn state(&self) -> Result<State> {
        Ok(State::default())
    }

    /// Restores a state that [`state`](Self::state) returned in the saved run.
    fn load_state(&mut self, state: &State) -> Result<()> {
        let _ = state;
        Ok(())
    }
}

/// Implements [`Callback`] for a pointer to a callback by forwarding every call.
macro_rules! forward_callback {
    ($type:ty) => {
        impl<C: Callback + ?Sized> Callback for $type {
            fn name(&self) -> String {
                (**self).name()
            }

            fn monitors(&self) -> Option<&str> {
                (**self).monitors()
            }

            fn on_train_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
                (**self).on_train_start(hook)
            }

            fn on_train_epoch_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
                (**self).on_train_epoch_start(hook)
            }

            fn on_before_optimizer_step(
                &mut self,
                gradients: &Gradients<Unscaled>,
                hook: &mut Hook<'_>,
            ) -> Result<()> {
                (**self).on_before_optimizer_step(gradients, hook)
            }

            fn on_train_batch_end(
                &mut self,
                outcome: Option<&StepOutcome>,
                hook: &mut Hook<'_>,
            ) -> Result<Vec<Action>> {
                (**self).on_train_batch_end(outcome, hook)
            }

            fn step_access(&self) -> StepAccess {
                (**self).step_access()
            }

            fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
                (**self).on_train_epoch_end(hook)
            }

            fn on_validation_end(&mut self, validation: &Epoch<'_>) -> Result<Vec<Action>> {
                (**self).on_validation_end(validation)
            }

            fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<Vec<Action>> {
                (**self).on_epoch_end(epoch)
            }

            fn state(&self) -> Result<State> {
                (**self).state()
            }

            fn load_state(&mut self, state: &State) -> Result<()> {
                (**self).load_state(state)
            }
        }
    };
}

forward_callback!(&mut C);
forward_callback!(Box<C>);

/// The values that a callback can read at the end of an epoch, or after a validation within an
/// epoch.
pub struct Epoch<'a> {
    /// The model in its current state.
    pub model: &'a dyn LightningModule,
    /// The precision of the run.
    pub precision: Precision,
    /// The values that were logged. `train` is empty at a validation within the epoch, because
    /// training values are computed at the end of the epoch.
    pub end: &'a EpochEnd,
    /// Whether the epoch continues after the callback. This is true after a validation within the
    /// epoch, and false at the end of the epoch.
    pub goes_on: bool,
    /// Whether the run ends before the last batch of the epoch. A resumed run completes the epoch,
    /// so a callback must not count the epoch yet.
    pub ended_early: bool,
    /// Whether the run reports values at several moments: at validations and at the ends of epochs.
    /// A value that `end` does not contain may then be reported at another of these moments.
    pub(crate) more_to_come: bool,
}

/// An action that a callback requests from the trainer. The trainer executes the actions after all
/// callbacks have run, so that a saved file holds the final state of each callback. The trainer
/// deletes files last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Save the run to a file.
    Save {
        /// The path of the file to write.
        path: PathBuf,
        /// Whether only the weights are saved. A run cannot be resumed from a file with only the
        /// weights.
        weights_only: bool,
    },
    /// Delete the file at this path.
    Delete(PathBuf),
    /// End the run. The text gives the reason.
    Stop(String),
}

impl Epoch<'_> {
    /// Returns the logged value with the name `monitor`. Returns `None` if the value is not
    /// reported now but may be reported later, at a validation or at the end of the epoch.
    ///
    /// # Errors
    /// When no value of this name is logged per epoch.
    pub fn reported(&self, monitor: &str) -> Result<Option<f64>> {
        match self.end.value(monitor) {
            None if self.more_to_come => Ok(None),
            _ => self.monitored(monitor).map(Some),
        }
    }

    /// Returns the value that was logged under the name `monitor` in the epoch.
    ///
    /// # Errors
    /// When no value of this name is logged per epoch.
    pub fn monitored(&self, monitor: &str) -> Result<f64> {
        let values = self.end.train.iter().chain(&self.end.val);
        let names = values.map(|logged| logged.name.as_str());
        self.end.value(monitor).ok_or_else(|| is_not_logged(monitor, names))
    }
}
