//! A workload, as a registry declares it.

use amp_core::{Hyperparameters, Result, data::AnyBatch, tch::Device};
use serde_json::Value;

/// A registered model with its data, as passed to [`Registry::workload`](crate::Registry::workload).
#[derive(Debug, Clone)]
pub struct Workload {
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) batch: Option<i64>,
    pub(crate) noise: Option<Noise>,
    pub(crate) hyperparameters: Hyperparameters,
    pub(crate) tiny: Option<Hyperparameters>,
    pub(crate) steps: (i64, i64),
    pub(crate) devices: Devices,
    pub(crate) fed: Devices,
    pub(crate) reduced_state: bool,
    pub(crate) unchecked: bool,
    pub(crate) operations: Option<f64>,
    pub(crate) compiler_modes: bool,
    pub(crate) mixed_alone: bool,
    /// Whether the size is another than the declared one.
    pub(crate) resized: bool,
}

/// Random examples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    pub(crate) batches: i64,
    pub(crate) input: NoiseInput,
}

/// The content of a random example.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NoiseInput {
    /// This number of values from N(0, 1), with one class.
    Features { features: i64, classes: i64 },
    /// This number of ids below the vocabulary's size, with one id to predict for each.
    Tokens { length: i64, vocabulary: i64 },
    /// The examples that the function returns for a number of examples.
    Drawn(fn(i64) -> Result<AnyBatch>),
}

/// The kinds of devices to which a declaration applies.
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
    /// Only CUDA.
    pub const CUDA: Self = Self { cuda: true, cpu: false };
    /// Only the CPU.
    pub const CPU: Self = Self { cuda: false, cpu: true };
    /// Neither.
    pub const NONE: Self = Self { cuda: false, cpu: false };

    pub(crate) fn holds(self, device: Device) -> bool {
        if device.is_cuda() { self.cuda } else { self.cpu }
    }
}

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
            unchecked: false,
            operations: None,
            compiler_modes: false,
            mixed_alone: false,
            resized: false,
        }
    }

    /// Examples per batch; the model's own by default.
    #[must_use]
    pub fn batch(mut self, examples: i64) -> Self {
        self.batch = Some(examples);
        self
    }

    /// Trains on this many batches of random examples with this many features and random classes,
    /// instead of the model's data.
    #[must_use]
    pub fn noise(mut self, batches: i64, features: i64, classes: i64) -> Self {
        self.noise = Some(Noise { batches, input: NoiseInput::Features { features, classes } });
        self
    }

    /// Trains on this many batches of random sequences of `length` ids below `vocabulary`, with a
    /// random id to predict at each position, instead of the model's data.
    #[must_use]
    pub fn tokens(mut self, batches: i64, length: i64, vocabulary: i64) -> Self {
        self.noise = Some(Noise { batches, input: NoiseInput::Tokens { length, vocabulary } });
        self
    }

    /// Trains on this number of batches of the examples that `draw` returns for a number of examples,
    /// instead of the model's data. `draw` uses libtorch's global generator, which is seeded before. The
    /// peers' program draws such examples itself, by the model's name.
    ///
    /// ```
    /// use amp_core::{
    ///     data::{Batch, BatchType},
    ///     tch::{Device, Kind, Tensor},
    /// };
    /// use amp_verify::bench::Workload;
    ///
    /// Workload::new("sums", "Net").batch(256).examples(8, |count| {
    ///     let input = Tensor::f_rand([count, 16], (Kind::Float, Device::Cpu))?;
    ///     let sums = input.f_sum_dim_intlist([1].as_slice(), true, None)?;
    ///     Batch::new(input, sums)?.to_any()
    /// });
    /// ```
    #[must_use]
    pub fn examples(mut self, batches: i64, draw: fn(i64) -> Result<AnyBatch>) -> Self {
        self.noise = Some(Noise { batches, input: NoiseInput::Drawn(draw) });
        self
    }

    /// The floating-point operations of a step's matrix products. The tables show which share of the
    /// device's rate they reach. By default they are 6 for each weight of a matrix and each example, which
    /// is correct for models of linear layers.
    #[must_use]
    pub fn operations_of_a_step(mut self, operations: f64) -> Self {
        self.operations = Some(operations);
        self
    }

    /// Leaves out 32-true, which takes many times as long.
    #[must_use]
    pub fn in_mixed_precision_alone(mut self) -> Self {
        self.mixed_alone = true;
        self
    }

    /// Measures torch.compile in its default mode and with max-autotune-no-cudagraphs as well as with
    /// reduce-overhead, on CUDA.
    #[must_use]
    pub fn with_compiler_modes(mut self) -> Self {
        self.compiler_modes = true;
        self
    }

    /// Hyperparameters that replace the model's own: a JSON object.
    #[must_use]
    pub fn hyperparameters(mut self, hyperparameters: Value) -> Self {
        self.hyperparameters = object(hyperparameters);
        self
    }

    /// Hyperparameters of the same model at a size at which its tensors take a negligible time, with 8
    /// random features and batches of 8. They are used to measure the host's part of a step.
    #[must_use]
    pub fn tiny(mut self, hyperparameters: Value) -> Self {
        self.tiny = Some(object(hyperparameters));
        self
    }

    /// The fewest steps of a round on CUDA and on a CPU; 64 by default.
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

    /// Measures it on CUDA without the invariants of training as well, whose cost is the difference.
    #[must_use]
    pub fn with_unchecked_steps(mut self) -> Self {
        self.unchecked = true;
        self
    }

    /// Also measures it with gradients in 16 bits and optimizer state in 8 bits, on CUDA.
    #[must_use]
    pub fn with_reduced_state(mut self) -> Self {
        self.reduced_state = true;
        self
    }
}

fn object(value: Value) -> Hyperparameters {
    match value {
        Value::Object(map) => map,
        other => panic!("hyperparameters: {other} is not a JSON object"),
    }
}
