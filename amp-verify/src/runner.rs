//! Runs a case under one precision.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
};

use amp_core::{
    Error, Result, Trainer, TrainerConfig,
    callback::Callback,
    event::{Event, Subscriber},
    memory::MemoryMeter,
    precision::Precision,
    random,
    record::RunRecord,
    trainer::{Change, Graph, Loops},
};

use crate::{
    case::Case,
    registry::{Judge, LOSS},
};

/// A function that builds a callback. It receives the value by which the callback compares epochs.
pub type JudgedBy = Box<dyn FnOnce(Judge) -> Result<Box<dyn Callback>>>;

/// Options of a run in addition to its case.
pub struct Extras {
    /// Callbacks, in the order in which the trainer calls them.
    pub callbacks: Vec<Box<dyn Callback>>,
    /// Builds a callback that compares epochs by the value by which the model is judged. The
    /// trainer calls this callback after all others.
    pub judged_by: Option<JudgedBy>,
    /// The checkpoint from which the run resumes.
    pub resume_from: Option<PathBuf>,
    /// The settings in which a resumed run may differ from the saved one.
    pub resume_with: Vec<Change>,
    /// The variable that a signal handler sets to the signal's number, and the file for the state
    /// of the run. Once the number is not 0, the run saves its state to the file, if one is given,
    /// and ends.
    pub interruption: Option<(Arc<AtomicUsize>, Option<PathBuf>)>,
    /// The file for the state of a run that ends with an error.
    pub save_on_error: Option<PathBuf>,
    /// Whether the run is compared with other runs, so that it must log the value by which its
    /// model is judged.
    pub is_compared: bool,
}

impl Default for Extras {
    fn default() -> Self {
        Self {
            callbacks: Vec::new(),
            judged_by: None,
            resume_from: None,
            resume_with: Vec::new(),
            interruption: None,
            save_on_error: None,
            is_compared: true,
        }
    }
}

/// Trains the case under `precision` and passes its events to `subscriber`. The run is a
/// [reproducible section](random::seeded): it depends only on the case's seed, not on other threads
/// that train or draw random numbers through amp-core.
///
/// Before the run, another model is trained on a few batches and discarded. This loads kernels,
/// starts threads and captures the first CUDA graph of the process, so that the measured time and
/// memory of the run do not include this work.
///
/// # Errors
/// When an option does not fit this precision, the checkpoint belongs to another run, a step or a
/// callback fails, or the observed dtypes differ from the precision's dtypes.
pub fn run(
    case: &Case,
    precision: Precision,
    extras: Extras,
    subscriber: &mut dyn Subscriber,
) -> Result<RunRecord> {
    let config = case.trainer(precision)?;
    let _section = random::seeded(config.seed)?;
    let first = warm_up(case, &config)?;
    if extras.is_compared {
        check_logged(case, &first)?;
    }
    let stopping = case.stopping().map(|stopping| Box::new(stopping) as Box<dyn Callback>);
    let mut callbacks: Vec<Box<dyn Callback>> =
        stopping.into_iter().chain(extras.callbacks).collect();
    if let Some(choose) = extras.judged_by {
        callbacks.push(choose(judge(case, &first, subscriber)?)?);
    }
    check_monitored(case, &first, &callbacks)?;
    let meter = MemoryMeter::start(config.device)?;
    let mut model = case.build()?;
    let mut trainer = Trainer::new(config).subscribe(subscriber);
    for callback in callbacks {
        trainer = trainer.callback(callback);
    }
    if let Some((signal, save_to)) = extras.interruption {
        trainer = trainer.interrupted_by(signal, save_to);
    }
    if let Some(path) = extras.save_on_error {
        trainer = trainer.save_on_error(path);
    }
    if let Some(checkpoint) = extras.resume_from {
        trainer = trainer.resume_from(checkpoint).resume_with(extras.resume_with);
    }
    let mut record = trainer.fit(model.as_mut(), &case.data)?;
    record.memory = Some(meter.read()?);
    Ok(record)
}

/// Trains a new model on a few batches and returns the record of this short run. The record shows
/// which values the model logs.
fn warm_up(case: &Case, config: &TrainerConfig) -> Result<RunRecord> {
    let train = |batches: i64, graph: Graph| -> Result<RunRecord> {
        let data = case.data.head(batches)?;
        let mut model = case.build()?;
        let loops = Loops::default();
        let config = TrainerConfig { max_epochs: 1, graph, loops, ..config.clone() };
        Trainer::new(config).fit(model.as_mut(), &data)
    };
    if config.device.is_cuda() {
        // These batches are enough for the steps before a CUDA graph is captured, and for one
        // replay. The capture frees cuBLAS's workspaces; the two batches below allocate them again.
        train(4 * config.optimization.accumulate_grad_batches, config.graph)?;
    }
    train(2, Graph::Off)
}

/// Returns the names of all values in the record, from training and validation.
fn logged(record: &RunRecord) -> BTreeSet<&str> {
    let values = record.epochs.iter().flat_map(|epoch| epoch.train.iter().chain(&epoch.val));
    values.map(|logged| logged.name.as_str()).collect()
}

/// Returns the value by which epochs are compared: the model's judge, or the validation loss if the
/// model declares no judge and logs no accuracy.
fn judge(case: &Case, first: &RunRecord, subscriber: &mut dyn Subscriber) -> Result<Judge> {
    let (judge, names) = (case.model.judge, logged(first));
    if judge != Judge::DEFAULT || names.contains(judge.name) || !names.contains(LOSS) {
        return Ok(judge);
    }
    let text = format!(
        "{} logs no `{}` and declares no other metric: its epochs are judged by `{LOSS}`",
        case.model.name, judge.name
    );
    subscriber.on_event(&Event::Note { text })?;
    Ok(Judge::loss())
}

/// Checks that the model logs every value that a callback monitors.
fn check_monitored(case: &Case, first: &RunRecord, callbacks: &[Box<dyn Callback>]) -> Result<()> {
    let names = logged(first);
    match callbacks.iter().filter_map(|one| one.monitors()).find(|name| !names.contains(name)) {
        None => Ok(()),
        Some(name) => Err(Error::config(format!(
            "{} logs no `{name}`, so a run cannot be stopped or saved by it: it logs {}",
            case.model.name,
            names.into_iter().collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// Checks that the model logs its validation loss and the value by which it is judged.
fn check_logged(case: &Case, record: &RunRecord) -> Result<()> {
    let (model, judged_by) = (case.model.name, case.model.judge.name);
    let logged: BTreeSet<&str> = record
        .epochs
        .iter()
        .flat_map(|epoch| &epoch.val)
        .map(|logged| logged.name.as_str())
        .collect();
    let names: Vec<String> = logged.iter().map(|name| format!("`{name}`")).collect();
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    if !logged.contains(LOSS) {
        return Err(Error::config(format!(
            "{model} does not log `{LOSS}` in validation, which every comparison needs: it logs {names}"
        )));
    }
    if logged.contains(judged_by) {
        return Ok(());
    }
    Err(Error::config(format!(
        "{model} does not log `{judged_by}` in validation, the value it is judged by: it logs {names}; \
         name one of them with `metric` (`error_metric` if lower is better), give it one, as `#[metric(accuracy, name = acc)]` logs \
         `val_acc`, or choose `judged_by_loss`"
    )))
}
