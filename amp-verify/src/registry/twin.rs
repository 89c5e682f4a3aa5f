//! The PyTorch version of a model: the same model, written in PyTorch.

use amp_core::Hyperparameters;
use serde_json::Value;

/// The PyTorch version of a model: the same model, written in PyTorch.
/// [`Model::twin`](crate::Model::twin) declares it. `cargo amp parity` trains the model in Rust and
/// its PyTorch version on the same batches from the same initial weights, and compares the results.
///
/// The Python source defines a class that extends `torch.nn.Module`. The class has the name under
/// which the model is registered. The parameters of the class have the same names as the parameters
/// of the model. The class has these methods. Those that Lightning has too are named as in
/// Lightning:
///
/// - `__init__(self, hp)` creates the layers. `hp.NAME` is a hyperparameter of the model.
/// - `training_step(self, batch)` returns the loss of a batch, a scalar. `batch.NAME` is a tensor
///   of the batch, for example `batch.input`.
/// - `configure_optimizers(self, plan)` returns an optimizer, a list of optimizers, or a list of
///   optimizers and a list of schedules. A schedule is `{"scheduler": …, "interval": "step"}`, or a
///   scheduler that advances after each epoch. `plan` has `max_epochs` and
///   `estimated_stepping_batches`.
/// - `manual_step(self, batch, step)` replaces `training_step` if the model optimizes manually.
///   `with step.forward(): …` runs under autocast, and `step.minimize(at, loss)` makes a step of
///   the optimizer with index `at`. Inside `with step.toggled(at): …`, only the parameters of this
///   optimizer require gradients. `step.batch_idx` is the index of the batch in the epoch.
/// - `validation_step(self, batch)` returns a tensor, or a tuple of tensors, with one row for each
///   example.
/// - `metric(self, …)` returns the number by which the model is judged. Its arguments are the
///   results of `validation_step`, concatenated over all batches. Without this method, the model is
///   judged by the mean of the first result of `validation_step`.
/// - `on_train_batch_end(self)` is optional. It is called after each optimizer step.
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
/// // Usually the sources are files: include_str!("../twins/net.py") and include_str!("net.rs").
/// let model = model!(Net).twin(Twin::new(TWIN, SOURCE));
/// ```
#[derive(Debug, Clone)]
pub struct Twin {
    pub(crate) python: &'static str,
    pub(crate) rust: &'static str,
    pub(crate) hyperparameters: Hyperparameters,
}

impl Twin {
    /// Creates a PyTorch version from the Python source `python`. `rust` is the Rust source of the
    /// model, whose lines of code `parity` counts for its table. The binary contains both sources.
    pub fn new(python: &'static str, rust: &'static str) -> Self {
        Self { python, rust, hyperparameters: Hyperparameters::new() }
    }

    /// Sets the hyperparameters with which `parity` builds the model and its PyTorch version, as a
    /// JSON object. They replace the registered hyperparameters. Dropout must be 0, because the
    /// model and the PyTorch version would use different random dropout masks:
    /// `.hyperparameters(amp_verify::json!({ "dropout": 0.0 }))`.
    ///
    /// # Panics
    /// When the value is not a JSON object, which is a mistake in the registry's source.
    #[must_use]
    pub fn hyperparameters(mut self, hyperparameters: Value) -> Self {
        let Value::Object(hyperparameters) = hyperparameters else {
            panic!("hyperparameters of a PyTorch version: {hyperparameters} is not a JSON object")
        };
        self.hyperparameters = hyperparameters;
        self
    }
}
