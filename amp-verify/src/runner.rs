//! One run: a case under one precision.

use std::{collections::BTreeSet, path::PathBuf};

use amp_core::{
    Error, Result, Trainer, TrainerConfig,
    callback::{Callback, EarlyStopping, Mode},
    event::Subscriber,
    memory::MemoryMeter,
    precision::Precision,
    record::RunRecord,
    trainer::Graph,
};

use crate::case::Case;

/// What acts on a run, beside what its case says.
#[derive(Default)]
pub struct Extras {
    /// Callbacks, in the order in which they act.
    pub callbacks: Vec<Box<dyn Callback>>,
    /// The checkpoint to go on from.
    pub resume_from: Option<PathBuf>,
}

/// Trains the case under `precision`; its events go to `subscriber`.
///
/// A few batches are trained and thrown away first, so that loading kernels, starting threads and a
/// process's first CUDA graph count for no precision's time or memory.
///
/// # Errors
/// When an option is not for this precision, the checkpoint is not this run's, a step or a
/// callback fails, or the observed dtypes are not the precision's.
pub fn run(
    case: &Case,
    precision: Precision,
    extras: Extras,
    subscriber: &mut dyn Subscriber,
) -> Result<RunRecord> {
    let config = case.trainer(precision)?;
    warm_up(case, &config)?;
    let meter = MemoryMeter::start(config.device)?;
    let mut model = case.build()?;
    let mut trainer = Trainer::new(config).subscribe(subscriber);
    if let Some((monitor, patience)) = &case.early_stopping {
        trainer = trainer.callback(EarlyStopping::new(monitor, Mode::Min).patience(*patience));
    }
    for callback in extras.callbacks {
        trainer = trainer.callback(callback);
    }
    if let Some(checkpoint) = extras.resume_from {
        trainer = trainer.resume_from(checkpoint);
    }
    let mut record = trainer.fit(model.as_mut(), &case.data)?;
    record.memory = Some(meter.read()?);
    Ok(record)
}

fn warm_up(case: &Case, config: &TrainerConfig) -> Result<()> {
    let train = |batches: i64, graph: Graph| -> Result<RunRecord> {
        let data = case.data.head(batches)?;
        let mut model = case.build()?;
        let config = TrainerConfig { max_epochs: 1, graph, ..config.clone() };
        Trainer::new(config).fit(model.as_mut(), &data)
    };
    if config.device.is_cuda() {
        // As many as come before a graph, and one within it. Its capture gives cuBLAS's workspaces
        // back, which the last batches bring again.
        train(4 * config.accumulate_grad_batches, config.graph)?;
    }
    let record = train(2, Graph::Off)?;
    check_logged(case, &record)
}

/// A model must log what it is judged by.
fn check_logged(case: &Case, record: &RunRecord) -> Result<()> {
    let judged_by = case.model.judge.name;
    if record.last(judged_by).is_some() {
        return Ok(());
    }
    let logged: BTreeSet<&str> = record
        .epochs
        .iter()
        .flat_map(|epoch| &epoch.val)
        .map(|logged| logged.name.as_str())
        .collect();
    let logged: Vec<&str> = logged.into_iter().collect();
    Err(Error::config(format!(
        "{} logs no `{judged_by}` in validation, which it is judged by; it logs {}: declare one of \
         them with `.metric(…)`, or `.judged_by_loss()`",
        case.model.name,
        if logged.is_empty() { "nothing".to_owned() } else { logged.join(", ") }
    )))
}
