//! Tests of optimizer steps: accumulation, skipped steps, the schedule, and a loss scale that keeps
//! falling.

use amp_core::{
    Error, Hook, Result, Trainer, TrainerConfig,
    callback::{Action, Callback},
    data::Batch,
    nn::{self, Linear},
    optim::{AdamW, CosineAnnealing, Interval, OptimizerConfig, Sgd, StepLr},
    precision::{Clip, GradScalerConfig, Precision, StepOutcome},
    record::RunRecord,
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::values,
    message,
    model::{Model, constant, digits, fit, in_order, linear},
    seeded,
};

fn config(precision: Precision) -> TrainerConfig {
    let mut config = TrainerConfig::new(precision, Device::Cpu);
    (config.max_epochs, config.logging.log_every_n_steps) = (1, 1);
    config
}

fn weights(model: &Model) -> Vec<f64> {
    nn::parameters(model).iter().flat_map(|parameter| values(&parameter.tensor)).collect()
}

/// Trains a linear regression on the given range of examples and returns the model. If the model
/// `from` is given, training starts from its weights.
fn trained_on(
    examples: std::ops::Range<i64>,
    batch: i64,
    window: i64,
    from: Option<&Model>,
) -> Result<Model> {
    let _generator = seeded(4);
    let all = digits(10)?;
    let cut = |tensor: &Tensor| tensor.narrow(0, examples.start, examples.end - examples.start);
    let inputs = cut(&all.input);
    let targets = inputs.narrow(1, 20, 3).copy() - 0.5;
    let mut model = Model::regression(linear(64, 3)?, |_| {
        OptimizerConfig::new(Sgd { lr: 0.5, ..Default::default() })
    });
    if let Some(from) = from {
        nn::place(&model, config(Precision::F64True).policy(), &Default::default())?;
        for (to, from) in nn::parameters(&model).iter().zip(nn::parameters(from)) {
            amp_core::tch::no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
        }
    }
    let mut config = config(Precision::F64True);
    config.optimization.accumulate_grad_batches = window;
    fit(&config, &mut model, &in_order(Batch::new(inputs, targets)?, batch)?).1?;
    Ok(model)
}

#[track_caller]
fn assert_close(seen: &[f64], expected: &[f64]) {
    for (seen, expected) in seen.iter().zip(expected) {
        assert!((seen - expected).abs() < 1e-14, "found {seen}, expected {expected}");
    }
}

/// Rule 17 of docs/SEMANTICS.md: accumulated gradients equal the gradients of one large batch, up
/// to f64's rounding. Batches are weighted by their numbers of examples, so this also holds if the
/// last batch is smaller.
#[rstest]
#[case(5, 2)]
#[case(3, 4)]
#[case(2, 5)]
#[case(2, 100)]
fn a_window_equals_one_large_batch(#[case] batch: i64, #[case] window: i64) -> Result<()> {
    let accumulated = weights(&trained_on(0..10, batch, window, None)?);
    assert_close(&accumulated, &weights(&trained_on(0..10, 10, 1, None)?));
    Ok(())
}

/// Rule 17 of docs/SEMANTICS.md, Lightning #19987: the last accumulated step of an epoch may have
/// fewer batches than the other steps. Its gradients are divided by the number of its own batches.
/// The test accumulates three batches of two examples, and then the remaining two batches. The
/// weights equal those after one step on six examples and one step on four.
#[test]
fn a_partial_last_window_is_divided_by_its_own_length() -> Result<()> {
    let accumulated = weights(&trained_on(0..10, 2, 3, None)?);
    let first = trained_on(0..6, 6, 1, None)?;
    let expected = weights(&trained_on(6..10, 4, 1, Some(&first))?);
    assert_close(&accumulated, &expected);
    Ok(())
}

/// Trains a model that has a schedule. The first steps overflow, because f16 gradients are scaled
/// by 2^24.
fn overflowing(advances: bool) -> Result<(RunRecord, f64)> {
    let _generator = seeded(0);
    let mut config = config(Precision::F16Mixed);
    config.recovery.skipped_step_advances = advances;
    config.numerics.scaler =
        GradScalerConfig { init_scale: 2.0_f64.powi(24), ..Default::default() };
    let mut model = Model::regression(linear(8, 8)?, |plan| {
        assert_eq!(plan.estimated_stepping_batches, 12);
        OptimizerConfig::new(Sgd { lr: 1e-3, ..Default::default() })
            .with_scheduler(StepLr { step_size: 1, gamma: 0.5 }, Interval::Step)
    });
    let record = fit(&config, &mut model, &in_order(constant(24, 8, 1.0)?, 2)?).1?;
    let lr = record.epochs[0].lr;
    Ok((record, lr))
}

/// Rule 16 of docs/SEMANTICS.md: a skipped step advances neither the count of steps nor the
/// schedule, as in accelerate. With `skipped_step_advances`, a skipped step advances both, as in
/// Lightning.
#[rstest]
#[case(false)]
#[case(true)]
fn a_skipped_step_advances_no_count_by_default(#[case] advances: bool) -> Result<()> {
    let (record, lr) = overflowing(advances)?;
    let skipped = record.end.skipped;
    assert!((1..11).contains(&skipped), "{skipped} of 12 steps overflow");
    let counted = if advances { 12 } else { 12 - skipped };
    assert_eq!(record.end.global_step, counted);
    // The epoch reports the learning rate of the last step that was counted.
    assert_eq!(lr, 1e-3 * 0.5_f64.powi(counted as i32 - 1));
    let halved = 2.0_f64.powi(24 - skipped as i32);
    assert_eq!(record.end.scale, Some(halved));
    let attempts: Vec<u64> = record.skips.iter().map(|skip| skip.attempt).collect();
    assert!(attempts.iter().copied().eq(0..skipped), "the first steps overflow");
    assert_eq!(record.skips[0].culprit.as_deref(), Some("model.weight"));
    assert_eq!(record.scales[0], (1, 2.0_f64.powi(23)));
    Ok(())
}

/// A skipped step does not change any weight.
#[test]
fn a_skipped_step_changes_no_weight() -> Result<()> {
    let _generator = seeded(0);
    let mut model = Model::regression(linear(8, 8)?, |_| OptimizerConfig::new(AdamW::default()));
    let before = weights(&model);
    let mut config = config(Precision::F16Mixed);
    config.numerics.scaler.init_scale = 2.0_f64.powi(40);
    let record = fit(&config, &mut model, &in_order(constant(4, 8, 100.0)?, 2)?).1?;
    assert_eq!((record.end.global_step, record.end.skipped), (0, 2));
    assert_eq!(weights(&model), before);
    Ok(())
}

/// The event at the end of an epoch reports the learning rate of the last step, not of the next
/// step.
#[rstest]
#[case(Interval::Step, 1e-3 * (1.0 + (std::f64::consts::PI * 3.0 / 4.0).cos()) / 2.0)]
#[case(Interval::Epoch, 1e-3)]
fn an_epoch_reports_its_last_steps_rate(#[case] interval: Interval, #[case] lr: f64) -> Result<()> {
    let _generator = seeded(0);
    let mut model = Model::regression(linear(8, 8)?, move |_| {
        OptimizerConfig::new(AdamW::default())
            .with_scheduler(CosineAnnealing { t_max: 4, eta_min: 0.0 }, interval)
    });
    let record =
        fit(&config(Precision::F32True), &mut model, &in_order(constant(8, 8, 1.0)?, 2)?).1?;
    assert!((record.epochs[0].lr / lr - 1.0).abs() < 1e-12, "{}", record.epochs[0].lr);
    Ok(())
}

/// Rule 5 of docs/SEMANTICS.md, pytorch#99640: if the gradients overflow at every loss scale, the
/// run ends with an error that says so. It ends before the scale becomes so low that unscaling
/// would make the weights infinite or NaN.
#[test]
fn a_collapsing_scale_ends_the_run() -> Result<()> {
    let _generator = seeded(0);
    let mut config = config(Precision::F16Mixed);
    config.max_epochs = 100;
    let mut model = Model::regression(linear(8, 8)?, |_| OptimizerConfig::new(Sgd::default()));
    let before = weights(&model);
    let record = fit(&config, &mut model, &in_order(constant(4, 8, f64::INFINITY)?, 2)?).1;
    assert!(matches!(record, Err(Error::Scaler(_))));
    let said = message(record);
    assert!(
        said.contains("the loss scale fell to 6.1035") && said.contains("30 of 30 steps"),
        "{said}"
    );
    assert_eq!(weights(&model), before);
    Ok(())
}

/// Rules 15 and 19 of docs/SEMANTICS.md: clipping gets gradients that were already divided by the
/// loss scale. The loss scale therefore does not change the step.
#[rstest]
#[case(Clip::Norm(0.01), 0.01)]
#[case(Clip::Value(0.001), 0.001)]
fn clipping_sees_unscaled_gradients(#[case] clip: Clip, #[case] limit: f64) -> Result<()> {
    let _generator = seeded(0);
    let mut config = config(Precision::F16Mixed);
    config.optimization.gradient_clip = Some(clip);
    let mut model = Model::regression(linear(8, 8)?, |_| {
        OptimizerConfig::new(Sgd { lr: 1.0, ..Default::default() })
    });
    let before = weights(&model);
    fit(&config, &mut model, &in_order(constant(4, 8, 3.0)?, 4)?).1?;
    let moved: Vec<f64> = weights(&model).iter().zip(before).map(|(a, b)| a - b).collect();
    let norm = moved.iter().map(|x| x * x).sum::<f64>().sqrt();
    let largest = moved.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let seen = if matches!(clip, Clip::Norm(_)) { norm } else { largest };
    assert!((seen / limit - 1.0).abs() < 1e-3, "found {seen}, expected {limit}");
    Ok(())
}

/// If a logged loss is not a scalar, it is refused, and the error contains its name.
#[test]
fn a_loss_that_is_not_a_scalar_is_an_error() -> Result<()> {
    let _generator = seeded(0);
    let mut model = Model::regression(linear(3, 3)?, |_| OptimizerConfig::new(Sgd::default()));
    model.loss = |output, _| Ok(output.shallow_clone());
    let record =
        fit(&config(Precision::F32True), &mut model, &in_order(constant(4, 3, 1.0)?, 2)?).1;
    assert_eq!(
        message(record),
        "log `train_loss`: a logged value must be a scalar, but has shape [2, 3]: take the mean, as \
         with `value.f_mean(Kind::Float)?`"
    );
    Ok(())
}

/// A weight that two modules share is trained as one parameter, under the name of its first use.
#[test]
fn a_tied_weight_is_one_parameter() -> Result<()> {
    struct Tied(Linear);
    impl nn::Module for Tied {
        fn forward(&self, input: &Tensor, cx: &nn::Context) -> Result<Tensor> {
            let once = cx.call("first", None, &self.0, input)?;
            cx.call("second", None, &self.0, &once)
        }
    }
    impl nn::Visit for Tied {
        fn visit(&self, visitor: &mut dyn nn::Visitor) {
            nn::visit_child(visitor, "first", None, &self.0);
            nn::visit_child(visitor, "second", None, &self.0);
        }
    }
    let _generator = seeded(0);
    let tied = Tied(linear(3, 3)?);
    let names: Vec<String> =
        nn::parameters(&tied).into_iter().map(|p| p.name.to_string()).collect();
    assert_eq!(names, ["first.weight", "first.bias"]);
    assert_eq!(nn::named_tensors(&tied).len(), 4);
    // The loss is the mean of (W(Wx + b) + b − y)². The gradient of W is the sum of the gradients
    // of its two uses, and one step applies this sum once.
    let batch = constant(2, 3, 1.0)?;
    let own: Vec<Tensor> = nn::parameters(&tied)
        .iter()
        .map(|p| p.tensor.detach().copy().set_requires_grad(true))
        .collect();
    let (weight, bias) = (&own[0], &own[1]);
    let once = batch.input.matmul(&weight.tr()) + bias;
    let loss = (once.matmul(&weight.tr()) + bias - &batch.target).square().mean(Kind::Float);
    loss.backward();
    let expected = weight.detach() - weight.grad() * 0.1;
    let mut model =
        Model::regression(tied, |_| OptimizerConfig::new(Sgd { lr: 0.1, ..Sgd::default() }));
    let config = TrainerConfig { max_epochs: 1, ..config(Precision::F32True) };
    fit(&config, &mut model, &in_order(constant(2, 3, 1.0)?, 2)?).1?;
    let moved = &nn::parameters(&model)[0].tensor;
    let off = (moved.detach() - expected).abs().max().double_value(&[]);
    assert!(off < 1e-6, "{off}");
    Ok(())
}

/// A callback that sets the weights to zero between the batches of a step.
struct Wipe;

impl Callback for Wipe {
    fn name(&self) -> String {
        "Wipe".to_owned()
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        if outcome.is_none() {
            for parameter in hook.optimizers()[0].optimizer.parameters().iter() {
                let _ = amp_core::tch::no_grad(|| parameter.tensor.shallow_clone().zero_());
            }
        }
        Ok(Vec::new())
    }
}

/// Autocast casts weights once for all batches of a step, so a change between batches is not used
/// until the next step.
#[rstest]
#[case(Precision::Bf16Mixed, true)]
#[case(Precision::F16Mixed, true)]
#[case(Precision::F32True, false)]
fn weights_are_cast_once_per_step(#[case] precision: Precision, #[case] casts: bool) -> Result<()> {
    let run = |wipe: bool, epochs| -> Result<Vec<f64>> {
        let _generator = seeded(4);
        let mut config = config(precision);
        (config.optimization.accumulate_grad_batches, config.max_epochs) = (2, epochs);
        let sgd = Sgd { lr: 0.125, ..Default::default() };
        let mut model = Model::regression(linear(3, 3)?, move |_| OptimizerConfig::new(sgd));
        let mut trainer = Trainer::new(config);
        if wipe {
            trainer = trainer.callback(Wipe);
        }
        let record = trainer.fit(&mut model, &in_order(constant(4, 3, 1.0)?, 2)?)?;
        let losses = record.epochs.iter().map(|epoch| epoch.value("train_loss"));
        Ok(losses.map(|loss| loss.expect("it is logged")).collect())
    };
    let (plain, wiped) = (run(false, 2)?, run(true, 2)?);
    assert_eq!(plain[0] == wiped[0], casts, "{plain:?} {wiped:?}");
    assert_ne!(plain[1], wiped[1]);
    Ok(())
}
