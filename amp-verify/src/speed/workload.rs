//! The workloads that a registry declares.

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
    /// Whether the option `--size` has changed the size that the registry declares.
    pub(crate) resized: bool,
}

/// The number of batches of random examples, and their content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    pub(crate) batches: i64,
    pub(crate) input: NoiseInput,
}

/// The content of random examples.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NoiseInput {
    /// Each example has `features` values from N(0, 1). Its target is one of `classes` classes.
    Features { features: i64, classes: i64 },
    /// Each example has `length` ids below `vocabulary`. Its target has one id for each position.
    Tokens { length: i64, vocabulary: i64 },
    /// A function makes the examples. It receives their number.
    Drawn(fn(i64) -> Result<AnyBatch>),
}

/// The kinds of devices to which an option of a workload applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    /// Whether it applies on CUDA.
    pub cuda: bool,
    /// Whether it applies on the CPU.
    pub cpu: bool,
}

impl Devices {
    /// CUDA and the CPU.
    pub const ALL: Self = Self { cuda: true, cpu: true };
    /// Only CUDA.
    pub const CUDA: Self = Self { cuda: true, cpu: false };
    /// Only the CPU.
    pub const CPU: Self = Self { cuda: false, cpu: true };
    /// No device.
    pub const NONE: Self = Self { cuda: false, cpu: false };

    pub(crate) fn holds(self, device: Device) -> bool {
        if device.is_cuda() { self.cuda } else { self.cpu }
    }
}

impl Workload {
    /// Declares the workload `name`: the registered model `model` with its own data, batch size and
    /// hyperparameters.
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

    /// Sets the batch size; the model's own by default.
    #[must_use]
    pub fn batch(mut self, examples: i64) -> Self {
        self.batch = Some(examples);
        self
    }

    /// Replaces the model's data by `batches` batches of random examples. Each example has
    /// `features` random numbers, and one of `classes` classes as its target.
    #[must_use]
    pub fn noise(mut self, batches: i64, features: i64, classes: i64) -> Self {
        self.noise = Some(Noise { batches, input: NoiseInput::Features { features, classes } });
        self
    }

    /// Replaces the model's data by `batches` batches of random sequences. Each sequence has
    /// `length` ids below `vocabulary`, and at each position a random id as its target.
    #[must_use]
    pub fn tokens(mut self, batches: i64, length: i64, vocabulary: i64) -> Self {
        self.noise = Some(Noise { batches, input: NoiseInput::Tokens { length, vocabulary } });
        self
    }

    /// Replaces the model's data by `batches` batches of examples that the function `draw` makes.
    /// Its argument is the number of examples. It must draw random numbers from libtorch's global
    /// generator, which the benchmark seeds before the call. The Python program of the peers cannot
    /// call `draw`: it must make examples for the model's name itself.
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

    /// Sets the number of floating-point operations in the matrix products of a step. The tables
    /// compute the matrix rate from it. By default the number is computed: 6 operations for each
    /// weight of a matrix and each example. This is correct for models that apply each linear layer
    /// once per example.
    #[must_use]
    pub fn operations_of_a_step(mut self, operations: f64) -> Self {
        self.operations = Some(operations);
        self
    }

    /// Does not measure 32-true. Use this for a workload that takes many times as long in 32-true
    /// as in mixed precision.
    #[must_use]
    pub fn in_mixed_precision_alone(mut self) -> Self {
        self.mixed_alone = true;
        self
    }

    /// Measures torch.compile in two more modes on CUDA: its default mode and
    /// max-autotune-no-cudagraphs.
    #[must_use]
    pub fn with_compiler_modes(mut self) -> Self {
        self.compiler_modes = true;
        self
    }

    /// Sets hyperparameters, as a JSON object, that replace those with which the model is
    /// registered.
    #[must_use]
    pub fn hyperparameters(mut self, hyperparameters: Value) -> Self {
        self.hyperparameters = object(hyperparameters);
        self
    }

    /// Sets the hyperparameters of a tiny version of the model, with which the benchmark measures
    /// how long the host works in a step. The tiny model is trained on batches of 8 examples with 8
    /// random features or ids; its tensor operations must take almost no time.
    #[must_use]
    pub fn tiny(mut self, hyperparameters: Value) -> Self {
        self.tiny = Some(object(hyperparameters));
        self
    }

    /// Sets the smallest number of steps in a round, on CUDA and on a CPU; 64 by default.
    #[must_use]
    pub fn steps_of_a_round(mut self, cuda: i64, cpu: i64) -> Self {
        self.steps = (cuda, cpu);
        self
    }

    /// Sets the devices on which `bench` runs the workload if the user names no workloads; all
    /// devices if this is not called.
    #[must_use]
    pub fn on(mut self, devices: Devices) -> Self {
        self.devices = devices;
        self
    }

    /// Sets the devices on which the workload is also measured with its data in host memory; none
    /// by default.
    #[must_use]
    pub fn fed_on(mut self, devices: Devices) -> Self {
        self.fed = devices;
        self
    }

    /// On CUDA, also measures steps without the checks of training invariants, to show how much
    /// time the checks take.
    #[must_use]
    pub fn with_unchecked_steps(mut self) -> Self {
        self.unchecked = true;
        self
    }

    /// On CUDA, also measures training with gradients stored in 16 bits, and training with 16-bit
    /// gradients and optimizer state in 8 bits.
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
