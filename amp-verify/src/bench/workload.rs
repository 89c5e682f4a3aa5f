//! What is trained: a model at the sizes that are compared, and its data.

use amp_core::{
    Error, Hyperparameters, LightningModule, Result, TrainerConfig,
    data::{Batch, DataModule},
    hardware::seed_everything,
    nn::parameters,
    precision::{Clip, Precision},
    tch::{Device, Kind, Tensor},
};
use fixtures::models;
use serde_json::{Value, json};

/// The norm that gradients are clipped to, in everything that is measured.
pub const CLIP: f64 = 1.0;

/// A model with its data.
#[derive(Debug)]
pub struct Workload {
    /// Its name in the tables.
    pub name: &'static str,
    /// The fixture.
    pub model: &'static str,
    /// Examples in a batch.
    pub batch: i64,
    /// Batches in an epoch.
    pub batches: i64,
    /// Numbers in an example.
    pub features: i64,
    /// Steps of a round, at least, on CUDA and on the CPU.
    steps: (i64, i64),
    hyperparameters: fn() -> Value,
    tiny: fn() -> Value,
}

const ALL: [Workload; 4] = [
    Workload {
        name: "demo",
        model: "MixedPrecisionDemo",
        batch: 128,
        batches: 64,
        features: 512,
        steps: (320, 64),
        hyperparameters: || json!({ "input_size": 512, "hidden_size": 1024 }),
        tiny: || json!({ "input_size": 8, "hidden_size": 16 }),
    },
    Workload {
        name: "advanced",
        model: "AdvancedAMPModel",
        batch: 128,
        batches: 64,
        features: 512,
        steps: (320, 64),
        hyperparameters: || json!({ "input_size": 512, "d_model": 1024, "nhead": 8, "dim_feedforward": 2048 }),
        tiny: || json!({ "input_size": 8, "d_model": 16, "nhead": 8, "dim_feedforward": 16 }),
    },
    Workload {
        name: "wide",
        model: "MixedPrecisionDemo",
        batch: 4096,
        batches: 16,
        features: 512,
        steps: (48, 16),
        hyperparameters: || json!({ "input_size": 512, "hidden_size": 8192 }),
        tiny: || json!({ "input_size": 8, "hidden_size": 16 }),
    },
    Workload {
        name: "precision-test",
        model: "PrecisionTestModel",
        batch: 64,
        batches: 64,
        features: 128,
        steps: (640, 640),
        hyperparameters: || json!({ "input_size": 128 }),
        tiny: || json!({ "input_size": 8 }),
    },
];

/// The workload of this name.
///
/// # Errors
/// When there is none.
pub fn find(name: &str) -> Result<&'static Workload> {
    ALL.iter().find(|workload| workload.name == name).ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|workload| workload.name).collect();
        Error::config(format!("unknown workload `{name}`: expected one of {}", names.join(", ")))
    })
}

/// Those that the targets of `device` are about.
pub fn defaults(device: Device) -> Vec<&'static Workload> {
    let [demo, advanced, wide, precision_test] = &ALL;
    match device.is_cuda() {
        true => vec![demo, advanced, wide],
        false => vec![precision_test, demo],
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

impl Workload {
    /// Steps of a round, at least.
    pub fn steps(&self, device: Device) -> i64 {
        if device.is_cuda() { self.steps.0 } else { self.steps.1 }
    }

    /// The model's sizes.
    pub fn hyperparameters(&self, size: Size) -> Value {
        match size {
            Size::Full => (self.hyperparameters)(),
            Size::Tiny => (self.tiny)(),
        }
    }

    /// The model, with weights of seed 0.
    ///
    /// # Errors
    /// When libtorch does.
    pub fn build(&self, size: Size) -> Result<Box<dyn LightningModule>> {
        seed_everything(0)?;
        let hyperparameters: Hyperparameters =
            self.hyperparameters(size).as_object().cloned().unwrap_or_default();
        models::find(self.model)?.build(&hyperparameters)
    }

    /// The data, one source for all: x ~ N(0, 1) and classes by chance, of seed 42. Its validation
    /// set is one batch; the time of validation counts nowhere.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn data(&self, size: Size) -> Result<DataModule> {
        let (batch, features) = match size {
            Size::Full => (self.batch, self.features),
            Size::Tiny => (8, 8),
        };
        seed_everything(42)?;
        let count = batch * self.batches;
        let x = Tensor::f_randn([count, features], (Kind::Float, Device::Cpu))?;
        let y = Tensor::f_randint(10, [count], (Kind::Int64, Device::Cpu))?;
        let train = Batch::new(x, y)?;
        let val = train.narrow(0, batch)?;
        Ok(DataModule::new(self.name, train, val, batch))
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
