//! Tests of the values that are logged for an epoch and for a step if steps are skipped or
//! repeated.

use amp_core::{
    Trainer, TrainerConfig,
    callback::{Action, Callback},
    event::Event,
    nn,
    prelude::*,
    record::RunRecord,
    trainer::NonFinite,
};
use rstest::rstest;

use crate::support::{message, seeded};

fn config() -> TrainerConfig {
    TrainerConfig::new(Precision::F16Mixed, Device::Cpu).with(|config| {
        config.max_epochs = 1;
        config.logging.log_every_n_steps = 1;
    })
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[log(train_loss, on_step, on_epoch)]
#[optimizer(sgd, lr = 1e-4)]
struct Regression {
    #[layer(linear(4, 2))]
    head: Linear,
}

/// Returns four batches of eight examples. All targets of the second batch have the value `size`.
fn with_outliers(size: f64) -> Result<DataModule> {
    let _section = seeded(7);
    let options = (Kind::Float, Device::Cpu);
    let (input, target) = (Tensor::f_randn([32, 4], options)?, Tensor::f_randn([32, 2], options)?);
    let _ = target.narrow(0, 8, 8).fill_(size);
    let val = Batch::new(input.copy(), target.copy())?;
    Ok(DataModule::new("rows", Batch::new(input, target)?, val, 8).in_order())
}

/// Trains for one epoch on the batches of `with_outliers(size)`. Returns the run record and the
/// loss that each step logged.
fn regress(config: TrainerConfig, size: f64) -> Result<(RunRecord, Vec<f64>)> {
    let _section = seeded(0);
    let mut model = Regression::builder().build()?;
    let mut logged = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::Logged { values, .. } = event {
            logged.push(values[0].value);
        }
        Ok(())
    };
    let data = with_outliers(size)?;
    let record = Trainer::new(config).subscribe(&mut listen).fit(&mut model, &data)?;
    Ok((record, logged))
}

fn mixed(on_non_finite: NonFinite) -> TrainerConfig {
    config().with(|config| {
        config.recovery.on_non_finite = on_non_finite;
        config.numerics.scaler.init_scale = 8192.0;
    })
}

/// transformers PR#13619: a skipped step is not included in the mean of the epoch, whatever its
/// loss is. The loss of the step itself is reported.
#[rstest]
#[case::a_gradient_overflows(600.0)]
#[case::the_loss_is_infinite(1e38)]
fn a_skipped_step_does_not_count_in_the_epochs_mean(#[case] size: f64) -> Result<()> {
    let (record, logged) = regress(mixed(NonFinite::Skip), size)?;
    assert_eq!((record.end.global_step, record.end.skipped), (3, 1));
    assert_eq!(record.skips[0].attempt, 1);
    assert_eq!(logged.len(), 4);
    assert_eq!(logged[1].is_finite(), size < 1e38);
    let expected = (logged[0] + logged[2] + logged[3]) / 3.0;
    let seen = record.epochs[0].value("train_loss").expect("it is logged");
    assert!((seen - expected).abs() < 1e-12 * expected, "found {seen}, expected {expected}");
    Ok(())
}

/// If every step of an epoch is skipped, the epoch's value is the mean over the skipped steps.
#[test]
fn an_epoch_of_skipped_steps_has_their_mean() -> Result<()> {
    let config = mixed(NonFinite::Skip).with(|config| {
        config.numerics.scaler.init_scale = 2f64.powi(60);
        config.numerics.scaler.backoff_factor = 0.9;
    });
    let (record, logged) = regress(config, 1.0)?;
    assert_eq!(record.end.skipped, 4);
    let seen = record.epochs[0].value("train_loss").expect("it is logged");
    let expected = logged.iter().sum::<f64>() / 4.0;
    assert!((seen - expected).abs() < 1e-12 * expected, "found {seen}, expected {expected}");
    Ok(())
}

/// With `skipped_step_advances`, a skipped step is included in the epoch's mean, as in Lightning.
#[test]
fn lightnings_rule_counts_a_skipped_step() -> Result<()> {
    let config = mixed(NonFinite::Skip).with(|config| config.recovery.skipped_step_advances = true);
    let (record, logged) = regress(config, 600.0)?;
    let seen = record.epochs[0].value("train_loss").expect("it is logged");
    let expected = logged.iter().sum::<f64>() / 4.0;
    assert!((seen - expected).abs() < 1e-12 * expected, "found {seen}, expected {expected}");
    Ok(())
}

/// If a step is repeated, here in bf16 because it overflowed in f16, the loss of the last
/// repetition is logged.
#[test]
fn a_repeated_step_logs_its_last_run() -> Result<()> {
    /// A model whose forward pass overflows in f16 but not in bf16.
    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[forward(|x| Ok(head(x)?.f_mul_scalar(3000.0)?.f_mul_scalar(1e-3)?))]
    #[log(train_loss, on_step, on_epoch)]
    #[optimizer(sgd, lr = 1e-4)]
    struct Large {
        #[layer(linear(4, 2))]
        head: Linear,
    }
    let run = |precision| -> Result<RunRecord> {
        let _section = seeded(0);
        let mut model = Large::builder().build()?;
        for own in nn::parameters(&model) {
            let _ = amp_core::tch::no_grad(|| own.tensor.shallow_clone().fill_(30.0));
        }
        let config = mixed(NonFinite::FallBackToBf16).with(|config| {
            config.precision = precision;
            if precision != Precision::F16Mixed {
                config.recovery.on_non_finite = NonFinite::Skip;
            }
        });
        Trainer::new(config).fit(&mut model, &with_outliers(1.0)?)
    };
    let (fallen, bf16) = (run(Precision::F16Mixed)?, run(Precision::Bf16Mixed)?);
    assert_eq!((fallen.recoveries.len(), fallen.skips[0].attempt), (1, 0));
    let loss = |record: &RunRecord| record.epochs[0].value("train_loss").expect("it is logged");
    assert_eq!(loss(&fallen), loss(&bf16));
    assert!(loss(&fallen).is_finite());
    Ok(())
}

/// A callback that logs a value under the same name as the training step.
struct Meddler;

impl Callback for Meddler {
    fn name(&self) -> String {
        "Meddler".to_owned()
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        hook.log_number("train_loss", 1e6, LogOptions::ON_EPOCH)?;
        Ok(Vec::new())
    }
}

/// If a hook logs a value under a name that the step uses, the run ends with an error, because a
/// mean over values of both would have no meaning.
#[test]
fn a_hook_does_not_log_under_the_steps_name() -> Result<()> {
    let _section = seeded(0);
    let mut model = Regression::builder().build()?;
    let mut trainer = Trainer::new(config()).callback(Meddler);
    let said = message(trainer.fit(&mut model, &with_outliers(1.0)?));
    assert!(said.contains("log `train_loss`: the step and a hook log the same name"), "{said}");
    Ok(())
}
