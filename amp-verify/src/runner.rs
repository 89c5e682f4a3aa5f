//! Trains a case (a model with its data and options) under one precision.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
};

use amp_core::{
    Error, LightningModule, Result, Trainer, TrainerConfig,
    callback::Callback,
    event::{Event, Subscriber},
    memory::{Memory, MemoryMeter},
    nn::{self, Role},
    precision::Precision,
    random,
    record::RunRecord,
    trainer::{Change, ChecksConfig, Graph, Loops},
};

use crate::{
    case::Case,
    registry::{Judge, LOSS},
    scalars::{all_equal, all_finite},
};

/// A function that builds a callback which finds the best epoch. The function's argument is the
/// logged value by which the callback compares epochs.
pub type JudgedBy = Box<dyn FnOnce(Judge) -> Result<Box<dyn Callback>>>;

/// What a training run needs in addition to the model, the data and their options. The default is a
/// run without callbacks and without checkpoints.
pub struct Extras {
    /// Callbacks, in the order in which the trainer calls them.
    pub callbacks: Vec<Box<dyn Callback>>,
    /// Builds a callback that finds the best epoch. The callback compares epochs by the model's
    /// metric or, if the model has none, by its validation loss. The trainer calls this callback
    /// after all others.
    pub judged_by: Option<JudgedBy>,
    /// The checkpoint from which the run resumes.
    pub resume_from: Option<PathBuf>,
    /// The settings in which a resumed run may differ from the run that saved the checkpoint.
    pub resume_with: Vec<Change>,
    /// A variable in which a signal handler stores the number of a signal, and a checkpoint file.
    /// If the variable is not 0, the run ends. If a file is given, the run first saves its state to
    /// this file.
    pub interruption: Option<(Arc<AtomicUsize>, Option<PathBuf>)>,
    /// The file in which a run that ends with an error saves its state.
    pub save_on_error: Option<PathBuf>,
    /// Whether the results of the run are compared with those of other runs. A compared run fails
    /// if the model does not log its validation loss and the value by which it is judged.
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

/// Trains `case` (a model with its data and options) under `precision` and passes the events of the
/// run to `subscriber`. The run is a [reproducible section](random::seeded): its results depend
/// only on the case's seed. Other threads that train or draw random numbers through amp-core have
/// no effect on the results.
///
/// Before the run, trains a second model on a few batches and discards it. This loads kernels,
/// starts threads and captures the first CUDA graph of the process, so that the measured time and
/// memory of the run do not include this work.
///
/// # Errors
/// When an option cannot be used with this precision, the checkpoint belongs to another run, a step
/// or a callback fails, or the run computed in other dtypes than the precision prescribes.
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
    let mut callbacks = extras.callbacks;
    if let Some(choose) = extras.judged_by {
        callbacks.push(choose(judge(case, &first, subscriber)?)?);
    }
    check_monitored(case, &first, &callbacks)?;
    let stopping = case.stopping()?.map(|stopping| Box::new(stopping) as Box<dyn Callback>);
    let meter = MemoryMeter::start(config.device)?;
    let mut model = case.build()?;
    let mut trainer = Trainer::new(config).subscribe(subscriber);
    for callback in stopping.into_iter().chain(callbacks) {
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
    let peak = meter.read()?;
    let data = case.copied_bytes(precision)?;
    let peak_allocated = peak.peak_allocated.saturating_sub(data);
    record.memory = Some(Memory { peak_allocated, ..peak });
    if !record.not_finite().is_empty() {
        record.has_finite_weights = Some(has_finite_weights(model.as_ref())?);
    }
    Ok(record)
}

/// Returns whether all parameters are finite, and no buffer contains NaN. A buffer may contain
/// infinities, as a mask of attention scores does.
fn has_finite_weights(model: &dyn LightningModule) -> Result<bool> {
    let all = nn::named_tensors(model);
    let of = |wanted| all.iter().filter(move |(.., role)| *role == wanted).map(|(_, own, _)| own);
    // A tensor with a NaN is not equal to itself.
    Ok(all_finite(of(Role::Parameter))? && all_equal(of(Role::Buffer).map(|own| (own, own)))?)
}

/// Trains a new build of the model on a few batches. Returns the record of this short run, which
/// shows which values the model logs.
fn warm_up(case: &Case, config: &TrainerConfig) -> Result<RunRecord> {
    let train = |batches: i64, graph: Graph| -> Result<RunRecord> {
        let data = case.data.head(batches)?;
        let mut model = case.build()?;
        let loops = Loops::default();
        // The warm-up has only the first batches, and no sampler. So the run that follows checks
        // which examples the training and the validation set share.
        let checks = ChecksConfig { shared_examples: true, ..config.checks };
        let config = TrainerConfig { max_epochs: 1, graph, loops, checks, ..config.clone() };
        Trainer::new(config).fit(model.as_mut(), &data)
    };
    if config.device.is_cuda() {
        // Four optimizer steps suffice to capture a CUDA graph and to replay it once. The capture
        // frees cuBLAS's workspaces, and the two batches of the next run allocate them again.
        train(4 * config.optimization.accumulate_grad_batches, config.graph)?;
    }
    train(2, Graph::Off)
}

/// Returns the names of all values that a run has logged in training and validation.
fn logged(record: &RunRecord) -> BTreeSet<&str> {
    let values = record.epochs.iter().flat_map(|epoch| epoch.train.iter().chain(&epoch.val));
    values.map(|logged| logged.name.as_str()).collect()
}

/// Returns the logged value by which epochs are compared: the metric that the model declares, or by
/// default its validation accuracy. If a model with the default logs no accuracy, returns its
/// validation loss.
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

/// Checks that the model logs every value that early stopping or another callback monitors.
fn check_monitored(case: &Case, first: &RunRecord, callbacks: &[Box<dyn Callback>]) -> Result<()> {
    let names = logged(first);
    let stopping = case.early_stopping.iter().map(|stopping| stopping.monitor.as_str());
    let mut monitored = stopping.chain(callbacks.iter().filter_map(|one| one.monitors()));
    match monitored.find(|name| !names.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let hint = match name {
                "train_loss" => ". Declare it with `#[log(train_loss(on_epoch))]`",
                _ => "",
            };
            Err(Error::config(format!(
                "a callback monitors `{name}`, but {0} does not log `{name}` at the ends of \
                 epochs; {0} logs {1}{hint}",
                case.model.name,
                names.into_iter().collect::<Vec<_>>().join(", ")
            )))
        }
    }
}

/// Checks that the model logs its validation loss and the value by which the model is judged.
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
            "{model} does not log `{LOSS}` in validation, which every comparison needs; {model} \
             logs {names}"
        )));
    }
    if logged.contains(judged_by) {
        return Ok(());
    }
    Err(Error::config(format!(
        "{model} is judged by `{judged_by}`, but does not log `{judged_by}` in validation; \
         {model} logs {names}. Name a logged value with `metric` (with `score` if it is no \
         fraction, with `error_metric` if lower is better), judge the model with `judged_by_loss`, or declare a metric: `#[metric(accuracy, \
         name = acc)]` logs `val_acc`"
    )))
}
