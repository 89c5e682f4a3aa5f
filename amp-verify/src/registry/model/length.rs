//! How long a model is trained, and on how much of its data.

use amp_core::data::Limit;

use super::Model;
use crate::length::Length;

/// The length of the gate's quick tier, unless the model's own is shorter.
const QUICK_EPOCHS: i64 = 3;
const QUICK_STEPS: u64 = 100;

impl Model {
    /// Epochs of a whole training; 10 by default.
    #[must_use]
    pub fn epochs(mut self, epochs: i64) -> Self {
        self.length = Length::Epochs(epochs);
        self
    }

    /// Optimizer steps of a whole training, for a model whose data set is too large for epochs, or has no
    /// end. The run validates at its end, and at the ends of epochs before it. Skipped steps do not count.
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

    /// Epochs in the gate's quick tier and in goldens; 3 by default, or all if there are fewer.
    #[must_use]
    pub fn quick_epochs(mut self, epochs: i64) -> Self {
        self.quick = Some(Length::Epochs(epochs));
        self
    }

    /// Optimizer steps in the gate's quick tier and in `margins`; for a model that is trained for
    /// [`steps`](Self::steps) 100 by default, or all if there are fewer.
    #[must_use]
    pub fn quick_steps(mut self, steps: u64) -> Self {
        self.quick = Some(Length::Steps(steps));
        self
    }

    /// The training batches of an epoch that are used: the first ones of the shuffled set. All by default.
    #[must_use]
    pub fn limit_train_batches(mut self, limit: Limit) -> Self {
        self.limit_train_batches = limit;
        self
    }

    /// The batches of each validation set that are used: the first ones. All by default.
    #[must_use]
    pub fn limit_val_batches(mut self, limit: Limit) -> Self {
        self.limit_val_batches = limit;
        self
    }

    /// The length of a whole training.
    pub fn length(&self) -> Length {
        self.length
    }

    /// The length of a run in the gate's quick tier.
    pub fn quick(&self) -> Length {
        self.quick.unwrap_or(match self.length {
            Length::Epochs(epochs) => Length::Epochs(QUICK_EPOCHS.min(epochs)),
            Length::Steps(steps) => Length::Steps(QUICK_STEPS.min(steps)),
        })
    }
}
