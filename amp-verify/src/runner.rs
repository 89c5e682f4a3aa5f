//! One run: a case under one precision.

use amp_core::{
    Result, Trainer, TrainerConfig,
    callback::{Callback, EarlyStopping, Mode},
    event::Subscriber,
    memory::MemoryMeter,
    precision::Precision,
    record::RunRecord,
};

use crate::case::Case;

/// Trains the case under `precision`; its events go to `subscriber`, and `callbacks` act on it.
///
/// Two batches are trained and thrown away first, so that loading kernels and starting threads
/// count for no precision's time or memory.
///
/// # Errors
/// When a step or a callback fails, or the observed dtypes are not the precision's.
pub fn run(
    case: &Case,
    precision: Precision,
    callbacks: Vec<Box<dyn Callback>>,
    subscriber: &mut dyn Subscriber,
) -> Result<RunRecord> {
    warm_up(case, precision)?;
    let meter = MemoryMeter::start(case.device)?;
    let mut model = case.build()?;
    let mut trainer = Trainer::new(config(case, precision, case.epochs)).subscribe(subscriber);
    if let Some((monitor, patience)) = &case.early_stopping {
        trainer = trainer.callback(EarlyStopping::new(monitor, Mode::Min).patience(*patience));
    }
    for callback in callbacks {
        trainer = trainer.callback(callback);
    }
    let mut record = trainer.fit(model.as_mut(), &case.data)?;
    record.memory = Some(meter.read()?);
    Ok(record)
}

fn warm_up(case: &Case, precision: Precision) -> Result<()> {
    let data = case.data.head(2)?;
    let mut model = case.build()?;
    Trainer::new(config(case, precision, 1)).fit(model.as_mut(), &data)?;
    Ok(())
}

/// The trainer's options for a case.
pub(crate) fn config(case: &Case, precision: Precision, max_epochs: i64) -> TrainerConfig {
    TrainerConfig {
        max_epochs,
        seed: case.seed,
        gradient_clip: case.clip,
        accumulate_grad_batches: case.accumulate_grad_batches,
        profile_every_n_steps: case.model.profile_every_n_steps,
        ..TrainerConfig::new(precision, case.device)
    }
}
