//! The layers of a model, and the cost of a training step.

mod memory;
mod show;
mod trace;
mod tree;

use serde::Serialize;

use self::trace::trace;
use super::{Trainer, freeze::Freezing, step::StateBackup};
use crate::{
    Error, LightningModule, Result, data::DataModule, nn, optim::Storage, precision::Precision,
    random,
};

pub use self::{memory::StepMemory, show::show_count, tree::LayerSummary};

/// The layers of a model, and the cost of a training step on one batch.
/// [`Display`](std::fmt::Display) shows the layers as a tree.
///
/// ```
/// use amp_core::prelude::*;
///
/// #[derive(LightningModule)]
/// #[loss(cross_entropy)]
/// #[optimizer(adam, lr = 1e-3)]
/// struct Net {
///     #[layer(linear(4, 8))]
///     hidden: Linear,
///     #[layer(linear(8, 2))]
///     head: Linear,
/// }
///
/// let input = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu));
/// let target = Tensor::zeros([3], (Kind::Int64, Device::Cpu));
/// let examples = || Batch::new(input.shallow_clone(), target.shallow_clone());
/// let data = DataModule::new("zeros", examples()?, examples()?, 3);
/// let trainer = Trainer::new(TrainerConfig::new(Precision::F32True, Device::Cpu));
/// let summary = trainer.summary(&mut Net::builder().build()?, &data)?;
/// assert_eq!(summary.trainable, 4 * 8 + 8 + 8 * 2 + 2);
/// assert_eq!(summary.flops, 2 * 3 * (4 * 8 + 8 * 2));
/// let head = summary.layer("head").expect("a layer of this name");
/// assert_eq!((&head.input[0], &head.output[0]), (&vec![3, 8], &vec![3, 2]));
/// println!("{summary}");
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSummary {
    /// The name of the model.
    pub model: String,
    /// The name of the data.
    pub data: String,
    /// The precision of the training step.
    pub precision: Precision,
    /// The number of examples of the batch.
    pub batch_size: i64,
    /// The shape of each tensor of the batch, by name.
    pub batch: Vec<(String, Vec<i64>)>,
    /// The model itself, followed by its layers in the order of their declaration. A layer that
    /// contains other layers comes before those layers.
    pub layers: Vec<LayerSummary>,
    /// The number of parameter elements that are trained from the start of the run on.
    pub trainable: i64,
    /// The number of parameter elements that are frozen at the start of the run.
    pub frozen: i64,
    /// The number of elements in `frozen` that are trained later in the run, after the end of their
    /// freeze.
    pub trained_later: i64,
    /// The number of elements in all buffers, such as the running statistics of batch norm.
    pub buffers: i64,
    /// The number of floating-point operations in the forward pass of one batch, counted as
    /// torch.utils.flop_counter counts them. A multiply-add counts as two operations. Matrix
    /// products, convolutions, attention and recurrent layers are counted. Elementwise operations
    /// are not counted. Causal attention counts as full attention.
    pub flops: u64,
    /// The memory that a training step needs. If a freeze ends during the run, this is the memory
    /// of the run's last step, which needs more memory than the first step.
    pub memory: StepMemory,
}

impl ModelSummary {
    /// Returns the layer at this dotted path. The empty path stands for the model itself.
    pub fn layer(&self, path: &str) -> Option<&LayerSummary> {
        self.layers.iter().find(|layer| layer.path == path)
    }

    /// Removes the layers that are nested deeper than `depth`: with 0 only the model remains, with
    /// 1 also its direct layers. The numbers of a remaining layer still include those of the
    /// removed layers within it.
    #[must_use]
    pub fn with_max_depth(mut self, depth: usize) -> Self {
        self.layers.retain(|layer| layer.depth <= depth);
        self
    }
}

impl Trainer<'_> {
    /// Describes `model`, and a training step on the first batch of `data` with this trainer's
    /// options. Runs the forward pass and the loss twice, the first time without dropout. Runs no
    /// backward pass. Weights, buffers and random generators are unchanged afterwards. The model is
    /// moved to the trainer's device and converted to the dtype of the precision, as in
    /// [`fit`](Self::fit).
    ///
    /// The number of operations is the same on every device. The memory is measured on the
    /// trainer's device.
    ///
    /// # Errors
    /// When the configuration is invalid, there is no batch to train on, or the step fails.
    pub fn summary(
        &self,
        model: &mut dyn LightningModule,
        data: &DataModule,
    ) -> Result<ModelSummary> {
        let _place = random::place();
        let config = &self.config;
        let _kernels = config.numerics.kernels.enter();
        config.check()?;
        data.check()?;
        let policy = config.policy();
        nn::place(model, policy, &config.numerics.overrides)?;
        nn::parameters_require_gradients(model)?;
        let loader = config.train_loader(data)?;
        let plan = config.training_plan(&loader);
        let mut freezing = Freezing::new(model, &config.optimization.freeze)?;
        // The optimizers create state for all parameters that are trained at the end of the run,
        // including those that are frozen at its start.
        let length = config.length(loader.batches(), config.max_epochs);
        let last = config.last_position(loader.batches(), length);
        freezing.update(last.0, last.1);
        let optimizers = model.configure_optimizers(&plan)?;
        let numerics = &config.numerics;
        let storage = Storage { weights: numerics.weight_update, moments: numerics.moments };
        let optimizers = optimizers.build(nn::parameters(model), storage)?;
        freezing.check_optimizers(&optimizers)?;
        freezing.update(0, 0);
        let Some(batch) = loader.epoch(0, 0)?.next().transpose()? else {
            return Err(Error::config(format!("`{}` has no batch to train on", data.name)));
        };
        let backup = StateBackup::begin(model, config.device)?;
        let traced = trace(model, &batch, config);
        backup.end(model)?;
        let (layers, flops) = tree::layers(model, traced?);
        let tensors = tree::Tensors::of(model);
        let trained_later = freezing.trained_later(last);
        freezing.update(last.0, last.1);
        let memory = memory::of(model, &batch, &optimizers, config);
        backup.end(model)?;
        Ok(ModelSummary {
            model: model.name().to_owned(),
            data: data.name.clone(),
            precision: config.precision,
            batch_size: batch.len(),
            batch: batch.tensors().map(|(name, tensor)| (name.to_owned(), tensor.size())).collect(),
            layers,
            trainable: tensors.trainable,
            frozen: tensors.frozen,
            trained_later,
            buffers: tensors.buffers,
            flops,
            memory: memory?,
        })
    }
}
