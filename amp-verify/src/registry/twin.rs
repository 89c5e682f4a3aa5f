//! The same model in PyTorch.

use amp_core::Hyperparameters;
use serde_json::Value;

/// The same model in PyTorch, which [`Model::twin`](crate::Model::twin) declares and `cargo amp parity`
/// trains on the same batches from the same weights.
///
/// Its Python is a class with the model's registered name that extends `torch.nn.Module`. Its parameters have the
/// names of the model's. The class has these methods, which have Lightning's names where it has them:
///
/// | method | what it does |
/// | --- | --- |
/// | `__init__(self, hp)` | makes the layers; `hp.NAME` is a hyperparameter of the model |
/// | `training_step(self, batch)` | returns the loss of a batch, a scalar; `batch.NAME` is a tensor of the batch, as in `batch.input` |
/// | `configure_optimizers(self, plan)` | returns an optimizer, a list of optimizers, or a list of optimizers and a list of schedules; a schedule is `{"scheduler": …, "interval": "step"}`, or a scheduler that moves after each epoch; `plan` has `max_epochs` and `estimated_stepping_batches` |
/// | `manual_step(self, batch, step)` | in place of `training_step`: `with step.forward(): …` runs under autocast, `step.minimize(at, loss)` steps an optimizer, `with step.toggled(at): …` lets its parameters alone require gradients; `step.batch_idx` counts from 0 in the epoch |
/// | `validation_step(self, batch)` | returns a tensor or a tuple of tensors whose dimension 0 counts the examples |
/// | `metric(self, …)` | returns the number that the model is judged by, from what all batches gave in `validation_step`, concatenated; without it, the mean of the first |
/// | `on_train_batch_end(self)` | optional; called after each optimizer step |
///
/// ```no_run,standalone_crate
/// # use amp_core::prelude::*;
/// use amp_verify::{Twin, model};
///
/// # const SOURCE: &str = "";
/// #[derive(LightningModule)]
/// #[loss(cross_entropy)]
/// #[metric(accuracy, name = acc)]
/// #[optimizer(adamw, lr = 1e-3)]
/// struct Net {
///     #[layer(linear(64, 10))]
///     head: Linear,
/// }
///
/// const TWIN: &str = r#"
/// import torch
/// from torch import nn
/// from torch.nn import functional as F
///
/// class Net(nn.Module):
///     def __init__(self, hp):
///         super().__init__()
///         self.head = nn.Linear(64, 10)
///
///     def training_step(self, batch):
///         return F.cross_entropy(self.head(batch.input), batch.target)
///
///     def configure_optimizers(self, plan):
///         return torch.optim.AdamW(self.parameters(), lr=1e-3)
///
///     def validation_step(self, batch):
///         return self.head(batch.input).argmax(1) == batch.target
/// "#;
///
/// // As a rule both are files: include_str!("../twins/net.py") and include_str!("net.rs").
/// let model = model!(Net).twin(Twin::new(TWIN, SOURCE));
/// ```
#[derive(Debug, Clone)]
pub struct Twin {
    pub(crate) python: &'static str,
    pub(crate) rust: &'static str,
    pub(crate) hyperparameters: Hyperparameters,
}

impl Twin {
    /// The twin's Python, and the Rust that it is compared with in lines of code. The binary carries both.
    pub fn new(python: &'static str, rust: &'static str) -> Self {
        Self { python, rust, hyperparameters: Hyperparameters::new() }
    }

    /// Hyperparameters of both, if they differ from the registered ones: a JSON object. Dropout
    /// must be 0, because the two draw different masks.
    ///
    /// # Panics
    /// When it is not an object, which is a mistake in the registry's source.
    #[must_use]
    pub fn hyperparameters(mut self, hyperparameters: Value) -> Self {
        let Value::Object(hyperparameters) = hyperparameters else {
            panic!("hyperparameters of a twin: {hyperparameters} is not a JSON object")
        };
        self.hyperparameters = hyperparameters;
        self
    }
}
