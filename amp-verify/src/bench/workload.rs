//! Workloads: what a benchmark trains. A workload is a registered model at a certain size, with the
//! data that is registered for the model or with random examples.

use std::str::FromStr;

pub use crate::speed::{Devices, Workload};
use crate::{
    options::assignment,
    registry::{Model, Registry},
    speed::{Noise, NoiseInput},
};
use amp_core::{
    Error, Hyperparameters, LightningModule, Result, TrainerConfig,
    data::{AnyBatch, Batch, BatchType, DataModule},
    nn::parameters,
    precision::{Clip, Precision},
    random,
    tch::{Device, Kind, Tensor},
};

/// The norm to which gradients are clipped in every measurement.
pub const CLIP: f64 = 1.0;

/// The size at which the model is built for a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The size that the workload declares, at which training is measured.
    Full,
    /// A size at which the device's operations take almost no time. A training step then takes as
    /// long as the host's part of it.
    Tiny,
}

/// The batch size and the number of features at [`Size::Tiny`].
const TINY: i64 = 8;

impl Workload {
    /// Looks up the model and the data of this workload in the registry.
    ///
    /// # Errors
    /// When the model or its data is not in the registry.
    pub fn resolve(&self, registry: &Registry) -> Result<Task> {
        let model = registry.find(Some(&self.model)).map_err(|error| error.at(&self.name))?;
        let data_set = registry.find_data(model.data_name(registry)?)?;
        let batch = self.batch.unwrap_or(model.batch_size);
        let at_least_one = |what: &str, value: i64| match value {
            1.. => Ok(()),
            _ => Err(Error::config(format!(
                "workload {}: {what} {value}: it must be at least 1",
                self.name
            ))),
        };
        at_least_one("batch", batch)?;
        let mut hyperparameters = model.hyperparameters.clone();
        data_set.apply(&mut hyperparameters);
        hyperparameters.extend(self.hyperparameters.clone());
        let of = match data_set.is_sized() {
            true => model.all_hyperparameters(&hyperparameters)?,
            false => Hyperparameters::new(),
        };
        let load = {
            let data_set = data_set.clone();
            move |batch| data_set.load_for(batch, &of)
        };
        let batches = match self.noise {
            Some(noise) => noise.batches,
            None => load(batch)?.train.len() / batch,
        };
        at_least_one("batches", batches)?;
        Ok(Task {
            workload: self.clone(),
            model: Model::clone(model),
            load: Box::new(load),
            hyperparameters,
            batch,
            batches,
        })
    }
}

/// The changes to a workload's size that the option `--size` asks for.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The number of examples in a batch.
    pub batch: Option<i64>,
    /// The number of ids in each randomly generated example.
    pub length: Option<i64>,
    /// Hyperparameters that replace those of the workload.
    pub hyperparameters: Hyperparameters,
}

impl FromStr for Changes {
    type Err = Error;

    /// Parses pairs `name=value` that are separated by commas. A name is `batch`, `length` or the
    /// name of a hyperparameter.
    fn from_str(text: &str) -> Result<Self> {
        let mut changes = Self::default();
        for part in text.split(',') {
            let (name, value) = assignment(part)?;
            let slot = match name.as_str() {
                "batch" => &mut changes.batch,
                "length" => &mut changes.length,
                _ => {
                    changes.hyperparameters.insert(name, value);
                    continue;
                }
            };
            *slot = value.as_i64().filter(|count| *count > 0);
            if slot.is_none() {
                return Err(Error::config(format!("{name} {value}: it must be at least 1")));
            }
        }
        Ok(changes)
    }
}

impl Changes {
    /// Returns the workload with these changes. The name of the changed workload lists the changes,
    /// so that the tables show them.
    ///
    /// # Errors
    /// When `--size` changes the length of the examples, but the workload's examples are not random
    /// token ids.
    pub fn apply(&self, workload: &Workload) -> Result<Workload> {
        let (mut changed, mut texts) = (workload.clone(), Vec::new());
        if let Some(batch) = self.batch {
            changed.batch = Some(batch);
            texts.push(format!("batch {batch}"));
        }
        if let Some(new) = self.length {
            match changed.noise.as_mut().map(|noise| &mut noise.input) {
                Some(NoiseInput::Tokens { length, .. }) => *length = new,
                _ => {
                    return Err(Error::config(format!(
                        "length {new}: {}'s examples are not random ids: leave the length out",
                        workload.name
                    )));
                }
            }
            texts.push(format!("length {new}"));
        }
        for (name, value) in &self.hyperparameters {
            changed.hyperparameters.insert(name.clone(), value.clone());
            texts.push(format!("{name} {value}"));
        }
        if !texts.is_empty() {
            changed.name = format!("{} ({})", workload.name, texts.join(", "));
            changed.resized = true;
        }
        Ok(changed)
    }
}

/// Finds a workload by its name. If no declared workload has this name, uses the registered model
/// of this name, and its data, as the workload.
///
/// # Errors
/// When there is neither a workload nor a model of this name.
pub fn find(registry: &Registry, name: &str) -> Result<Task> {
    find_changed(registry, name, &Changes::default())
}

/// Finds a workload by its name, as [`find`] does, and applies `changes` to it.
///
/// # Errors
/// When there is neither a workload nor a model of this name, or the workload does not allow one of
/// the changes.
pub fn find_changed(registry: &Registry, name: &str, changes: &Changes) -> Result<Task> {
    if let Some(workload) = declared(registry).find(|workload| workload.name == name) {
        return changes.apply(workload)?.resolve(registry);
    }
    if registry.models().any(|model| model.name() == name) {
        return changes.apply(&Workload::new(name, name))?.resolve(registry);
    }
    let models = registry.models().map(|model| model.name());
    let names: Vec<&str> = declared(registry).map(|w| w.name.as_str()).chain(models).collect();
    Err(Error::config(format!("unknown workload `{name}`: expected one of {}", names.join(", "))))
}

/// Returns the workloads that are declared for `device`. If there are none, returns the registry's
/// first model with its own data. Applies `changes` to each workload.
///
/// # Errors
/// When the model of a workload is not registered, or a workload does not allow one of the changes.
pub fn defaults(registry: &Registry, device: Device, changes: &Changes) -> Result<Vec<Task>> {
    let own: Vec<_> = declared(registry).filter(|w| w.devices.holds(device)).collect();
    if own.is_empty() {
        let first = registry.find(None)?.name();
        return Ok(vec![changes.apply(&Workload::new(first, first))?.resolve(registry)?]);
    }
    own.into_iter().map(|workload| changes.apply(workload)?.resolve(registry)).collect()
}

fn declared(registry: &Registry) -> impl Iterator<Item = &Workload> {
    registry.bench.workloads.iter().map(AsRef::as_ref)
}

/// A workload together with its model and its data from the registry.
pub struct Task {
    workload: Workload,
    model: Model,
    load: Box<dyn Fn(i64) -> Result<DataModule>>,
    hyperparameters: Hyperparameters,
    /// The number of examples in a batch.
    pub batch: i64,
    /// The number of batches in an epoch.
    pub batches: i64,
}

impl Task {
    /// Returns the workload's name in the tables.
    pub fn name(&self) -> &str {
        &self.workload.name
    }

    /// Returns the name under which the model is registered.
    pub fn model(&self) -> &'static str {
        self.model.name()
    }

    /// Returns the number of values in a randomly generated example. Returns `None` if the examples
    /// do not consist of random numbers.
    pub fn features(&self) -> Option<i64> {
        match self.workload.noise?.input {
            NoiseInput::Features { features, .. } => Some(features),
            _ => None,
        }
    }

    /// Returns the number of ids in a randomly generated example. Returns `None` if the examples do
    /// not consist of random token ids.
    pub fn tokens(&self) -> Option<i64> {
        match self.workload.noise?.input {
            NoiseInput::Tokens { length, .. } => Some(length),
            _ => None,
        }
    }

    /// Returns the number of classes if the examples are random numbers, or the size of the
    /// vocabulary if the examples are random ids. Returns `None` for all other examples.
    pub fn classes(&self) -> Option<i64> {
        match self.workload.noise?.input {
            NoiseInput::Features { classes, .. } => Some(classes),
            NoiseInput::Tokens { vocabulary, .. } => Some(vocabulary),
            NoiseInput::Drawn(_) => None,
        }
    }

    /// Returns whether `bench` measures this workload under `precision`.
    pub fn is_measured_in(&self, precision: Precision) -> bool {
        !self.workload.mixed_alone || precision != Precision::F32True
    }

    /// Returns whether torch.compile is measured in two modes besides `reduce-overhead`: `default`
    /// and `max-autotune-no-cudagraphs`.
    pub fn has_compiler_modes(&self) -> bool {
        self.workload.compiler_modes
    }

    /// Returns whether training is also measured without the checks of the trainer's invariants
    /// (rules that hold in every run, for example that every weight changes).
    pub fn has_unchecked_steps(&self) -> bool {
        self.workload.unchecked
    }

    /// Returns whether training is also measured with 16-bit gradients, and with 16-bit gradients
    /// and 8-bit optimizer state.
    pub fn has_reduced_state(&self) -> bool {
        self.workload.reduced_state
    }

    /// Returns whether training on `device` is also measured with the data in host memory.
    pub fn is_fed_on(&self, device: Device) -> bool {
        self.workload.fed.holds(device)
    }

    /// Returns whether the workload declares hyperparameters for a tiny version of the model.
    pub fn has_tiny(&self) -> bool {
        self.workload.tiny.is_some()
    }

    /// Returns how many steps a round on `device` must at least measure.
    pub fn steps(&self, device: Device) -> i64 {
        if device.is_cuda() { self.workload.steps.0 } else { self.workload.steps.1 }
    }

    /// Returns the model's hyperparameters at the size `size`.
    pub fn hyperparameters(&self, size: Size) -> &Hyperparameters {
        match (size, &self.workload.tiny) {
            (Size::Tiny, Some(tiny)) => tiny,
            _ => &self.hyperparameters,
        }
    }

    /// Builds the model at this size, with initial weights from seed 0.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn build(&self, size: Size) -> Result<Box<dyn LightningModule>> {
        let _section = random::seeded(0)?;
        self.model.build(self.hyperparameters(size))
    }

    /// Returns the data: randomly generated examples (seed 42), or the data of the registered
    /// model. [`Size::Tiny`] always gets random examples. With random examples, the validation set
    /// has only one batch, because validation is not measured.
    ///
    /// # Errors
    /// When the data does not fit into memory or cannot be loaded.
    pub fn data(&self, size: Size) -> Result<DataModule> {
        let noise = match (size, self.workload.noise) {
            (Size::Full, None) => return (self.load)(self.batch),
            (Size::Full, Some(noise)) => noise,
            (Size::Tiny, noise) => {
                Noise { batches: self.batches, input: tiny(noise.map(|noise| noise.input)) }
            }
        };
        let batch = if size == Size::Tiny { TINY } else { self.batch };
        let _section = random::seeded(42)?;
        let (all, one) = (draw(noise.input, batch * noise.batches)?, draw(noise.input, batch)?);
        Ok(DataModule::new(self.name(), all, one, batch))
    }

    /// Returns the number of floating-point operations in the matrix products of a step. If the
    /// workload declares this number, returns it at the declared size, and `None` at any other
    /// size. If the workload declares none, computes it from the weight matrices: for each weight
    /// and each example, 2 operations in the forward pass and 4 in the backward pass.
    pub fn matrix_operations(&self, model: &dyn LightningModule) -> Option<f64> {
        if let Some(operations) = self.workload.operations {
            return (!self.workload.resized).then_some(operations);
        }
        let matrices = parameters(model).into_iter().filter(|one| one.tensor.dim() == 2);
        let weights: usize = matrices.map(|one| one.tensor.numel()).sum();
        Some(6.0 * self.batch as f64 * weights as f64)
    }
}

/// Returns the kind of random examples for the tiny version of the model. This is the kind `input`,
/// but with only [`TINY`] values or ids in an example. If the workload generates its examples with
/// its own function, they keep their size.
fn tiny(input: Option<NoiseInput>) -> NoiseInput {
    match input {
        Some(NoiseInput::Features { classes, .. }) => {
            NoiseInput::Features { features: TINY, classes }
        }
        Some(NoiseInput::Tokens { vocabulary, .. }) => {
            NoiseInput::Tokens { length: TINY, vocabulary }
        }
        Some(drawn @ NoiseInput::Drawn(_)) => drawn,
        None => NoiseInput::Features { features: TINY, classes: 2 },
    }
}

/// Generates `count` random examples.
fn draw(input: NoiseInput, count: i64) -> Result<AnyBatch> {
    let ids = |below: i64, size: &[i64]| Tensor::f_randint(below, size, (Kind::Int64, Device::Cpu));
    match input {
        NoiseInput::Features { features, classes } => {
            let numbers = Tensor::f_randn([count, features], (Kind::Float, Device::Cpu))?;
            Batch::new(numbers, ids(classes, &[count])?)?.to_any()
        }
        NoiseInput::Tokens { length, vocabulary } => {
            let size = [count, length];
            Batch::new(ids(vocabulary, &size)?, ids(vocabulary, &size)?)?.to_any()
        }
        NoiseInput::Drawn(draw) => draw(count),
    }
}

/// Returns the trainer's options, which are the same for all measurements. Gradients are clipped,
/// and the models compute their declared metrics. The check that no validation example is also a
/// training example is off, because validation is not measured.
pub fn config(precision: Precision, device: Device) -> TrainerConfig {
    TrainerConfig::new(precision, device).with(|config| {
        config.optimization.gradient_clip = Some(Clip::Norm(CLIP));
        config.checks.shared_examples = true;
    })
}
