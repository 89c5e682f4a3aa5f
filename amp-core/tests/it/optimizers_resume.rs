//! Tests of the state that optimizers and schedules save, and of resuming from this state.

use amp_core::{
    Result,
    hardware::seed_everything,
    log::Logged,
    optim::{
        Adafactor, Adam, AdamW, BuildOptimizer, ChainedScheduler, ConstantLr, CosineAnnealing,
        ExponentialLr, Interval, Lamb, LinearLr, Lion, Moments, OneCycle, OptimizerConfig,
        Optimizers, ParamGroups, ReduceLrOnPlateau, RmsProp, Scheduled, SequentialLr, Sgd, StepLr,
        Storage, WarmupCosine, WeightUpdate, Wsd,
    },
    state::State,
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{bits::bits, device, message, oracle::Lcg, parameter, seeded, set_gradients};

/// The number of steps of a run.
const STEPS: u64 = 40;
/// The number of steps after which a run is saved and resumed.
const SAVED_AT: u64 = STEPS / 2;
const SHAPES: [&[i64]; 3] = [&[3, 5], &[5], &[2, 2, 2]];

fn optimizer(kind: &str) -> OptimizerConfig {
    match kind {
        "adamw" => OptimizerConfig::new(AdamW::default()),
        "adamw_foreach" => OptimizerConfig::new(AdamW { fused: false, ..Default::default() }),
        "adam" => OptimizerConfig::new(Adam::default()),
        "sgd" => OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() }),
        "sgd_damped" => OptimizerConfig::new(Sgd {
            lr: 0.1,
            momentum: 0.9,
            dampening: 0.5,
            ..Default::default()
        }),
        "rmsprop" => {
            OptimizerConfig::new(RmsProp { momentum: 0.9, centered: true, ..Default::default() })
        }
        "adafactor" => OptimizerConfig::new(Adafactor { weight_decay: 0.1, ..Default::default() }),
        "lamb" => OptimizerConfig::new(Lamb::default()),
        "lion" => OptimizerConfig::new(Lion { weight_decay: 0.1, ..Default::default() }),
        other => panic!("no optimizer is called {other}"),
    }
}

fn schedule(kind: &str, config: OptimizerConfig) -> OptimizerConfig {
    match kind {
        "constant" => config,
        "cosine" => {
            config.with_scheduler(CosineAnnealing { t_max: 6, eta_min: 1e-5 }, Interval::Step)
        }
        "one_cycle" => config.with_scheduler(
            OneCycle { max_lr: 0.1, total_steps: STEPS.cast_signed(), ..Default::default() },
            Interval::Step,
        ),
        "step" => config.with_scheduler(StepLr { step_size: 3, gamma: 0.9 }, Interval::Step),
        "linear" => config
            .with_scheduler(LinearLr { total_iters: 30, ..Default::default() }, Interval::Step),
        "warmup_cosine" => config.with_scheduler(
            WarmupCosine { warmup_steps: 4, total_steps: STEPS.cast_signed() },
            Interval::Step,
        ),
        "sequential" => config.with_scheduler(
            SequentialLr::new(LinearLr { total_iters: 10, ..Default::default() })
                .then(14, CosineAnnealing { t_max: 26, eta_min: 0.0 }),
            Interval::Step,
        ),
        "wsd" => config.with_scheduler(
            Wsd {
                warmup_steps: 4,
                decay_steps: 16,
                total_steps: STEPS.cast_signed(),
                ..Default::default()
            },
            Interval::Step,
        ),
        "chained" => config.with_scheduler(
            ChainedScheduler::new(ConstantLr { factor: 0.1, total_iters: 24 })
                .then(ExponentialLr { gamma: 0.99 }),
            Interval::Step,
        ),
        "plateau" => config.with_scheduler(
            ReduceLrOnPlateau { factor: 0.9, patience: 2, ..Default::default() },
            Interval::Epoch,
        ),
        other => panic!("no schedule is called {other}"),
    }
}

fn built(config: OptimizerConfig, values: &[Tensor]) -> Result<Scheduled> {
    built_with(config, values, Storage::default())
}

fn built_with(config: OptimizerConfig, values: &[Tensor], storage: Storage) -> Result<Scheduled> {
    let parameters = values.iter().enumerate().map(|(at, v)| parameter(&format!("layer.{at}"), v));
    let mut built = Optimizers::from(config).build(parameters.collect(), storage)?;
    assert_eq!(built.len(), 1);
    Ok(built.remove(0))
}

fn start(kind: Kind) -> Vec<Tensor> {
    let mut lcg = Lcg(3);
    SHAPES.iter().map(|shape| lcg.tensor(shape, 128.0).to_kind(kind).to_device(device())).collect()
}

/// Runs the steps whose numbers are in the range `steps`. The gradients depend only on the number
/// of the step. The last parameter gets its first gradient in step [`SAVED_AT`], so a checkpoint of
/// an earlier step has no optimizer state for this parameter.
fn train(scheduled: &mut Scheduled, steps: std::ops::Range<u64>) -> Result<()> {
    for step in steps {
        let mut lcg = Lcg(1000 + step);
        let grads: Vec<Option<Tensor>> = scheduled
            .optimizer
            .parameters()
            .iter()
            .enumerate()
            .map(|(at, p)| {
                let grad = lcg.tensor(&p.tensor.size(), 64.0);
                let grad = grad.to_kind(p.tensor.kind()).to_device(p.tensor.device());
                (at < 2 || step >= SAVED_AT).then_some(grad)
            })
            .collect();
        set_gradients(scheduled.optimizer.as_mut(), &grads);
        scheduled.optimizer.step()?;
        scheduled.advance(Interval::Step, &[])?;
        let value = (step % 13) as f64;
        let logged = Logged { name: "val_loss".to_owned(), value, prog_bar: false };
        scheduled.advance(Interval::Epoch, &[logged])?;
    }
    Ok(())
}

fn weights(scheduled: &Scheduled) -> Vec<Tensor> {
    let parameters = scheduled.optimizer.parameters().iter();
    parameters.map(|parameter| parameter.tensor.detach().copy()).collect()
}

/// Returns the state as if it had been read from a file. The tensors are copies on the CPU, and the
/// values were converted to JSON and back.
fn through_a_file(state: &State) -> State {
    let mut read = State::default();
    for (name, tensor) in state.tensors() {
        read.put_tensor(name, &tensor.to_device(Device::Cpu).copy());
    }
    for (name, value) in state.values() {
        let text = serde_json::to_string(value).expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        read.put(name, &value).expect("a value again");
    }
    read
}

/// Resuming gives the same bits as an uninterrupted run. One run makes all steps. The other makes
/// half of them, saves its state, loads the state into a new optimizer, and makes the other half.
/// All weights, all state and the learning rates are compared.
#[rstest]
fn resuming_from_a_saved_state_gives_the_same_bits(
    #[values(
        "adamw",
        "adamw_foreach",
        "adam",
        "sgd",
        "sgd_damped",
        "rmsprop",
        "lion",
        "adafactor",
        "lamb"
    )]
    kind: &str,
    #[values(
        "constant",
        "cosine",
        "one_cycle",
        "step",
        "linear",
        "warmup_cosine",
        "sequential",
        "wsd",
        "chained",
        "plateau"
    )]
    rates: &str,
    #[values(Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half)] dtype: Kind,
) -> Result<()> {
    goes_on_alike(|| schedule(rates, optimizer(kind)), dtype, WeightUpdate::default())
}

/// Resuming gives the same bits with master weights, because the saved state contains them. With
/// stochastic rounding, resuming gives the same bits if the random generator is in the same state.
#[rstest]
fn resuming_works_with_every_weight_update(
    #[values(
        "adamw",
        "adamw_foreach",
        "adam",
        "sgd",
        "sgd_damped",
        "rmsprop",
        "lion",
        "adafactor",
        "lamb"
    )]
    kind: &str,
    #[values(WeightUpdate::MasterWeights, WeightUpdate::StochasticRounding)] update: WeightUpdate,
) -> Result<()> {
    goes_on_alike(|| schedule("cosine", optimizer(kind)), Kind::BFloat16, update)
}

/// Resuming gives the same bits if the optimizer state has fewer bits than f32. State in bf16 is
/// rounded stochastically, so the random generator must be in the same state, too.
#[rstest]
fn resuming_works_with_state_in_fewer_bits(
    #[values(
        "adamw",
        "adamw_foreach",
        "adam",
        "sgd",
        "sgd_damped",
        "rmsprop",
        "lion",
        "adafactor",
        "lamb"
    )]
    kind: &str,
    #[values(Moments::Bf16, Moments::EightBit)] moments: Moments,
    #[values(Kind::Float, Kind::BFloat16)] dtype: Kind,
) -> Result<()> {
    goes_on_alike(|| schedule("cosine", optimizer(kind)), dtype, moments)
}

/// Resuming gives the same bits with parameter groups. Each group has its own state and learning
/// rate.
#[test]
fn resuming_works_with_parameter_groups() -> Result<()> {
    let config = || {
        let base = Sgd { lr: 0.1, momentum: 0.9, ..Default::default() };
        let groups = ParamGroups::new(base)
            .group(["layer.1"], Sgd { momentum: 0.0, lr: 0.01, ..base })
            .group(["layer.2"], Sgd { dampening: 0.5, ..base });
        schedule("cosine", OptimizerConfig::new(groups))
    };
    goes_on_alike(config, Kind::Float, WeightUpdate::default())
}

fn goes_on_alike(
    config: impl Fn() -> OptimizerConfig,
    dtype: Kind,
    storage: impl Into<Storage>,
) -> Result<()> {
    let storage = storage.into();
    let _generator = seeded(0);
    let mut straight = built_with(config(), &start(dtype), storage)?;
    train(&mut straight, 0..SAVED_AT)?;
    seed_everything(1)?;
    train(&mut straight, SAVED_AT..STEPS)?;

    seed_everything(0)?;
    let mut first = built_with(config(), &start(dtype), storage)?;
    train(&mut first, 0..SAVED_AT)?;
    let saved = through_a_file(&first.state()?);
    let mut second = built_with(config(), &weights(&first), storage)?;
    second.load_state(&saved)?;
    seed_everything(1)?;
    train(&mut second, SAVED_AT..STEPS)?;

    for (one, other) in weights(&straight).iter().zip(weights(&second)) {
        assert_eq!(bits(one), bits(&other), "weights");
    }
    let (one, other) = (straight.state()?, second.state()?);
    assert_eq!(one.values(), other.values());
    assert_eq!(one.tensors().count(), other.tensors().count());
    for (name, tensor) in one.tensors() {
        assert_eq!(bits(tensor), bits(other.tensor(name)?), "{name}");
    }
    Ok(())
}

/// The names of saved state are PyTorch's state keys followed by the parameter's dotted name.
#[test]
fn state_is_named_as_in_pytorch() -> Result<()> {
    let adam = built(schedule("cosine", optimizer("adamw")), &start(Kind::Float))?.state()?;
    let names: Vec<&str> = adam.tensors().map(|(name, _)| name).collect();
    let expected = ["exp_avg", "exp_avg_sq", "step"]
        .into_iter()
        .flat_map(|slot| (0..3).map(move |at| format!("optimizer/{slot}/layer.{at}")));
    assert_eq!(names, expected.collect::<Vec<_>>());
    assert_eq!(adam.get::<f64>("optimizer/param_groups/0/lr")?, 1e-3);
    assert_eq!(adam.get::<f64>("optimizer/param_groups/0/momentum")?, 0.9);
    assert_eq!(adam.get::<i64>("scheduler/0/last_epoch")?, 0);
    let sgd = built(optimizer("sgd_damped"), &start(Kind::Float))?.state()?;
    assert_eq!(sgd.tensor("optimizer/momentum_buffer/layer.0")?.size(), [3, 5]);
    Ok(())
}

/// A saved state that does not fit the optimizer, the schedule or the parameters of the run is
/// refused, and nothing is changed.
#[rstest]
#[case::another_optimizer("adam", "constant", SHAPES.to_vec(), Kind::Float, "belongs to Adam, but this run uses AdamW")]
#[case::another_schedule("adamw", "step", SHAPES.to_vec(), Kind::Float, "belongs to StepLR, but this run uses CosineAnnealingLR")]
#[case::no_schedule("adamw", "constant", SHAPES.to_vec(), Kind::Float, "has no `scheduler/0/name`")]
#[case::a_parameter_less("adamw", "cosine", SHAPES[..2].to_vec(), Kind::Float, "has no `optimizer/exp_avg/layer.2`")]
#[case::another_dtype("adamw", "cosine", SHAPES.to_vec(), Kind::Double, "`optimizer/exp_avg/layer.0` is Double")]
#[case::another_shape("adamw", "cosine", vec![[5, 3].as_slice(), &[5], &[2, 2, 2]], Kind::Float, "is Float [5, 3], but Float [3, 5] is needed")]
#[case::a_parameter_more("adamw", "cosine", [&SHAPES[..], &[&[1]]].concat(), Kind::Float, "contains `optimizer/exp_avg/layer.3`, which this run does not have")]
fn another_state_is_refused_and_changes_nothing(
    #[case] kind: &str,
    #[case] rates: &str,
    #[case] shapes: Vec<&[i64]>,
    #[case] dtype: Kind,
    #[case] says: &str,
) -> Result<()> {
    let values: Vec<Tensor> =
        shapes.iter().map(|shape| Tensor::ones(*shape, (dtype, device()))).collect();
    let mut other = built(schedule(rates, optimizer(kind)), &values)?;
    train(&mut other, 0..3)?;
    let mut loading = built(schedule("cosine", optimizer("adamw")), &start(Kind::Float))?;
    train(&mut loading, 0..2)?;
    let before = through_a_file(&loading.state()?);
    let said = message(loading.load_state(&other.state()?));
    assert!(said.contains(says), "{said}");
    let after = loading.state()?;
    assert_eq!(before.values(), after.values());
    for (name, tensor) in before.tensors() {
        assert_eq!(bits(tensor), bits(after.tensor(name)?), "{name}");
    }
    Ok(())
}

/// A saved value is refused if its type is not the expected one, such as a text instead of a
/// learning rate.
#[test]
fn a_value_of_another_type_is_refused() -> Result<()> {
    let mut optimizer = AdamW::default().build(vec![parameter("p", &Tensor::from(1.0_f32))])?;
    let mut state = optimizer.state()?;
    state.put("param_groups/0/lr", &"fast")?;
    let said = message(optimizer.load_state(&state));
    assert!(
        said.contains(
            "`param_groups/0/lr` is \"fast\" in the file, but must have the same type as"
        ),
        "{said}"
    );
    Ok(())
}

/// State of a parameter that is frozen before its first step is dropped. State that a step has
/// updated is kept, because the parameter may be trained again.
#[rstest]
fn unused_state_is_dropped(
    #[values("adamw", "sgd", "sgd_damped", "rmsprop", "lion")] kind: &str,
) -> Result<()> {
    let mut scheduled = built(optimizer(kind), &start(Kind::Float))?;
    let last = scheduled.optimizer.parameters()[2].tensor.shallow_clone();
    let tensors = |scheduled: &Scheduled| -> Result<usize> {
        let state = scheduled.optimizer.state()?;
        Ok(state.tensors().filter(|(name, _)| name.ends_with("layer.2")).count())
    };
    let all = tensors(&scheduled)?;
    assert_eq!(all > 0, kind != "sgd", "plain SGD has no state");
    let _ = last.set_requires_grad(false);
    scheduled.optimizer.drop_unused_state();
    assert_eq!(tensors(&scheduled)?, 0);

    let _ = last.set_requires_grad(true);
    scheduled.optimizer.extend_state()?;
    assert_eq!(tensors(&scheduled)?, all);
    train(&mut scheduled, SAVED_AT..SAVED_AT + 1)?;
    let _ = last.set_requires_grad(false);
    scheduled.optimizer.drop_unused_state();
    assert_eq!(tensors(&scheduled)?, all);
    Ok(())
}
