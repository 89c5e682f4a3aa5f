//! Checkpoints: a saved run in one safetensors file, never a pickle file. A reader never sees a
//! partly written file. The checksum of a file is verified before its tensors are used.
//!
//! Weights have PyTorch's names, as in a file that [`weights`] writes. The names of all other
//! tensors of the run (for example optimizer state, random generators, and sums of logged values)
//! contain a `/`. Values that are not tensors are JSON in the header. In Python, `{name: t for
//! name, t in load_file(path).items() if "/" not in name}` is the model's `state_dict`.
//! [`Trainer::resume_from`](crate::Trainer::resume_from) continues a run from such a file.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use tch::Tensor;

use crate::{
    Error, Hyperparameters, LightningModule, Result, hardware,
    precision::{Precision, Region},
    state::State,
    tensor_file::{self, TensorFile},
    weights::{self, Found},
};

/// The header's key for the state of the run.
const STATE: &str = "state";
/// The header's key for the version of the file format.
const FORMAT: &str = "amp-format";
/// The header's key for the version of the file format in older files.
const OLD_FORMAT: &str = "format";

/// The header's key for the precision overrides of the run.
pub(crate) const OVERRIDES: &str = "precision_overrides";

/// The format version that this code writes and reads.
const VERSION: &str = "amp-checkpoint-1";

/// The content of a checkpoint: the weights, and the state of the run.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) weights: BTreeMap<String, Tensor>,
    pub(crate) state: State,
}

/// Writes a file with the weights and, if `state` is given, the state of the run. The header also
/// contains the entries of `text`.
pub(crate) fn write(
    path: &Path,
    weights: &[(String, Tensor)],
    state: Option<State>,
    mut text: BTreeMap<String, String>,
) -> Result<()> {
    text.insert("libtorch".to_owned(), hardware::LIBTORCH_VERSION.to_owned());
    if let Some(state) = &state {
        text.insert(FORMAT.to_owned(), VERSION.to_owned());
        text.insert(STATE.to_owned(), Value::Object(state.values().clone()).to_string());
    }
    let own = weights.iter().map(|(name, tensor)| (name.clone(), tensor));
    let rest = state.iter().flat_map(State::tensors);
    let rest = rest.map(|(name, tensor)| (name.to_owned(), tensor));
    tensor_file::write(path, own.chain(rest), text)
}

/// Returns an error, before training, if the model's tensors or state cannot be stored in a file.
pub(crate) fn can_save(model: &dyn LightningModule) -> Result<()> {
    let tensors = weights::distinct(model);
    tensor_file::can_hold(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
    let mut own = State::default();
    model.on_save_checkpoint(&mut own)?;
    tensor_file::can_hold(own.tensors())
}

/// Reads the weights and the state of the run from a checkpoint.
pub(crate) fn read(path: &Path) -> Result<Saved> {
    let TensorFile { tensors, metadata } = tensor_file::read(path)?;
    let Some(state) = metadata.get(STATE) else {
        return Err(Error::config(format!(
            "{}: holds only weights, so no run can be resumed from it: give a checkpoint that \
             contains the state of the run",
            path.display()
        )));
    };
    let format = metadata.get(FORMAT).or_else(|| metadata.get(OLD_FORMAT));
    let format = format.map_or("none", String::as_str);
    if format != VERSION {
        return Err(Error::config(format!(
            "{}: its format is {format}, but this version of amp reads only the format {VERSION}",
            path.display()
        )));
    }
    let values: Map<String, Value> = serde_json::from_str(state).map_err(|error| {
        Error::config(format!("{}: its state cannot be read: {error}", path.display()))
    })?;
    let (state, weights) = tensors.into_iter().partition(|(name, _)| name.contains('/'));
    Ok(Saved { weights, state: State::from_parts(state, values) })
}

/// Finds the checkpoint in `folder` with the most optimizer steps. Files with only weights are
/// ignored.
///
/// # Errors
/// When the folder cannot be read, or a safetensors file in it is damaged.
pub fn latest(folder: &Path) -> Result<Option<PathBuf>> {
    let failed = |error| Error::io(folder, error);
    let mut newest = None;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let text = header(&path)?;
        let steps = text.get("global_step").and_then(|steps| steps.parse::<u64>().ok());
        if let (true, Some(steps)) = (text.contains_key(STATE), steps) {
            newest = newest.max(Some((steps, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Finds the checkpoint for a path that a user gave. The path of a file stands for this file.
/// `FOLDER/last` and `FOLDER/best` stand for the last and the best file that a
/// [`ModelCheckpoint`](crate::callback::ModelCheckpoint) wrote into the folder. The path of a
/// folder stands for the checkpoint in it with the most optimizer steps.
///
/// # Errors
/// When the path names no checkpoint.
pub fn find(path: &Path) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let missing = || {
        Err(Error::config(format!(
            "{}: no such checkpoint: give a file, a folder, or FOLDER/best or FOLDER/last",
            path.display()
        )))
    };
    let (folder, name) = match (path.is_dir(), path.parent(), path.file_name()) {
        (true, ..) => (path, None),
        (false, Some(folder), Some(name)) if folder.is_dir() => (folder, name.to_str()),
        _ => return missing(),
    };
    let none = |what: &str| {
        Err(Error::config(format!("{}: no {what} is in this folder", folder.display())))
    };
    match name {
        Some("last") if folder.join("last.safetensors").is_file() => {
            Ok(folder.join("last.safetensors"))
        }
        Some("best") => match latest(folder)?.map(|newest| best_of(&newest)).transpose()?.flatten()
        {
            Some(best) => Ok(folder.join(best.file_name().unwrap_or_default())),
            None => none("best checkpoint"),
        },
        None | Some("last") => match latest(folder)? {
            Some(newest) => Ok(newest),
            None => none("checkpoint of a run"),
        },
        Some(_) => missing(),
    }
}

/// Returns the file of the best epoch that the run's `ModelCheckpoint` had kept when `checkpoint`
/// was written. Returns `None` if the run had no `ModelCheckpoint`, or if the callback had kept no
/// file.
fn best_of(checkpoint: &Path) -> Result<Option<PathBuf>> {
    let text = header(checkpoint)?;
    let state: Map<String, Value> =
        text.get(STATE).and_then(|state| serde_json::from_str(state).ok()).unwrap_or_default();
    let kept = state.iter().find_map(|(name, value)| {
        let is_best = name.starts_with("callback/ModelCheckpoint/") && name.ends_with("/best");
        is_best.then(|| value.get(0)?.get(1)?.as_str()).flatten()
    });
    Ok(kept.map(PathBuf::from))
}

/// Resolves `path` as [`find`] does, checks that the file belongs to a model of the name `model`,
/// and returns the file's path and the model's hyperparameters.
#[doc(hidden)]
pub fn of_model(model: &str, path: &Path) -> Result<(PathBuf, Hyperparameters)> {
    let path = find(path)?;
    let summary = summary(&path)?;
    if summary.model != model {
        return Err(Error::config(format!(
            "{}: belongs to the model `{}`, not to `{model}`",
            path.display(),
            summary.model
        )));
    }
    Ok((path, summary.hyperparameters))
}

/// Loads the weights of a file into a model. If the file is the checkpoint of a run, also restores
/// the state that the model's [`on_save_checkpoint`](LightningModule::on_save_checkpoint) stored in
/// it.
///
/// # Errors
/// When the file is missing or damaged, or belongs to another model.
pub fn restore(model: &mut dyn LightningModule, path: &Path) -> Result<()> {
    if !header(path)?.contains_key(STATE) {
        return weights::load(&*model, path).map(drop);
    }
    let Saved { weights, state } = read(path)?;
    Found::in_file(&*model, path, &weights)?.apply()?;
    model.on_load_checkpoint(&state.part("model"))
}

/// The properties of the model whose weights a file contains, and of the run that trained it, as
/// recorded in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The name of the model's struct.
    pub model: String,
    /// The hyperparameters from which the model was built.
    pub hyperparameters: Hyperparameters,
    /// The precision in which the model was trained. `None` if the file does not name it.
    pub precision: Option<Precision>,
    /// The name of the data on which the model was trained. `None` if the file does not name it.
    pub data: Option<String>,
    /// The number of examples per batch in training. `None` if the file does not contain it.
    pub batch_size: Option<i64>,
    /// The precision overrides of the run, by the path of the module. Empty if the file contains
    /// none.
    pub overrides: BTreeMap<String, Region>,
}

/// Reads the properties of the model in a file and of the run that trained it, without reading the
/// file's tensors.
///
/// # Errors
/// When the file cannot be read, or was not written by this crate.
pub fn summary(path: &Path) -> Result<Summary> {
    let text = header(path)?;
    let missing = |name: &str| {
        Error::config(format!(
            "{}: does not record its {name}, so it is no checkpoint of amp: to use \
             the weights of another program, build the model in Rust, load them with \
             `weights::load` or `weights::Import`, and call `Trainer::validate`, `test` or \
             `predict`",
            path.display()
        ))
    };
    let hyperparameters = text.get("hyperparameters").ok_or_else(|| missing("hyperparameters"))?;
    Ok(Summary {
        model: text.get("model").ok_or_else(|| missing("model"))?.clone(),
        hyperparameters: serde_json::from_str(hyperparameters)
            .map_err(|error| Error::config(format!("{}: {error}", path.display())))?,
        precision: text.get("precision").and_then(|name| name.parse().ok()),
        data: text.get("data").cloned(),
        batch_size: text.get("batch_size").and_then(|size| size.parse().ok()),
        overrides: text
            .get(OVERRIDES)
            .and_then(|overrides| serde_json::from_str(overrides).ok())
            .unwrap_or_default(),
    })
}

/// Reads the text entries (`__metadata__`) of a safetensors file's header, without the tensors.
fn header(path: &Path) -> Result<BTreeMap<String, String>> {
    let failed = |error| Error::io(path, error);
    let damaged = |why: String| {
        Error::config(format!("{}: damaged, or not a safetensors file: {why}", path.display()))
    };
    let mut file = File::open(path).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|error| damaged(error.to_string()))?;
    tensor_file::refuse_torch_save(path, &length)?;
    let length = u64::from_le_bytes(length);
    if length > total.saturating_sub(8) {
        return Err(damaged("its header is longer than the file".into()));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(failed)?;
    let header: Value =
        serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
    let text = header.get("__metadata__").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    serde_json::from_value(text).map_err(|error| damaged(error.to_string()))
}
