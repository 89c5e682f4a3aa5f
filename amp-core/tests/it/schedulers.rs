//! Tests of learning-rate schedules: plateaus, parameter groups, limits and refusals.

use std::f64::consts::PI;

use amp_core::{
    Result,
    callback::Mode,
    log::Logged,
    optim::{
        AdamW, BuildScheduler, ChainedScheduler, ConstantLr, CosineAnnealing,
        CosineAnnealingWarmRestarts, ExponentialLr, Interval, LinearLr, MultiStepLr, OneCycle,
        OptimizerConfig, ParamGroups, PolynomialLr, Rates, ReduceLrOnPlateau, Scheduler,
        SequentialLr, StepLr, ThresholdMode, WarmupCosine, Wsd,
    },
    state::State,
    tch::Tensor,
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    message,
    oracle::{list, number, oracle, parsed, text},
    parameter,
};

/// Returns the learning rates of the first `count` steps.
pub(crate) fn rates(
    schedule: &dyn BuildScheduler,
    base: Rates,
    count: usize,
) -> Result<Vec<Rates>> {
    let mut scheduler = schedule.build(base)?;
    Ok((0..count)
        .map(|_| {
            let rates = scheduler.rates();
            scheduler.advance(None);
            rates
        })
        .collect())
}

pub(crate) const CYCLE: OneCycle = OneCycle {
    max_lr: 1e-3,
    total_steps: 100,
    pct_start: 0.3,
    div_factor: 25.0,
    final_div_factor: 1e4,
    base_momentum: 0.85,
    max_momentum: 0.95,
};

pub(crate) fn linear_then_cosine() -> SequentialLr {
    SequentialLr::new(LinearLr { start_factor: 0.01, end_factor: 1.0, total_iters: 10 })
        .then(10, CosineAnnealing { t_max: 90, eta_min: 1e-6 })
}

fn plateau(case: &Value) -> ReduceLrOnPlateau {
    let (given, default) = (&case["arguments"], ReduceLrOnPlateau::default());
    let number = |key: &str, default| given.get(key).map_or(default, parsed);
    let integer = |key: &str, default| given[key].as_i64().unwrap_or(default);
    ReduceLrOnPlateau {
        monitor: default.monitor,
        mode: if given["mode"] == "max" { Mode::Max } else { Mode::Min },
        factor: number("factor", default.factor),
        patience: integer("patience", default.patience),
        threshold: number("threshold", default.threshold),
        threshold_mode: match given["threshold_mode"] == "abs" {
            true => ThresholdMode::Abs,
            false => ThresholdMode::Rel,
        },
        cooldown: integer("cooldown", default.cooldown),
        min_lr: number("min_lr", default.min_lr),
        eps: default.eps,
    }
}

/// A plateau schedule gives the same learning rates as torch's `ReduceLROnPlateau`. The rates are
/// compared after each of 100 recorded values, some of which are NaN.
#[rstest]
fn a_plateau_equals_torchs(
    #[values("defaults", "min_rel", "max_abs_cooldown", "nan")] name: &str,
) -> Result<()> {
    let oracle = oracle!("schedulers.json");
    let case = list(&oracle, "plateau").iter().find(|case| text(case, "name") == name);
    let case = case.expect("recorded");
    let mut scheduler =
        plateau(case).build(Rates { lr: number(case, "lr"), momentum: Some(0.9) })?;
    for (at, (value, lr)) in list(case, "metrics").iter().zip(list(case, "lrs")).enumerate() {
        scheduler.advance(Some(parsed(value)));
        assert_eq!(scheduler.rates().lr, parsed(lr), "{name}: after value {at}");
        if at % 7 == 0 {
            // Saves the schedule and loads it into a new one. This must not change later rates.
            let state = scheduler.state()?;
            scheduler = plateau(case).build(Rates { lr: 1.0, momentum: Some(0.9) })?;
            scheduler.load_state(&state)?;
        }
    }
    Ok(())
}

/// The schedule changes the learning rate of each parameter group, starting from the initial rate
/// of this group, as in torch.
#[rstest]
fn groups_have_torchs_rates(
    #[values("cosine_eta_min", "step", "linear", "one_cycle_30", "plateau")] name: &str,
) -> Result<()> {
    let oracle = oracle!("schedulers.json");
    let find = |list: &'_ [Value], name: &str| {
        list.iter().find(|case| text(case, "name") == name).cloned().expect("recorded")
    };
    let case = find(list(&oracle, "groups"), name);
    let watched = find(list(&oracle, "plateau"), "min_rel");
    let options = |at: usize| AdamW { lr: parsed(&case["base"][at]), ..Default::default() };
    let groups = ParamGroups::new(options(0)).group(["second"], options(1));
    let config = OptimizerConfig::new(groups);
    let interval = Interval::Epoch;
    let config = match name {
        "cosine_eta_min" => {
            config.with_scheduler(CosineAnnealing { t_max: 50, eta_min: 1e-5 }, interval)
        }
        "step" => config.with_scheduler(StepLr { step_size: 30, gamma: 0.1 }, interval),
        "linear" => config.with_scheduler(
            LinearLr { start_factor: 0.1, end_factor: 1.0, total_iters: 40 },
            interval,
        ),
        "one_cycle_30" => config.with_scheduler(CYCLE, interval),
        _ => config.with_scheduler(plateau(&watched), interval),
    };
    let one = Tensor::from_slice(&[1.0_f32]);
    let mut scheduled = config.build(vec![parameter("first", &one), parameter("second", &one)])?;
    // The 101st recorded rate is not compared, because the rate of torch's OneCycleLR rises again
    // after its cycle.
    for step in 0..100 {
        for rates in scheduled.rates() {
            assert_eq!(rates.optimizer, "AdamW");
            let expected = parsed(&case["lrs"][rates.group][step]);
            assert_eq!(rates.rates.lr, expected, "group {} at {step}", rates.group);
        }
        let value = parsed(&watched["metrics"][step]);
        let logged = Logged { name: "val_loss".to_owned(), value, prog_bar: false };
        scheduled.advance(interval, &[logged])?;
    }
    Ok(())
}

/// A plateau schedule needs a value that the model logs. The value exists only after an epoch, so
/// the schedule cannot advance after each step.
#[test]
fn a_monitored_value_must_be_logged() -> Result<()> {
    let plateau = || ReduceLrOnPlateau { monitor: "val_acc".to_owned(), ..Default::default() };
    let build = |interval| {
        OptimizerConfig::new(AdamW::default())
            .with_scheduler(plateau(), interval)
            .build(vec![parameter("p", &Tensor::from_slice(&[1.0_f32]))])
    };
    let said = message(build(Interval::Step));
    assert!(said.contains("`val_acc` is known only at the end of an epoch"), "{said}");
    let logged = Logged { name: "val_loss".to_owned(), value: 1.0, prog_bar: false };
    let said = message(build(Interval::Epoch)?.advance(Interval::Epoch, &[logged]));
    assert!(
        said.contains(
            "cannot monitor `val_acc`, because the model does not log it at the end of an epoch; \
             at that time the model logs val_loss"
        ),
        "{said}"
    );
    Ok(())
}

/// After its last step, OneCycle keeps its last learning rate. The rate of torch's OneCycleLR rises
/// again, and then the schedule raises an error. One optimizer step or epoch too many therefore
/// ends a run in torch.
#[test]
fn one_cycle_holds_its_last_rate_where_torch_turns_back_up() -> Result<()> {
    let oracle = oracle!("schedulers.json");
    let case = list(&oracle, "cases").iter().find(|case| text(case, "name") == "one_cycle_30");
    let torchs = list(case.expect("recorded"), "lrs");
    assert!(parsed(&torchs[100]) > parsed(&torchs[99]));
    let ours = rates(&CYCLE, Rates { lr: 1e-3, momentum: Some(0.9) }, 200)?;
    assert!(ours[100..].iter().all(|rates| *rates == ours[99]));
    assert_eq!(ours[99].momentum, Some(0.95));
    Ok(())
}

/// OneCycle, which also schedules the momentum, sets none for an optimizer without momentum.
#[test]
fn one_cycle_leaves_an_optimizer_without_momentum() -> Result<()> {
    let rates = rates(&CYCLE, Rates { lr: 1e-3, momentum: None }, 100)?;
    assert!(rates.iter().all(|rates| rates.momentum.is_none()));
    Ok(())
}

/// `WarmupCosine` has the formula of transformers' `get_cosine_schedule_with_warmup`: in step t of
/// the warm-up, the learning rate is multiplied by t / warmup_steps, and then follows half a
/// cosine. The rates after the warm-up are also compared with those of a torch `LambdaLR`, whose
/// warm-up factor is (t + 1) / warmup_steps instead.
#[test]
fn warmup_cosine_follows_its_formula() -> Result<()> {
    let schedule = WarmupCosine { warmup_steps: 10, total_steps: 100 };
    let seen = rates(&schedule, Rates { lr: 1e-3, momentum: Some(0.9) }, 121)?;
    let oracle = oracle!("schedulers.json");
    let lambda =
        list(&oracle, "cases").iter().find(|case| text(case, "name") == "lambda_warmup_cosine");
    let lambda = list(lambda.expect("recorded"), "lrs");
    for (t, rates) in seen.iter().enumerate() {
        let expected = match t {
            0..10 => 1e-3 * t as f64 / 10.0,
            10..100 => 1e-3 * 0.5 * (1.0 + (PI * (t - 10) as f64 / 90.0).cos()),
            _ => 0.0,
        };
        assert!(
            (rates.lr - expected).abs() <= 1e-18,
            "step {t}: rate {}, expected {expected}",
            rates.lr
        );
        if (10..=100).contains(&t) {
            assert!((rates.lr - parsed(&lambda[t])).abs() <= 1e-18);
        }
        assert_eq!(rates.momentum, Some(0.9));
    }
    let none = WarmupCosine { warmup_steps: 0, total_steps: 4 };
    assert_eq!(none.build(Rates { lr: 1.0, momentum: None })?.rates().lr, 1.0);
    Ok(())
}

/// The optimizer starts with the first learning rate of its schedule. After that, the learning rate
/// changes only at the schedule's interval.
#[test]
fn an_optimizer_starts_at_its_schedules_first_rate() -> Result<()> {
    let schedule = LinearLr { start_factor: 0.5, end_factor: 1.0, total_iters: 2 };
    let mut scheduled = OptimizerConfig::new(AdamW { lr: 1.0, ..Default::default() })
        .with_scheduler(schedule, Interval::Epoch)
        .build(vec![parameter("p", &Tensor::from_slice(&[1.0_f32]))])?;
    let lr = |scheduled: &amp_core::optim::Scheduled| scheduled.optimizer.rates()[0].lr;
    assert_eq!(lr(&scheduled), 0.5);
    scheduled.advance(Interval::Step, &[])?;
    assert_eq!(lr(&scheduled), 0.5);
    scheduled.advance(Interval::Epoch, &[])?;
    assert_eq!(lr(&scheduled), 0.75);
    Ok(())
}

#[rstest]
#[case(&CosineAnnealing { t_max: 0, eta_min: 0.0 }, "t_max is 0, but must be positive")]
#[case(&OneCycle::default(), "total_steps is 0")]
#[case(&OneCycle { pct_start: 1.5, ..CYCLE }, "pct_start is 1.5, but must be in [0, 1]")]
#[case(&StepLr { step_size: 0, gamma: 0.1 }, "step_size is 0")]
#[case(&LinearLr { total_iters: -1, ..Default::default() }, "total_iters is -1")]
#[case(&WarmupCosine { warmup_steps: 0, total_steps: 0 }, "total_steps is 0")]
#[case(&ReduceLrOnPlateau { factor: 1.0, ..Default::default() }, "factor is 1, but must be in [0, 1)")]
#[case(&ReduceLrOnPlateau { patience: -1, ..Default::default() }, "patience is -1")]
#[case(&linear_then_cosine().then(5, StepLr::default()), "milestones are [10, 5], but must be positive numbers in ascending order")]
#[case(
    &linear_then_cosine().then(20, ReduceLrOnPlateau::default()),
    "a schedule that monitors `val_loss` cannot be part of a sequence"
)]
#[case(&CosineAnnealingWarmRestarts::default(), "t_0 is 0, but must be positive")]
#[case(&CosineAnnealingWarmRestarts { t_0: 1, t_mult: 0, eta_min: 0.0 }, "t_mult is 0")]
#[case(&MultiStepLr::default(), "milestones are [], but must be positive numbers in ascending order")]
#[case(&MultiStepLr { milestones: vec![5, 3], gamma: 0.1 }, "milestones are [5, 3]")]
#[case(&MultiStepLr { milestones: vec![0, 3], gamma: 0.1 }, "milestones are [0, 3]")]
#[case(&PolynomialLr { total_iters: 0, power: 1.0 }, "total_iters is 0")]
#[case(&ConstantLr { total_iters: 0, ..Default::default() }, "total_iters is 0")]
#[case(&Wsd { warmup_steps: -1, total_steps: 10, ..Default::default() }, "warmup_steps is -1")]
#[case(&Wsd { decay_steps: -1, total_steps: 10, ..Default::default() }, "decay_steps is -1")]
#[case(&Wsd::default(), "total_steps is 0")]
#[case(
    &ChainedScheduler::new(StepLr::default()).then(ExponentialLr { gamma: -1.0 }),
    "gamma is -1, but must be at least 0"
)]
fn options_out_of_range_are_refused(#[case] schedule: &dyn BuildScheduler, #[case] says: &str) {
    let said = message(schedule.build(Rates { lr: 1e-3, momentum: None }));
    assert!(said.contains(says), "{said}");
}

/// Options that give no valid learning rate are refused. Of torch's schedules, LinearLR also
/// refuses a start factor of 0, but most others accept such options and return NaN.
#[rstest]
#[case(&LinearLr { start_factor: 0.0, ..Default::default() }, "start_factor is 0, but must be in (0, 1]")]
#[case(&LinearLr { start_factor: f64::NAN, ..Default::default() }, "start_factor is NaN")]
#[case(&LinearLr { start_factor: 1.5, ..Default::default() }, "start_factor is 1.5")]
#[case(&LinearLr { end_factor: -0.1, ..Default::default() }, "end_factor is -0.1, but must be in [0, 1]")]
#[case(&CosineAnnealing { t_max: 5, eta_min: f64::INFINITY }, "eta_min is inf")]
#[case(&CosineAnnealing { t_max: 5, eta_min: -1.0 }, "eta_min is -1, but must be at least 0")]
#[case(&OneCycle { max_lr: f64::NAN, ..CYCLE }, "max_lr is NaN, but must be above 0")]
#[case(&OneCycle { div_factor: 0.0, ..CYCLE }, "div_factor is 0, but must be above 0")]
#[case(&OneCycle { final_div_factor: 0.0, ..CYCLE }, "final_div_factor is 0, but must be above 0")]
#[case(&OneCycle { max_momentum: 1.0, ..CYCLE }, "max_momentum is 1, but must be in [0, 1)")]
#[case(&StepLr { step_size: 1, gamma: f64::INFINITY }, "gamma is inf, but must be at least 0")]
#[case(&StepLr { step_size: 1, gamma: -0.5 }, "gamma is -0.5")]
#[case(&WarmupCosine { warmup_steps: -1, total_steps: 4 }, "warmup_steps is -1")]
#[case(&ExponentialLr { gamma: f64::NAN }, "gamma is NaN")]
#[case(&MultiStepLr { milestones: vec![1], gamma: f64::INFINITY }, "gamma is inf")]
#[case(&PolynomialLr { power: -0.5, ..Default::default() }, "power is -0.5, but must be at least 0")]
#[case(&ConstantLr { factor: 0.0, ..Default::default() }, "factor is 0, but must be in (0, 1]")]
#[case(&ConstantLr { factor: 1.5, ..Default::default() }, "factor is 1.5")]
#[case(&CosineAnnealingWarmRestarts { t_0: 5, t_mult: 1, eta_min: -1.0 }, "eta_min is -1")]
#[case(&Wsd { total_steps: 9, min_lr_ratio: 1.5, ..Default::default() }, "min_lr_ratio is 1.5")]
#[case(&ReduceLrOnPlateau { threshold: f64::NAN, ..Default::default() }, "threshold is NaN")]
#[case(&ReduceLrOnPlateau { min_lr: -1.0, ..Default::default() }, "min_lr is -1")]
#[case(&ReduceLrOnPlateau { eps: f64::INFINITY, ..Default::default() }, "eps is inf")]
fn options_without_a_valid_rate_are_refused(
    #[case] schedule: &dyn BuildScheduler,
    #[case] says: &str,
) {
    let said = message(schedule.build(Rates { lr: 1e-3, momentum: None }));
    assert!(said.contains(says), "{said}");
}

/// A user-defined schedule that returns an invalid learning rate.
struct Own(f64);

impl BuildScheduler for Own {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(OwnRunning { rates: base, factor: self.0 }))
    }
}

struct OwnRunning {
    rates: Rates,
    factor: f64,
}

impl Scheduler for OwnRunning {
    fn rates(&self) -> Rates {
        self.rates
    }

    fn advance(&mut self, _: Option<f64>) {
        self.rates.lr *= self.factor;
    }

    fn state(&self) -> Result<State> {
        Ok(State::default())
    }

    fn load_state(&mut self, _: &State) -> Result<()> {
        Ok(())
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(Self { ..*self })
    }
}

#[rstest]
#[case(f64::NAN, "became NaN")]
#[case(f64::INFINITY, "became inf")]
#[case(-1.0, "became -1")]
fn a_schedule_with_an_invalid_rate_ends_the_run(
    #[case] factor: f64,
    #[case] says: &str,
) -> Result<()> {
    let mut scheduled = OptimizerConfig::new(AdamW { lr: 1.0, ..Default::default() })
        .with_scheduler(Own(factor), Interval::Epoch)
        .build(vec![parameter("p", &Tensor::from_slice(&[1.0_f32]))])?;
    let said = message(scheduled.advance(Interval::Epoch, &[]));
    assert!(said.contains("the rate of AdamW") && said.contains(says), "{said}");
    Ok(())
}

/// pytorch#47513: if the best value is negative, the threshold is relative to the absolute value of
/// the best value. In the mode `min`, torch instead compares with best · (1 − threshold) = −0.95,
/// so −0.96 counts as better than −1.0.
#[rstest]
#[case(Mode::Min, -1.0, [-0.96, -1.04, -1.06], [false, false, true])]
#[case(Mode::Max, -1.0, [-1.04, -0.96, -0.94], [false, false, true])]
#[case(Mode::Min, 1.0, [0.96, 0.94, 1.06], [false, true, false])]
#[case(Mode::Max, 1.0, [1.04, 1.06, 0.94], [false, true, false])]
fn the_threshold_of_a_negative_value_is_relative_to_its_size(
    #[case] mode: Mode,
    #[case] best: f64,
    #[case] values: [f64; 3],
    #[case] better: [bool; 3],
) -> Result<()> {
    for (value, better) in values.into_iter().zip(better) {
        let plateau = ReduceLrOnPlateau {
            mode,
            threshold: 0.05,
            patience: 0,
            factor: 0.5,
            ..Default::default()
        };
        let mut running = plateau.build(Rates { lr: 1.0, momentum: None })?;
        running.advance(Some(best));
        running.advance(Some(value));
        assert_eq!(
            running.rates().lr,
            if better { 1.0 } else { 0.5 },
            "value {value}, best value {best}"
        );
    }
    Ok(())
}
