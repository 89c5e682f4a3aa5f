//! Helpers of the tests: they read PyTorch's recorded results, compare tensors bit by bit, and
//! build and train small models.

pub(crate) mod bits;
pub(crate) mod data;
pub(crate) mod layers;
pub(crate) mod model;
pub(crate) mod oracle;
pub(crate) mod rounds;
pub(crate) mod tfevents;

use amp_core::{
    Result, Trainer, TrainerConfig,
    event::{Event, Subscriber},
    hardware::{self, Fingerprint},
    nn::Parameter,
    optim::{AdamW, Optimizer, OptimizerConfig},
    precision::{GradScalerConfig, Precision},
    random::{self, Section},
    tch::{self, Device, Tensor},
};

use self::model::{Model, constant, linear, same};

/// Seeds libtorch's random generator, and makes other threads that need random numbers wait until
/// the returned section is dropped. All threads of the process share this generator. Also sets the
/// number of libtorch's threads to 1, so that the order of sums is fixed.
pub(crate) fn seeded(seed: u64) -> Section {
    let section = random::seeded(seed).expect("libtorch takes a seed");
    tch::set_num_threads(1);
    section
}

/// Returns the CPU capability (such as AVX2) for which ATen chooses its kernels, under the name
/// that it has in the recordings.
pub(crate) fn capability() -> String {
    Fingerprint::of(Device::Cpu).expect("a CPU describes itself").capability.to_uppercase()
}

/// Returns a parameter with the given name, and with a copy of `value` as its tensor.
pub(crate) fn parameter(name: &str, value: &Tensor) -> Parameter {
    Parameter { name: name.into(), tensor: value.detach().copy().set_requires_grad(true) }
}

/// Sets the gradient of a parameter to `grad`, bit for bit. The parameter must not have a gradient
/// yet.
pub(crate) fn set_gradient(parameter: &Parameter, grad: &Tensor) {
    assert!(!parameter.tensor.grad().defined(), "gradients would add up");
    // The gradient d/dp Σ p·g is 1·g, which has the same bits as g for every g.
    (&parameter.tensor * grad).sum(grad.kind()).backward();
}

/// Sets the gradient of every parameter of the optimizer. `None` means that the parameter gets no
/// gradient.
pub(crate) fn set_gradients(optimizer: &mut dyn Optimizer, grads: &[Option<Tensor>]) {
    optimizer.zero_grad().expect("gradients can be dropped");
    for (parameter, grad) in optimizer.parameters().iter().zip(grads) {
        if let Some(grad) = grad {
            set_gradient(parameter, grad);
        }
    }
}

/// Returns the text of the error. Panics if the result is not an error.
pub(crate) fn message<T>(result: amp_core::Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}

/// Returns the device of tests that run on the CPU and on CUDA: `AMP_DEVICE`, or the CPU.
pub(crate) fn device() -> Device {
    let name = std::env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    hardware::parse_device(&name).expect("AMP_DEVICE names a device of this machine")
}

/// Asserts that the tests run on CUDA. Every test that needs a CUDA device calls this function
/// first, and has the attribute `#[ignore]`. Such a test runs only with `--include-ignored`, and
/// fails if the device is not CUDA.
pub(crate) fn needs_cuda() {
    assert!(device().is_cuda(), "this test needs a CUDA device: set AMP_DEVICE=cuda");
}

/// Runs a short 16-mixed training run with skipped steps. Returns all events of the run, which
/// `listener` receives too.
pub(crate) fn logged_run(listener: &mut dyn Subscriber) -> Result<Vec<Event>> {
    let _generator = seeded(0);
    let mut config = TrainerConfig::new(Precision::F16Mixed, Device::Cpu);
    (config.max_epochs, config.logging.log_every_n_steps) = (2, 2);
    config.numerics.scaler =
        GradScalerConfig { init_scale: 2.0_f64.powi(22), ..Default::default() };
    let mut model = Model::regression(linear(3, 3)?, |_| OptimizerConfig::new(AdamW::default()));
    heard(config, &mut model, listener)
}

/// Trains on five batches of two examples, whose inputs and targets are ones. Returns the events of
/// the run, which `listener` receives too.
pub(crate) fn heard(
    config: TrainerConfig,
    model: &mut Model,
    listener: &mut dyn Subscriber,
) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    let mut keep = |event: &Event| -> Result<()> {
        events.push(event.clone());
        Ok(())
    };
    let data = same(constant(10, 3, 1.0)?, 2)?;
    Trainer::new(config).subscribe(listener).subscribe(&mut keep).fit(model, &data)?;
    Ok(events)
}
