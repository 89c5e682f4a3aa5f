//! The workloads that a registry declares for the benchmark.

use amp_core::{Hyperparameters, Result, data::AnyBatch, tch::Device};
use serde_json::Value;

/// A training run that `cargo amp bench` measures: a registered model with its data, batch size and
/// hyperparameters. [`Registry::workload`](crate::Registry::workload) adds a workload to a
/// registry.
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
    /// Whether the option `--size` has changed the workload that the registry declares.
    pub(crate) resized: bool,
}

/// The random examples that replace the model's data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    pub(crate) batches: i64,
    pub(crate) input: NoiseInput,
}

/// What random examples contain.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NoiseInput {
    /// Each example has `features` values from N(0, 1). Its target is one of `classes` classes.
    Features { features: i64, classes: i64 },
    /// Each example has `length` token ids below `vocabulary`. Its target has one token id for each
    /// position.
    Tokens { length: i64, vocabulary: i64 },
    /// A function generates the examples. Its argument is the number of examples.
    Drawn(fn(i64) -> Result<AnyBatch>),
}

/// The kinds of devices (CUDA, CPU) to which a setting of a workload applies, for example
/// [`Workload::on`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    /// Whether the setting applies on CUDA devices.
    pub cuda: bool,
    /// Whether the setting applies on the CPU.
    pub cpu: bool,
}

impl Devices {
    /// The setting applies on CUDA and on the CPU.
    pub const ALL: Self = Self { cuda: true, cpu: true };
    /// The setting applies only on CUDA.
    pub const CUDA: Self = Self { cuda: true, cpu: false };
    /// The setting applies only on the CPU.
    pub const CPU: Self = Self { cuda: false, cpu: true };
    /// The setting applies on no device.
    pub const NONE: Self = Self { cuda: false, cpu: false };

    pub(crate) fn holds(self, device: Device) -> bool {
        if device.is_cuda() { self.cuda } else { self.cpu }
    }
}

impl Workload {
    /// Declares the workload `name`: the registered model `model`, with the data, the batch size
    /// and the hyperparameters with which it is registered.
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

    /// Sets the number of examples per batch. The default is the number with which the model is
    /// registered.
    #[must_use]
    pub fn batch(mut self, examples: i64) -> Self {
        self.batch = Some(examples);
        self
    }

    /// Replaces the model's data by `batches` batches of random examples. An example has `features`
    /// random numbers. Its target is one of `classes` classes.
    #[must_use]
    pub fn noise(mut self, batches: i64, features: i64, classes: i64) -> Self {
        self.noise = Some(Noise { batches, input: NoiseInput::Features { features, classes } });
        self
    }

    /// Replaces the model's data by `batches` batches of random sequences. A sequence has `length`
    /// token ids below `vocabulary`. Its target has a random token id for each position.
    #[must_use]
    pub fn tokens(mut self, batches: i64, length: i64, vocabulary: i64) -> Self {
        self.noise = Some(Noise { batches, input: NoiseInput::Tokens { length, vocabulary } });
        self
    }

    /// Replaces the model's data by `batches` batches of examples that the function `draw`
    /// generates. The argument of `draw` is the number of examples. The function must take random
    /// numbers from libtorch's global generator, which the benchmark seeds before the call. The
    /// Python program that runs the PyTorch engines cannot call `draw`, so it needs a Python
    /// function that generates the examples.
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

    /// Sets the number of floating-point operations in the matrix products of a step. The column
    /// "matmul rate" is computed from this number. The default is 6 operations for each example and
    /// each element of a weight matrix: 2 in the forward pass and 4 in the backward pass. This
    /// default is correct for models that apply each linear layer once per example.
    #[must_use]
    pub fn operations_of_a_step(mut self, operations: f64) -> Self {
        self.operations = Some(operations);
        self
    }

    /// Excludes 32-true from the measurements. Use this for a workload that takes many times as
    /// long in 32-true as in mixed precision.
    #[must_use]
    pub fn in_mixed_precision_alone(mut self) -> Self {
        self.mixed_alone = true;
        self
    }

    /// Makes the benchmark measure torch.compile on CUDA in two modes besides reduce-overhead: its
    /// default mode, and max-autotune-no-cudagraphs.
    #[must_use]
    pub fn with_compiler_modes(mut self) -> Self {
        self.compiler_modes = true;
        self
    }

    /// Sets hyperparameters, as a JSON object. They replace the hyperparameters with which the
    /// model is registered.
    #[must_use]
    pub fn hyperparameters(mut self, hyperparameters: Value) -> Self {
        self.hyperparameters = object(hyperparameters);
        self
    }

    /// Sets the hyperparameters of a tiny version of the model. The benchmark trains this version
    /// on batches of 8 examples with 8 random features or token ids, to measure the host's time for
    /// a step. Choose hyperparameters with which tensor operations take almost no time.
    #[must_use]
    pub fn tiny(mut self, hyperparameters: Value) -> Self {
        self.tiny = Some(object(hyperparameters));
        self
    }

    /// Sets the smallest number of steps that are timed in a round: `cuda` on CUDA, `cpu` on the
    /// CPU. The default of both is 64.
    #[must_use]
    pub fn steps_of_a_round(mut self, cuda: i64, cpu: i64) -> Self {
        self.steps = (cuda, cpu);
        self
    }

    /// Sets the devices on which `bench` measures this workload if the user names no workload. By
    /// default, these are all devices.
    #[must_use]
    pub fn on(mut self, devices: Devices) -> Self {
        self.devices = devices;
        self
    }

    /// Sets the devices on which this workload is also measured with its data in host memory. By
    /// default, there are none.
    #[must_use]
    pub fn fed_on(mut self, devices: Devices) -> Self {
        self.fed = devices;
        self
    }

    /// Makes the benchmark measure steps on CUDA also without the checks of training invariants, to
    /// show how much time the checks take. Together with
    /// [`with_reduced_state`](Self::with_reduced_state), this applies only under 32-true.
    #[must_use]
    pub fn with_unchecked_steps(mut self) -> Self {
        self.unchecked = true;
        self
    }

    /// Makes the benchmark also measure training on CUDA with gradients stored in 16 bits, and with
    /// 16-bit gradients and the optimizer state in 8 bits. This does not apply under 32-true.
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
