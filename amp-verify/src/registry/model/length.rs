//! Methods that set the length of training and how many batches of the data to use.

use amp_core::data::Limit;

use super::Model;
use crate::{changes::Changes, length::Length};

/// The largest default length of the gate's quick tier, if a model's full length is a number of
/// epochs.
const QUICK_EPOCHS: i64 = 3;
/// The largest default length of the gate's quick tier, if a model's full length is a number of
/// steps.
const QUICK_STEPS: u64 = 100;

impl Model {
    /// Sets the number of epochs of a full training run. The default is 10.
    #[must_use]
    pub fn epochs(mut self, epochs: i64) -> Self {
        self.length = Length::Epochs(epochs);
        self
    }

    /// Sets the number of optimizer steps of a full training run. Skipped steps do not count. Use
    /// this method if the data set is infinite, or too large to train in whole epochs. The run
    /// validates at the end of each epoch and after its last step.
    ///
    /// ```no_run,standalone_crate
    /// # use amp_core::prelude::*;
    /// # #[derive(LightningModule)]
    /// # #[loss(mse_loss)]
    /// # #[optimizer(adamw, lr = 1e-3)]
    /// # struct Net { #[layer(linear(64, 10))] head: Linear }
    /// let model = amp_verify::model!(Net).judged_by_loss().steps(2_000).quick_steps(60).margin(0.05);
    /// assert_eq!(model.quick().to_string(), "60 steps");
    /// ```
    #[must_use]
    pub fn steps(mut self, steps: u64) -> Self {
        self.length = Length::Steps(steps);
        self
    }

    /// Sets the number of epochs in the gate's quick tier, in `cargo amp margins`, and in golden
    /// tests (tests that compare a run with recorded results). The default is the full length, but
    /// at most 3 epochs.
    #[must_use]
    pub fn quick_epochs(mut self, epochs: i64) -> Self {
        self.quick = Some(Length::Epochs(epochs));
        self
    }

    /// Sets the number of optimizer steps in the gate's quick tier and in `cargo amp margins`. If
    /// the full length was set with [`steps`](Self::steps), the default is the full length, but at
    /// most 100 steps. Otherwise, see [`quick_epochs`](Self::quick_epochs).
    #[must_use]
    pub fn quick_steps(mut self, steps: u64) -> Self {
        self.quick = Some(Length::Steps(steps));
        self
    }

    /// Limits training to the first batches of each shuffled epoch. By default all batches are
    /// used.
    #[must_use]
    pub fn limit_train_batches(mut self, limit: Limit) -> Self {
        self.limit_train_batches = limit;
        self
    }

    /// Limits validation to the first batches of each validation set. By default all batches are
    /// used.
    #[must_use]
    pub fn limit_val_batches(mut self, limit: Limit) -> Self {
        self.limit_val_batches = limit;
        self
    }

    /// Returns the length of a full training run.
    pub fn length(&self) -> Length {
        self.length
    }

    /// Returns the margin that the registry declares, if it is valid for these changes and this length
    /// of training. A length in `changes` is ignored.
    pub(crate) fn margin_for(&self, changes: &Changes, length: Length) -> Option<f64> {
        let is_changed = !changes.without_length().is_empty();
        self.margin.filter(|_| !is_changed && self.trains_for(length))
    }

    /// Returns whether `length` is the full length of training or that of the gate's quick tier.
    pub(crate) fn trains_for(&self, length: Length) -> bool {
        length == self.length() || length == self.quick()
    }

    /// Returns the length of a run in the gate's quick tier.
    pub fn quick(&self) -> Length {
        self.quick.unwrap_or(match self.length {
            Length::Epochs(epochs) => Length::Epochs(QUICK_EPOCHS.min(epochs)),
            Length::Steps(steps) => Length::Steps(QUICK_STEPS.min(steps)),
        })
    }
}
