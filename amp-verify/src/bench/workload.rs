//! What is trained: a registered model at the sizes that are compared, and its data.

use amp_core::{
    Error, Hyperparameters, LightningModule, Result, TrainerConfig,
    data::{Batch, DataModule},
    hardware::seed_everything,
    nn::parameters,
    precision::{Clip, Precision},
    tch::{Device, Kind, Tensor},
};
use serde_json::Value;

use crate::registry::{Model, Registry};

/// The norm that gradients are clipped to, in everything that is measured.
pub const CLIP: f64 = 1.0;

/// A registered model with its data, as [`Registry::workload`] takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    pub(crate) name: String,
    model: String,
    batch: Option<i64>,
    noise: Option<Noise>,
    hyperparameters: Hyperparameters,
    tiny: Option<Hyperparameters>,
    steps: (i64, i64),
    devices: Devices,
    fed: Devices,
    reduced_state: bool,
}

/// Random examples: x ~ N(0, 1), classes by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Noise {
    batches: i64,
    features: i64,
    classes: i64,
}

/// Kinds of devices that something is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    /// For CUDA.
    pub cuda: bool,
    /// For a CPU.
    pub cpu: bool,
}

impl Devices {
    /// Both.
    pub const ALL: Self = Self { cuda: true, cpu: true };
    /// CUDA alone.
    pub const CUDA: Self = Self { cuda: true, cpu: false };
    /// The CPU alone.
    pub const CPU: Self = Self { cuda: false, cpu: true };
    /// Neither.
    pub const NONE: Self = Self { cuda: false, cpu: false };

    fn holds(self, device: Device) -> bool {
        if device.is_cuda() { self.cuda } else { self.cpu }
    }
}

/// A workload at the size that is compared, or so small that its tensors cost next to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// As it is.
    Full,
    /// So small that what remains of a step is the host's part of it.
    Tiny,
}

/// Examples in a batch of [`Size::Tiny`], and their features.
const TINY: i64 = 8;

impl Workload {
    /// Trains the registered model `model` on its own data, with its own batch size and
    /// hyperparameters, under the name `name`.
    pub fn new(name: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            model: model.into(),
            batch: None,
            noise: None,
            hyperparameters: Hyperparameters::new(),
            tiny: None,
            steps: (64, 64),
            devices: Devices::ALL,
            fed: Devices::NONE,
            reduced_state: false,
        }
    }

    /// Examples in a batch; the model's own by default.
    #[must_use]
    pub fn batch(mut self, examples: i64) -> Self {
        self.batch = Some(examples);
        self
    }

    /// Trains on so many batches of random examples of so many features, with classes by chance,
    /// instead of the model's data.
    #[must_use]
    pub fn noise(mut self, batches: i64, features: i64, classes: i64) -> Self {
        self.noise = Some(Noise { batches, features, classes });
        self
    }

    /// Hyperparameters over the model's own: a JSON object.
    #[must_use]
    pub fn hyperparameters(mut self, hyperparameters: Value) -> Self {
        self.hyperparameters = object(hyperparameters);
        self
    }

    /// Hyperparameters of the same model so small that its tensors cost next to nothing, with 8 random
    /// features and batches of 8: the host's part of a step is measured with them.
    #[must_use]
    pub fn tiny(mut self, hyperparameters: Value) -> Self {
        self.tiny = Some(object(hyperparameters));
        self
    }

    /// Steps of a round, at least, on CUDA and on a CPU; 64 by default.
    #[must_use]
    pub fn steps_of_a_round(mut self, cuda: i64, cpu: i64) -> Self {
        self.steps = (cuda, cpu);
        self
    }

    /// The devices on which it is measured unless workloads are named; all by default.
    #[must_use]
    pub fn on(mut self, devices: Devices) -> Self {
        self.devices = devices;
        self
    }

    /// The devices on which feeding it from the host is measured as well; none by default.
    #[must_use]
    pub fn fed_on(mut self, devices: Devices) -> Self {
        self.fed = devices;
        self
    }

    /// Measures it with gradients in 16 bits and optimizer state in 8 bits, too, on CUDA.
    #[must_use]
    pub fn with_reduced_state(mut self) -> Self {
        self.reduced_state = true;
        self
    }

    /// Looks up the model and its data.
    ///
    /// # Errors
    /// When they are not registered.
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
        let load = {
            let data_set = data_set.clone();
            move |batch| data_set.load(batch)
        };
        let batches = match self.noise {
            Some(noise) => noise.batches,
            None => load(batch)?.train.len() / batch,
        };
        at_least_one("batches", batches)?;
        let mut hyperparameters = model.hyperparameters.clone();
        data_set.apply(&mut hyperparameters);
        hyperparameters.extend(self.hyperparameters.clone());
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

fn object(value: Value) -> Hyperparameters {
    match value {
        Value::Object(map) => map,
        other => panic!("hyperparameters: {other} is not a JSON object"),
    }
}

/// The workload of this name: a declared one, or a model on its own data.
///
/// # Errors
/// When there is none.
pub fn find(registry: &Registry, name: &str) -> Result<Task> {
    if let Some(workload) = declared(registry).find(|workload| workload.name == name) {
        return workload.resolve(registry);
    }
    if registry.models().any(|model| model.name() == name) {
        return Workload::new(name, name).resolve(registry);
    }
    let models = registry.models().map(|model| model.name());
    let names: Vec<&str> = declared(registry).map(|w| w.name.as_str()).chain(models).collect();
    Err(Error::config(format!("unknown workload `{name}`: expected one of {}", names.join(", "))))
}

/// The declared workloads of `device`; without any, the registry's first model on its own data.
///
/// # Errors
/// When their models are not registered.
pub fn defaults(registry: &Registry, device: Device) -> Result<Vec<Task>> {
    let own: Vec<_> = declared(registry).filter(|w| w.devices.holds(device)).collect();
    if own.is_empty() {
        let first = registry.find(None)?.name();
        return Ok(vec![Workload::new(first, first).resolve(registry)?]);
    }
    own.into_iter().map(|workload| workload.resolve(registry)).collect()
}

fn declared(registry: &Registry) -> impl Iterator<Item = &Workload> {
    registry.bench.workloads.iter().map(AsRef::as_ref)
}

/// A workload whose model and data were found.
pub struct Task {
    workload: Workload,
    model: Model,
    load: Box<dyn Fn(i64) -> Result<DataModule>>,
    hyperparameters: Hyperparameters,
    /// Examples in a batch.
    pub batch: i64,
    /// Batches in an epoch.
    pub batches: i64,
}

impl Task {
    /// The workload's name in the tables.
    pub fn name(&self) -> &str {
        &self.workload.name
    }

    /// The model's name.
    pub fn model(&self) -> &'static str {
        self.model.name()
    }

    /// Numbers in a random example; `None` for the model's own data.
    pub fn features(&self) -> Option<i64> {
        self.workload.noise.map(|noise| noise.features)
    }

    /// Whether reduced gradients and optimizer state are measured as well.
    pub fn has_reduced_state(&self) -> bool {
        self.workload.reduced_state
    }

    /// Whether feeding it from the host is measured on `device`.
    pub fn is_fed_on(&self, device: Device) -> bool {
        self.workload.fed.holds(device)
    }

    /// Whether there is a size at which its tensors cost next to nothing.
    pub fn has_tiny(&self) -> bool {
        self.workload.tiny.is_some()
    }

    /// Steps of a round, at least.
    pub fn steps(&self, device: Device) -> i64 {
        if device.is_cuda() { self.workload.steps.0 } else { self.workload.steps.1 }
    }

    /// The model's hyperparameters.
    pub fn hyperparameters(&self, size: Size) -> &Hyperparameters {
        match (size, &self.workload.tiny) {
            (Size::Tiny, Some(tiny)) => tiny,
            _ => &self.hyperparameters,
        }
    }

    /// The model, with weights of seed 0.
    ///
    /// # Errors
    /// When libtorch does.
    pub fn build(&self, size: Size) -> Result<Box<dyn LightningModule>> {
        seed_everything(0)?;
        self.model.build(self.hyperparameters(size))
    }

    /// The data: random examples of seed 42, or the model's own. The validation set of random
    /// examples is one batch; the time of validation counts nowhere.
    ///
    /// # Errors
    /// When there is no room for it, or it cannot be loaded.
    pub fn data(&self, size: Size) -> Result<DataModule> {
        let noise = match (size, self.workload.noise) {
            (Size::Full, None) => return (self.load)(self.batch),
            (Size::Full, Some(noise)) => noise,
            (Size::Tiny, noise) => Noise {
                batches: self.batches,
                features: TINY,
                classes: noise.map_or(2, |noise| noise.classes),
            },
        };
        let batch = if size == Size::Tiny { TINY } else { self.batch };
        seed_everything(42)?;
        let count = batch * noise.batches;
        let x = Tensor::f_randn([count, noise.features], (Kind::Float, Device::Cpu))?;
        let y = Tensor::f_randint(noise.classes, [count], (Kind::Int64, Device::Cpu))?;
        let train = Batch::new(x, y)?;
        let val = train.narrow(0, batch)?;
        Ok(DataModule::new(self.name(), train, val, batch))
    }

    /// The floating-point operations of a step's matrix products: 2 for each weight of a matrix
    /// and example forward, and twice that backward.
    ///
    /// # Errors
    /// When the model cannot be built.
    pub fn matrix_operations(&self, model: &dyn LightningModule) -> f64 {
        let matrices = parameters(model).into_iter().filter(|one| one.tensor.dim() == 2);
        let weights: usize = matrices.map(|one| one.tensor.numel()).sum();
        6.0 * self.batch as f64 * weights as f64
    }
}

/// The trainer's options, alike for everything that is measured: clipping, and the metrics that the
/// models declare.
pub fn config(precision: Precision, device: Device) -> TrainerConfig {
    TrainerConfig { gradient_clip: Some(Clip::Norm(CLIP)), ..TrainerConfig::new(precision, device) }
}
