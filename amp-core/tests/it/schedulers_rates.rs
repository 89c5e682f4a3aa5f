//! Tests the learning rates of schedules against torch.optim.lr_scheduler and transformers, to the
//! last bit.

use amp_core::{
    log::Logged,
    nn::parameters,
    optim::{
        AdamW, BuildScheduler, ChainedScheduler, ConstantLr, CosineAnnealing,
        CosineAnnealingWarmRestarts, Decay, ExponentialLr, Interval, LambdaLr, LinearLr,
        MultiStepLr, OneCycle, OptimizerConfig, ParamGroups, PolynomialLr, Rates, Schedule,
        Scheduled, Scheduler, SequentialLr, StepLr, Storage, Wsd,
    },
    prelude::*,
    state::State,
};
use rstest::rstest;
use serde_json::Value;

use crate::{
    schedulers::{CYCLE, linear_then_cosine, rates},
    support::{
        message,
        oracle::{list, number, oracle, parsed, text},
        parameter,
    },
};

/// Returns the factor of the learning rate that torch's `LambdaLR` was recorded with: (t + 1) / 10
/// during the warm-up, then half a cosine.
fn lambda_warmup_cosine(t: i64) -> f64 {
    match t < 10 {
        true => (t + 1) as f64 / 10.0,
        false => 0.5 * (1.0 + (std::f64::consts::PI * (t - 10) as f64 / 90.0).cos()),
    }
}

/// All 101 learning rates equal the recorded ones. If the schedule changes the momentum (Adam's
/// first beta), the momenta are equal too. For OneCycle, only the 100 rates of its cycle are
/// compared. After every seventh step, the state is saved and loaded into a new schedule. (The
/// recording script checked that torch continues with the same rates from its state_dict.)
#[rstest]
#[case("cosine", &CosineAnnealing { t_max: 50, eta_min: 0.0 }, 101)]
#[case("cosine_eta_min", &CosineAnnealing { t_max: 50, eta_min: 1e-5 }, 101)]
#[case("cosine_once", &CosineAnnealing { t_max: 100, eta_min: 0.0 }, 101)]
#[case("one_cycle_30", &CYCLE, 100)]
#[case("one_cycle_10", &OneCycle { pct_start: 0.1, ..CYCLE }, 100)]
#[case("one_cycle_sgd", &OneCycle { max_lr: 0.1, ..CYCLE }, 100)]
#[case("step", &StepLr { step_size: 30, gamma: 0.1 }, 101)]
#[case("multi_step", &MultiStepLr { milestones: vec![20, 50, 80], gamma: 0.3 }, 101)]
#[case("multi_step_twice", &MultiStepLr { milestones: vec![20, 50, 50], gamma: 0.3 }, 101)]
#[case("exponential", &ExponentialLr { gamma: 0.97 }, 101)]
#[case("linear", &LinearLr { start_factor: 0.1, end_factor: 1.0, total_iters: 40 }, 101)]
#[case("linear_down", &LinearLr { start_factor: 1.0, end_factor: 0.01, total_iters: 100 }, 101)]
#[case("constant", &ConstantLr { factor: 0.3, total_iters: 40 }, 101)]
#[case("polynomial", &PolynomialLr { total_iters: 60, power: 0.9 }, 101)]
#[case("polynomial_defaults", &PolynomialLr::default(), 101)]
#[case("warm_restarts", &CosineAnnealingWarmRestarts { t_0: 15, ..Default::default() }, 101)]
#[case("warm_restarts_longer", &CosineAnnealingWarmRestarts { t_0: 10, t_mult: 2, eta_min: 1e-5 }, 101)]
#[case("lambda_warmup_cosine", &LambdaLr { lr_lambda: lambda_warmup_cosine }, 101)]
#[case(
    "chained_constant_exponential",
    &ChainedScheduler::new(ConstantLr { factor: 0.1, total_iters: 20 }).then(ExponentialLr { gamma: 0.9 }),
    101
)]
#[case(
    "chained_linear_cosine_step",
    &ChainedScheduler::new(LinearLr { start_factor: 0.1, end_factor: 1.0, total_iters: 10 })
        .then(CosineAnnealing { t_max: 150, eta_min: 1e-5 })
        .then(MultiStepLr { milestones: vec![30, 60], gamma: 0.5 }),
    101
)]
#[case("sequential_linear_cosine", &linear_then_cosine(), 101)]
#[case(
    "sequential_lambda_cosine",
    &SequentialLr::new(LambdaLr { lr_lambda: |t| (t + 1) as f64 / 10.0 })
        .then(10, CosineAnnealing { t_max: 90, eta_min: 0.0 }),
    101
)]
#[case(
    "sequential_constant_polynomial_exponential",
    &SequentialLr::new(ConstantLr { factor: 0.5, total_iters: 5 })
        .then(10, PolynomialLr { total_iters: 40, power: 2.0 })
        .then(40, ExponentialLr { gamma: 0.95 }),
    101
)]
fn rates_have_torchs_bits(
    #[case] name: &str,
    #[case] schedule: &dyn BuildScheduler,
    #[case] count: usize,
) -> Result<()> {
    let oracle = oracle!("schedulers.json");
    let case = list(&oracle, "cases").iter().find(|case| text(case, "name") == name);
    let case = case.expect("recorded");
    let base = Rates { lr: number(case, "lr"), momentum: Some(0.9) };
    let mut running = schedule.build(base)?;
    for (at, lr) in list(case, "lrs").iter().take(count).enumerate() {
        let seen = running.rates();
        assert_eq!(seen.lr, parsed(lr), "{name}: the rate at {at}");
        let momentum = case.get("momenta").map_or(0.9, |momenta| parsed(&momenta[at]));
        assert_eq!(seen.momentum, Some(momentum), "{name}: the momentum at {at}");
        running.advance(None);
        if at % 7 == 0 {
            let state = running.state()?;
            running = schedule.build(base)?;
            running.load_state(&state)?;
        }
    }
    Ok(())
}

fn wsd(case: &Value) -> Wsd {
    let options = &case["options"];
    let steps = |key: &str| options[key].as_i64().expect("steps");
    Wsd {
        warmup_steps: steps("num_warmup_steps"),
        decay_steps: steps("num_decay_steps"),
        total_steps: steps("num_training_steps"),
        decay_type: match options["decay_type"].as_str() {
            Some("linear") => Decay::Linear,
            Some("1-sqrt") => Decay::OneMinusSqrt,
            _ => Wsd::default().decay_type,
        },
        min_lr_ratio: options.get("min_lr_ratio").map_or(0.0, parsed),
    }
}

/// The learning rates of `wsd` (warm-up, stable, decay) equal those of transformers, including ten
/// steps after the end.
#[rstest]
fn wsd_equals_transformers(
    #[values("defaults", "linear", "cosine", "one_minus_sqrt", "no_warmup", "no_stable")]
    name: &str,
) -> Result<()> {
    let oracle = oracle!("wsd.json");
    let case = list(&oracle, "cases").iter().find(|case| text(case, "name") == name);
    let case = case.expect("recorded");
    let seen = rates(&wsd(case), Rates { lr: number(case, "lr"), momentum: Some(0.9) }, 101)?;
    assert_eq!(list(case, "lrs").len(), seen.len());
    for (at, (seen, lr)) in seen.iter().zip(list(case, "lrs")).enumerate() {
        let near = (seen.lr - parsed(lr)).abs() <= 1e-3 * f64::EPSILON;
        assert!(near, "{name}: step {at} has the rate {}, expected {}", seen.lr, parsed(lr));
    }
    Ok(())
}

/// A user-defined schedule that consists of a formula.
#[derive(Clone, Default)]
pub(crate) struct InverseRoot {
    warmup_steps: i64,
}

impl Schedule for InverseRoot {
    const NAME: &'static str = "InverseRoot";

    fn check(&self) -> Result<()> {
        match self.warmup_steps {
            1.. => Ok(()),
            other => Err(amp_core::Error::config(format!("{other} steps are no warm-up"))),
        }
    }

    fn rates(&self, passed: i64, base: Rates, _: Rates) -> Rates {
        let (t, warmup) = ((passed + 1) as f64, self.warmup_steps as f64);
        Rates { lr: base.lr * (t / warmup).min((warmup / t).sqrt()), ..base }
    }
}

/// A user-defined schedule that has state. It halves the learning rate after each interval in which
/// the loss was above 1.
struct Halving;

struct HalvingRunning {
    rates: Rates,
    halved: u32,
}

impl BuildScheduler for Halving {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(HalvingRunning { rates: base, halved: 0 }))
    }

    fn monitor(&self) -> Option<&str> {
        Some("val_loss")
    }
}

impl Scheduler for HalvingRunning {
    fn rates(&self) -> Rates {
        Rates { lr: self.rates.lr * 0.5_f64.powi(self.halved as i32), ..self.rates }
    }

    fn advance(&mut self, monitored: Option<f64>) {
        self.halved += u32::from(monitored.is_some_and(|loss| loss > 1.0));
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put("halved", &self.halved)?;
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        self.halved = state.get("halved")?;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(Self { ..*self })
    }
}

fn scheduled(schedule: impl BuildScheduler + 'static) -> Result<Scheduled> {
    let options = |lr| AdamW { lr, ..Default::default() };
    let groups = ParamGroups::new(options(1.0)).group(["second"], options(0.5));
    let one = Tensor::from_slice(&[1.0_f32]);
    OptimizerConfig::new(groups)
        .with_scheduler(schedule, Interval::Epoch)
        .build(vec![parameter("first", &one), parameter("second", &one)])
}

fn advance(scheduled: &mut Scheduled, loss: f64) -> Result<[f64; 2]> {
    let logged = Logged { name: "val_loss".to_owned(), value: loss, prog_bar: false };
    scheduled.advance(Interval::Epoch, &[logged])?;
    Ok([0, 1].map(|group| scheduled.rates()[group].rates.lr))
}

/// A user-defined formula changes the learning rate of every parameter group, starting from the
/// rate of this group. The schedule also resumes from its saved state.
#[test]
fn a_formula_is_enough_for_a_schedule() -> Result<()> {
    let mut straight = scheduled(InverseRoot { warmup_steps: 4 })?;
    let mut seen = Vec::new();
    for t in 1..10 {
        seen.push(advance(&mut straight, 0.0)?);
        let factor = (f64::from(t + 1) / 4.0).min((4.0 / f64::from(t + 1)).sqrt());
        assert_eq!(seen.last(), Some(&[factor, 0.5 * factor]), "at {t}");
        let mut resumed = scheduled(InverseRoot { warmup_steps: 4 })?;
        resumed.load_state(&straight.state()?)?;
        assert_eq!(resumed.rates(), straight.rates());
        assert_eq!(advance(&mut resumed, 0.0)?, {
            let next = (f64::from(t + 2) / 4.0).min((4.0 / f64::from(t + 2)).sqrt());
            [next, 0.5 * next]
        });
    }
    let said = message(scheduled(InverseRoot { warmup_steps: 0 }));
    assert!(said.contains("0 steps are no warm-up"), "{said}");
    let said = message(scheduled(StepLr::default())?.load_state(&straight.state()?));
    assert!(
        said.contains("the saved state belongs to InverseRoot, but this run uses StepLR"),
        "{said}"
    );
    Ok(())
}

mod own {
    /// Attributes refer to this user-defined struct by its path.
    pub(super) use super::InverseRoot;
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 1.0)]
#[scheduler(lambda_lr, lr_lambda = |epoch| 0.5_f64.powf(epoch as f64))]
#[optimizer(sgd, lr = 1.0, params = ["own.*"])]
#[scheduler(own::InverseRoot, warmup_steps = plan.max_epochs, interval = epoch)]
#[optimizer(sgd, lr = 1.0, params = ["value.*"])]
#[scheduler(value = SequentialLr::new(ConstantLr::default()).then(2, StepLr::default()), interval = epoch)]
#[optimizer(sgd, lr = 1.0, params = ["listed.*"])]
#[scheduler(multi_step_lr, milestones = [1, 2], gamma = 0.25)]
#[optimizer(sgd, lr = 1.0, params = ["wsd.*"])]
#[scheduler(wsd, warmup_steps = 0, decay_steps = 4, total_steps = 4, decay_type = linear, interval = epoch)]
struct Net {
    #[layer(linear(2, 2))]
    other: Linear,
    #[layer(linear(2, 2))]
    own: Linear,
    #[layer(linear(2, 2))]
    value: Linear,
    #[layer(linear(2, 2))]
    listed: Linear,
    #[layer(linear(2, 2))]
    wsd: Linear,
}

/// Each optimizer of a model gets the schedule that the model's `#[scheduler(…)]` attribute names.
#[test]
fn the_schedule_named_by_an_attribute_runs() -> Result<()> {
    let net = Net::builder().build()?;
    let plan = TrainingPlan { max_epochs: 4, estimated_stepping_batches: 8 };
    let mut built = LightningModule::configure_optimizers(&net, &plan)?
        .build(parameters(&net), Storage::default())?;
    let third = 1.0 / 3.0;
    for expected in [
        [1.0, 0.25, third, 1.0, 1.0],
        [0.5, 0.5, third, 0.25, 0.75],
        [0.25, 0.75, 1.0, 0.0625, 0.5],
        [0.125, 1.0, 0.1, 0.0625, 0.25],
    ] {
        let seen: Vec<f64> = built.iter().map(|one| one.rates()[0].rates.lr).collect();
        assert_eq!(seen, expected);
        built.iter_mut().try_for_each(|one| one.advance(Interval::Epoch, &[]))?;
    }
    Ok(())
}

/// The state of a user-defined schedule is saved in the checkpoint.
#[test]
fn a_schedules_own_state_is_saved() -> Result<()> {
    let mut straight = scheduled(Halving)?;
    for loss in [2.0, 0.5, 3.0] {
        advance(&mut straight, loss)?;
    }
    let mut resumed = scheduled(Halving)?;
    resumed.load_state(&straight.state()?)?;
    assert_eq!(advance(&mut resumed, 0.0)?, [0.25, 0.125]);
    assert_eq!(advance(&mut resumed, 1.5)?, [0.125, 0.0625]);
    Ok(())
}
