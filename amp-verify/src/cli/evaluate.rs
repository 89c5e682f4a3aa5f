//! `validate`, `test-set` and `predict`: run a trained model on data, without training.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    str::FromStr,
};

use amp_core::{
    Error, LightningModule, Result, Trainer,
    checkpoint::{self, Summary},
    data::DataModule,
    file,
    log::Logged,
    precision::Precision,
    random, weights,
};
use clap::Args;

use super::{
    Format, RunArgs,
    commands::{complain, prepare_as},
};
use crate::{
    case::{Case, Choices},
    output::Logs,
    registry::Registry,
};

/// Options of `validate` and `test-set`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// The trained weights: a file, a folder (its newest checkpoint), FOLDER/best or FOLDER/last
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,
    /// The precision [default: the checkpoint's]
    #[arg(long, value_name = "NAME", value_parser = Precision::from_str)]
    pub precision: Option<Precision>,
    /// How to print the values
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub run: RunArgs,
}

/// Options of `predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// The folder for predictions: one file output-00000.safetensors per batch
    #[arg(long, value_name = "FOLDER")]
    pub output: PathBuf,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub evaluate: EvaluateArgs,
}

/// The data sets on which a model is evaluated: its validation sets or its test sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loop {
    Validate,
    Test,
}

/// Reads the checkpoint, builds the model that it names, and loads the saved weights into the
/// model. Uses the precision and the policy of the run that saved it, unless the user chose others.
/// Returns the case (the model with its data and options) and the model with these weights.
fn trained(registry: &Registry, args: &EvaluateArgs) -> Result<(Case, Box<dyn LightningModule>)> {
    let path = checkpoint::find(&args.checkpoint)?;
    let summary = checkpoint::summary(&path)?;
    let asked = args.run.model.as_deref().unwrap_or(&summary.model);
    if asked != summary.model {
        return Err(Error::config(format!(
            "{}: contains the model `{}`, not `{asked}`: leave out --model, or give another checkpoint",
            path.display(),
            summary.model
        )));
    }
    let choices = choices(registry, args, &path, &summary)?;
    let mut case = prepare_as(registry, &args.run, Some(&summary.model), choices)?;
    case.trainer.precision = args.precision.or(summary.precision).unwrap_or(Precision::F32True);
    if args.run.policy.is_none() && Some(case.trainer.precision) == summary.precision {
        case.trainer.numerics.overrides = summary.overrides.clone().into();
    }
    case.trainer(case.trainer.precision)?;
    let mut model = case.build()?;
    checkpoint::restore(model.as_mut(), &path)?;
    complain(&data_and_batch_size(&case.data, &summary));
    if let Some(line) = policy(&case, &summary) {
        complain(&line);
    }
    Ok((case, model))
}

/// Says whether the policy (the precisions of single modules) of the run that saved the checkpoint
/// applies. Returns `None` if that run had no policy.
fn policy(case: &Case, summary: &Summary) -> Option<String> {
    if summary.overrides.is_empty() {
        return None;
    }
    let names: Vec<String> = summary.overrides.keys().map(|path| format!("`{path}`")).collect();
    let names = names.join(", ");
    Some(match *case.trainer.numerics.overrides == summary.overrides {
        true => format!("the precisions of {names} are those of the run that saved the checkpoint"),
        false => format!(
            "the run that saved the checkpoint had other precisions for {names}: for the same results \
             leave out --precision and --policy"
        ),
    })
}

/// Returns the user's choices. The model gets the hyperparameters of the checkpoint `path`. Where the
/// user chose no data or no batch size, those of the run that saved the checkpoint are used, if the
/// file names them.
fn choices(
    registry: &Registry,
    args: &EvaluateArgs,
    path: &Path,
    summary: &Summary,
) -> Result<Choices> {
    let chosen = args.run.choices();
    if let (None, Some(name)) = (&chosen.data, &summary.data)
        && registry.find_data(name).is_err()
    {
        return Err(Error::config(format!(
            "{}: saved by a run whose data is `{name}`, which the registry of {} does not contain: \
             name the data to evaluate on with --data",
            path.display(),
            registry.project().name()
        )));
    }
    Ok(Choices {
        data: chosen.data.or_else(|| summary.data.clone()),
        batch_size: chosen.batch_size.or(summary.batch_size),
        set: summary.hyperparameters.clone(),
        ..chosen
    })
}

/// Says on which data and in which batches the model is evaluated, and whether the run that saved
/// the checkpoint used the same.
fn data_and_batch_size(data: &DataModule, summary: &Summary) -> String {
    let used = format!("data `{}` in batches of {}", data.name, data.batch_size);
    let saved = match (&summary.data, summary.batch_size) {
        (Some(name), Some(size)) if (name, size) == (&data.name, data.batch_size) => {
            ", as in the run that saved the checkpoint".to_owned()
        }
        (Some(name), Some(size)) => {
            format!("; the run that saved the checkpoint used data `{name}` in batches of {size}")
        }
        _ => "; the file does not name the data and the batch size of training".to_owned(),
    };
    format!("evaluating on {used}{saved}")
}

/// Evaluates the model and returns the logged values.
pub(super) fn evaluate(
    registry: &Registry,
    args: &EvaluateArgs,
    which: Loop,
) -> Result<Vec<Logged>> {
    let (case, mut model) = trained(registry, args)?;
    let _section = random::seeded(case.trainer.seed)?;
    let mut logs = Logs::new(&args.run.logs)?;
    let mut trainer = Trainer::new(case.trainer.clone()).subscribe(&mut logs);
    let values = match which {
        Loop::Validate => trainer.validate(model.as_mut(), &case.data)?,
        Loop::Test => trainer.test(model.as_mut(), &case.data)?,
    };
    match values.iter().find(|logged| !logged.value.is_finite()) {
        Some(Logged { name, value, .. }) => Err(Error::NonFinite(format!(
            "`{name}` is {value}: the weights or the data are damaged"
        ))),
        None => Ok(values),
    }
}

/// Writes one file of predictions per batch and returns the number of files.
pub(super) fn predict(registry: &Registry, args: &PredictArgs) -> Result<usize> {
    let folder = &args.output;
    let is_used = match fs::read_dir(folder) {
        Ok(mut files) => files.next().is_some(),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io(folder, error)),
    };
    if is_used {
        return Err(Error::config(format!(
            "{}: the folder is not empty: give a new folder, so that old and new predictions do \
             not mix",
            folder.display()
        )));
    }
    let (case, mut model) = trained(registry, &args.evaluate)?;
    let _section = random::seeded(case.trainer.seed)?;
    let (mut written, mut not_a_number) = (0, None);
    let mut logs = Logs::new(&args.evaluate.run.logs)?;
    Trainer::new(case.trainer.clone()).subscribe(&mut logs).predict(
        model.as_mut(),
        &case.data,
        &mut |set, _, batch| {
            // The folder is created only now, so that a command that is refused leaves no folder
            // behind.
            file::create_folder(folder)?;
            let dash = if set.is_empty() { "" } else { "-" };
            let path = folder.join(format!("{set}{dash}output-{written:05}.safetensors"));
            let tensors = batch.tensors().map(|(name, tensor)| (name.to_owned(), tensor));
            weights::save_tensors(tensors, &path, BTreeMap::new())?;
            written += 1;
            for (name, tensor) in batch.tensors() {
                if not_a_number.is_none() && tensor.f_isnan()?.f_any()?.f_int64_value(&[])? != 0 {
                    not_a_number = Some(format!("`{name}` in {}", path.display()));
                }
            }
            Ok(())
        },
    )?;
    match not_a_number {
        None => Ok(written),
        Some(which) => Err(Error::NonFinite(format!(
            "{which} contains NaN: the weights or the data are damaged"
        ))),
    }
}
