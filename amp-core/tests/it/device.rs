//! Tests that can run on every device. To run them on CUDA, use `cargo amp test --device cuda`, or
//! `run.sh test` in a packed folder. The expected results are those of the CPU.

use amp_core::{
    Error, Module, Result, TrainerConfig,
    hardware::{Fingerprint, Report, cuda_devices, parse_device},
    loss::cross_entropy,
    memory::MemoryMeter,
    nn::{Context, Op, Visit, Visitor},
    optim::{Adam, AdamW, BuildOptimizer, OptimizerConfig, Sgd},
    precision::{
        AutocastGuard, Clip, GradScaler, GradScalerConfig, Precision, Region, StepOutcome,
        autocast_state, clip_grad_norm,
    },
    tch::{Device, Kind, Tensor},
    trainer::Phase,
};
use rstest::rstest;

use crate::support::{
    device, message,
    model::{Model, constant, demo, digits, fit, linear, same},
    parameter, seeded, set_gradients,
};

fn on(device: Device, value: &Tensor) -> Tensor {
    value.f_to_device(device).expect("the device has room")
}

fn values(count: i64, scale: f64) -> Tensor {
    (Tensor::arange(count, (Kind::Float, Device::Cpu)) - count as f64 / 2.0) * scale
}

/// Runs one step of SGD on a parameter of this dtype, with `grad` as the gradient of a scaled loss.
/// Returns the outcome, the weight, the loss scale on the host, and the loss scale and the growth
/// tracker on the device.
fn scaled_step(kind: Kind, grad: &Tensor) -> Result<(StepOutcome, Tensor, f64, (f32, i32))> {
    let device = device();
    let parameters =
        vec![parameter("weight", &on(device, &Tensor::zeros([4], (kind, Device::Cpu))))];
    let mut optimizer = Sgd { lr: 1.0, ..Sgd::default() }.build(parameters)?;
    let config = GradScalerConfig { init_scale: 1024.0, ..GradScalerConfig::default() };
    let mut scaler = GradScaler::new(device, config)?;
    let _ = scaler.scale(&on(device, &Tensor::from(1.0_f32)))?;
    set_gradients(optimizer.as_mut(), &[Some(on(device, &grad.to_kind(kind)))]);
    let gradients = scaler.gradients(optimizer.as_ref())?;
    let gradients = scaler.unscale(gradients)?;
    let outcome = scaler.step(gradients, optimizer.as_mut())?;
    scaler.update()?;
    let weight = on(Device::Cpu, &optimizer.parameters()[0].tensor.detach()).to_kind(Kind::Float);
    Ok((outcome, weight, scaler.scale_value(), scaler.read_device()?))
}

/// Rules 1 and 7 of docs/SEMANTICS.md: the loss scale is an f32 on the device. The copy on the host
/// has the same value. bf16 gradients are unscaled on CUDA too, although CUDA's kernel does not
/// support bf16.
#[rstest]
#[case::f32(Kind::Float)]
#[case::f64(Kind::Double)]
#[case::bf16(Kind::BFloat16)]
fn gradients_are_unscaled_and_applied(#[case] kind: Kind) -> Result<()> {
    let grad = Tensor::from_slice(&[1024.0_f32, -2048.0, 512.0, 0.0]);
    let (outcome, weight, scale, device) = scaled_step(kind, &grad)?;
    assert_eq!(outcome, StepOutcome::Applied);
    assert_eq!(Vec::<f32>::try_from(&weight)?, [-1.0, 2.0, -0.5, 0.0]);
    assert_eq!((scale, device), (1024.0, (1024.0, 1)));
    Ok(())
}

/// Rules 4 and 5 of docs/SEMANTICS.md: if one element of a gradient is infinite or NaN, the step is
/// skipped, the parameter is named and the loss scale is halved.
#[rstest]
fn overflow_skips_the_step(
    #[values(Kind::Float, Kind::Double, Kind::BFloat16)] kind: Kind,
    #[values(f32::INFINITY, f32::NEG_INFINITY, f32::NAN)] bad: f32,
) -> Result<()> {
    let grad = Tensor::from_slice(&[1.0_f32, bad, 1.0, 1.0]);
    let (outcome, weight, scale, device) = scaled_step(kind, &grad)?;
    assert_eq!(outcome, StepOutcome::Skipped { culprit: Some("weight".to_owned()) });
    assert_eq!(Vec::<f32>::try_from(&weight)?, [0.0; 4]);
    assert_eq!((scale, device), (512.0, (512.0, 0)));
    Ok(())
}

/// Steps whose gradients are not finite are skipped in every dtype, including f16, even if loss
/// scaling is off. There is then no loss scale.
#[rstest]
fn steps_that_are_not_finite_are_skipped_under_every_precision(
    #[values(Precision::F32True, Precision::F16True, Precision::Bf16True, Precision::F64True)]
    precision: Precision,
) -> Result<()> {
    let _generator = seeded(0);
    let config = TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, device()) };
    let mut model = Model::regression(linear(3, 3)?, |_| OptimizerConfig::new(Sgd::default()));
    let record = fit(&config, &mut model, &same(constant(4, 3, f64::INFINITY)?, 2)?).1?;
    assert_eq!((record.end.global_step, record.end.skipped), (0, 2));
    assert_eq!(record.skips[0].culprit.as_deref(), Some("model.weight"));
    assert_eq!(record.end.scale, None);
    Ok(())
}

/// Rule 19 of docs/SEMANTICS.md: the norm and the clipped gradients equal those that are computed
/// in f64 on the CPU, up to the rounding of the dtype.
#[rstest]
#[case::f32(Kind::Float, 1e-6)]
#[case::f64(Kind::Double, 1e-12)]
#[case::f16(Kind::Half, 2e-3)]
#[case::bf16(Kind::BFloat16, 1e-2)]
fn clipping_agrees_with_f64(#[case] kind: Kind, #[case] tolerance: f64) -> Result<()> {
    let exact = [values(100, 0.01), values(33, 0.1)].map(|v| v.to_kind(kind).to_kind(Kind::Double));
    let grads: Vec<Tensor> = exact.iter().map(|v| on(device(), &v.to_kind(kind)).copy()).collect();
    let norm = clip_grad_norm(&grads, 1.0)?.double_value(&[]);
    let expected =
        exact.iter().map(|v| v.square().sum(Kind::Double).double_value(&[])).sum::<f64>();
    let expected = expected.sqrt();
    assert!((norm / expected - 1.0).abs() < tolerance, "norm {norm}, expected {expected}");
    for (clipped, exact) in grads.iter().zip(&exact) {
        let clipped = on(Device::Cpu, clipped).to_kind(Kind::Double);
        let error = (clipped - exact / (expected + 1e-6)).abs().max().double_value(&[]);
        assert!(error < tolerance, "{error}");
    }
    Ok(())
}

/// Every optimizer changes f32 and f64 parameters in the same way as in an f64 run on the CPU.
#[rstest]
fn optimizers_agree_with_f64_on_the_cpu(
    #[values("adamw", "adam", "sgd")] name: &str,
    #[values(Kind::Float, Kind::Double)] kind: Kind,
) -> Result<()> {
    let run = |device: Device, kind: Kind| -> Result<Tensor> {
        let start = on(device, &values(50, 0.02).to_kind(kind));
        let parameters = vec![parameter("w", &start)];
        let mut optimizer = match name {
            "adamw" => AdamW { lr: 1e-2, ..AdamW::default() }.build(parameters)?,
            "adam" => Adam { lr: 1e-2, weight_decay: 1e-2, ..Adam::default() }.build(parameters)?,
            _ => Sgd { lr: 1e-2, momentum: 0.9, nesterov: true, ..Sgd::default() }
                .build(parameters)?,
        };
        for step in 1..=20 {
            let grad = on(device, &(values(50, 0.1) / f64::from(step)).to_kind(kind));
            set_gradients(optimizer.as_mut(), &[Some(grad)]);
            optimizer.step()?;
        }
        Ok(on(Device::Cpu, &optimizer.parameters()[0].tensor.detach()).to_kind(Kind::Double))
    };
    let error = (run(device(), kind)? - run(Device::Cpu, Kind::Double)?).abs().max();
    let tolerance = if kind == Kind::Double { 1e-12 } else { 1e-5 };
    assert!(error.double_value(&[]) < tolerance, "{}", error.double_value(&[]));
    Ok(())
}

/// Rule 10 of docs/SEMANTICS.md: autocast to f16 and bf16 applies to the requested device, and a
/// panic ends the autocast region.
#[rstest]
fn autocast_casts_and_is_left_on_panic(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
) -> Result<()> {
    let device = device();
    let before = autocast_state(device)?;
    let x = on(device, &values(16, 0.1).reshape([4, 4]));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = AutocastGuard::enter(device, kind).expect("a dtype of autocast's");
        assert_eq!(x.matmul(&x).kind(), kind);
        {
            let _off = AutocastGuard::off(device).expect("autocast can be switched off");
            assert_eq!(x.matmul(&x).kind(), Kind::Float);
        }
        assert_eq!(x.matmul(&x).kind(), kind);
        panic!("on purpose");
    }));
    assert!(caught.is_err());
    assert_eq!(autocast_state(device)?, before);
    assert_eq!(x.matmul(&x).kind(), Kind::Float);
    Ok(())
}

/// The model `MixedPrecisionDemo` learns in every precision. Its matrix products have the dtype of
/// the precision, and the loss of its first epoch is within 2 % of the loss in f64.
#[rstest]
fn every_precision_trains(
    #[values(
        Precision::F32True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F64True,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
) -> Result<()> {
    let run = |precision: Precision| {
        let _generator = seeded(3);
        let config = TrainerConfig { max_epochs: 8, ..TrainerConfig::new(precision, device()) }
            .with(|config| config.optimization.gradient_clip = Some(Clip::Norm(5.0)));
        let optimizer = |_: &_| OptimizerConfig::new(AdamW { lr: 5e-3, ..AdamW::default() });
        let mut model = Model {
            model: Box::new(demo(0.0)?),
            loss: cross_entropy,
            optimizer: Box::new(optimizer),
        };
        fit(&config, &mut model, &same(digits(256)?, 64)?).1
    };
    let (record, exact) = (run(precision)?, run(Precision::F64True)?);
    let loss =
        |record: &amp_core::record::RunRecord, epoch: usize| record.epochs[epoch].train[0].value;
    let first = loss(&record, 0) / loss(&exact, 0) - 1.0;
    assert!(first.abs() < 0.02, "the first epoch's loss is off by {first}");
    assert!(loss(&record, 7) < 0.5 * loss(&record, 0), "the loss has not halved");
    assert_eq!(record.end.global_step + record.end.skipped, 32);
    let wanted = match precision.compute() {
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        Kind::Double => "float64",
        _ => "float32",
    };
    assert_eq!(record.observed.matmul.iter().collect::<Vec<_>>(), [wanted]);
    Ok(())
}

/// A layer that claims to compute a matrix product in the dtype of the precision, but returns f32
/// in every precision.
struct Stubborn;

impl Visit for Stubborn {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Stubborn {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_to_kind(Kind::Float)?)
    }

    fn op(&self) -> Op {
        Op::Matmul
    }
}

#[rstest]
#[case(Precision::F16Mixed, "float16")]
#[case(Precision::Bf16Mixed, "bfloat16")]
fn a_precision_that_did_not_run_is_an_error(
    #[case] precision: Precision,
    #[case] wanted: &str,
) -> Result<()> {
    let _generator = seeded(0);
    let layers: Vec<Box<dyn Module>> = vec![Box::new(linear(3, 3)?), Box::new(Stubborn)];
    let mut model = Model::regression(amp_core::nn::Sequential::new(layers), |_| {
        OptimizerConfig::new(Sgd::default())
    });
    let config = TrainerConfig::new(precision, device());
    let (_, record) = fit(&config, &mut model, &same(constant(4, 3, 1.0)?, 2)?);
    assert!(matches!(record, Err(Error::Precision(_))), "{record:?}");
    let text = message(record);
    let expected = format!(
        "the run does not compute in {precision}: the output of `model.1` is float32, but the \
         precision prescribes {wanted}: convert its operands to {wanted}, or declare"
    );
    assert!(text.starts_with(&expected), "{text}");
    Ok(())
}

/// A layer in an f32 precision region computes in f32, even if the run's precision is a 16-bit one.
#[rstest]
#[case(Precision::F16Mixed)]
#[case(Precision::Bf16Mixed)]
#[case(Precision::F16True)]
#[case(Precision::Bf16True)]
fn a_region_of_f32_runs_in_f32(#[case] precision: Precision) -> Result<()> {
    let _generator = seeded(0);
    let mut config = TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, device()) };
    config.numerics.overrides = std::rc::Rc::new([("model.1".to_owned(), Region::Fp32)].into());
    let layers: Vec<Box<dyn Module>> = vec![Box::new(linear(3, 3)?), Box::new(linear(3, 3)?)];
    let mut model = Model::regression(amp_core::nn::Sequential::new(layers), |_| {
        OptimizerConfig::new(Sgd::default())
    });
    let record = fit(&config, &mut model, &same(constant(4, 3, 1.0)?, 2)?).1?;
    let low = if precision.compute() == Kind::Half { "float16" } else { "bfloat16" };
    let mut expected = vec![low, "float32"];
    expected.sort_unstable();
    assert_eq!(record.observed.matmul.iter().collect::<Vec<_>>(), expected);
    Ok(())
}

/// Allocating a tensor raises the measured peak by the size of the tensor, on the CPU up to 4096
/// bytes more. On CUDA, other tests allocate memory on the same device, so the peak may be up to
/// 256 MiB higher.
#[test]
fn the_meter_counts_tensor_bytes() -> Result<()> {
    let options = (Kind::Float, device());
    let (elements, slack) = if device().is_cuda() { (1 << 28, 1 << 28) } else { (1 << 20, 4096) };
    let _warm = Tensor::zeros([1], options);
    let meter = MemoryMeter::start(options.1)?;
    drop(Tensor::zeros([elements], options));
    drop(Tensor::zeros([elements / 4], options));
    let (bytes, peak) = (4 * elements as u64, meter.read()?.peak_allocated);
    assert!((bytes..bytes + slack).contains(&peak), "{peak}");
    Ok(())
}

#[test]
fn a_profiled_step_has_times_of_every_phase() -> Result<()> {
    let _generator = seeded(0);
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, device()) }
            .with(|config| config.logging.profile_every_n_steps = Some(2));
    let mut model = Model::regression(linear(3, 3)?, |_| OptimizerConfig::new(Sgd::default()));
    let record = fit(&config, &mut model, &same(constant(10, 3, 1.0)?, 2)?).1?;
    assert_eq!(record.profile.len(), 3, "steps 0, 2 and 4 of five are profiled");
    for phases in &record.profile {
        let seen: Vec<Phase> = phases.spans.iter().map(|span| span.phase).collect();
        assert_eq!(seen, Phase::ALL, "each phase once, in order");
        for phase in [Phase::Forward, Phase::Backward, Phase::Optimizer] {
            assert!(phases.seconds(phase) > 0.0, "{phase:?}");
        }
        for span in &phases.spans {
            assert_eq!(span.device.is_some(), device().is_cuda());
        }
        for pair in phases.spans.windows(2) {
            let end = pair[0].host.start + pair[0].host.seconds;
            assert!((pair[1].host.start - end).abs() < 1e-9, "no time passes between two phases");
        }
        assert_eq!(phases.memory.is_some(), device().is_cuda());
    }
    Ok(())
}

#[test]
fn the_device_describes_itself() -> Result<()> {
    let fingerprint = Fingerprint::of(device())?;
    assert_ne!(fingerprint.device, "");
    let report = Report::gather()?;
    assert_eq!(report.devices.len() as i64, cuda_devices()?);
    if let Device::Cuda(index) = device() {
        let own = &report.devices[index];
        assert_eq!(own.name, fingerprint.device);
        assert_eq!(format!("{}.{}", own.capability.0, own.capability.1), fingerprint.capability);
        assert!(own.memory > 1 << 30 && own.multiprocessors > 0);
        assert_eq!(parse_device("cuda:0")?, parse_device("auto")?);
        let missing = report.devices.len();
        let text = message(parse_device(&format!("cuda:{missing}")));
        assert!(text.contains("the last is cuda:"), "{text}");
    }
    Ok(())
}

/// When a program starts, TF32 is off everywhere. libtorch's default has TF32 on for cuDNN's
/// convolutions and recurrent layers.
#[test]
fn a_program_starts_with_tf32_off() -> Result<()> {
    let fingerprint = Fingerprint::of(device())?;
    assert!(!fingerprint.tf32);
    Ok(())
}
