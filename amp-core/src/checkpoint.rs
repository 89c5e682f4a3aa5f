//! A run in a file, to go on from: one safetensors file, never pickle, that appears whole or not
//! at all and whose checksum is verified before anything is taken from it.
//!
//! Weights stand under PyTorch's names, as in a file of [`weights`](crate::weights). What else
//! the run needs (optimizers, schedules, scaler, random generators, position, running sums,
//! callbacks) stands under names with a `/`, and its small values as JSON in the header: in
//! Python, `{name: t for name, t in load_file(path).items() if "/" not in name}` is the model's
//! `state_dict`. [`Trainer::resume_from`](crate::Trainer::resume_from) goes on from it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use tch::Tensor;

use crate::{
    Error, Result, hardware,
    state::State,
    tensor_file::{self, TensorFile},
};

/// The header's texts.
const STATE: &str = "state";
const FORMAT: &str = "format";

/// What this version writes and reads.
const VERSION: &str = "amp-checkpoint-1";

/// What a checkpoint holds.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) weights: BTreeMap<String, Tensor>,
    pub(crate) state: State,
}

/// Writes weights and, unless they are to stand alone, the run's state.
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

/// Reads a checkpoint whole.
pub(crate) fn read(path: &Path) -> Result<Saved> {
    let TensorFile { tensors, metadata } = tensor_file::read(path)?;
    let Some(state) = metadata.get(STATE) else {
        return Err(Error::config(format!(
            "{}: holds weights alone: a run goes on only from a checkpoint of a run",
            path.display()
        )));
    };
    let format = metadata.get(FORMAT).map_or("none", String::as_str);
    if format != VERSION {
        return Err(Error::config(format!(
            "{}: its format is {format}, but this version reads {VERSION}",
            path.display()
        )));
    }
    let values: Map<String, Value> = serde_json::from_str(state)
        .map_err(|error| Error::config(format!("{}: its state: {error}", path.display())))?;
    let (state, weights) = tensors.into_iter().partition(|(name, _)| name.contains('/'));
    Ok(Saved { weights, state: State::from_parts(state, values) })
}

/// The checkpoint of `folder` with the most optimizer steps; files of weights alone are passed
/// over.
///
/// # Errors
/// When the folder cannot be read, or one of its safetensors files is damaged.
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

/// The texts of a file's header; the rest is not read.
fn header(path: &Path) -> Result<BTreeMap<String, String>> {
    let failed = |error| Error::io(path, error);
    let damaged = |why: String| {
        Error::config(format!("{}: not a whole safetensors file: {why}", path.display()))
    };
    let mut file = File::open(path).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|error| damaged(error.to_string()))?;
    let length = u64::from_le_bytes(length);
    if length > total.saturating_sub(8) {
        return Err(damaged("its header is longer than itself".into()));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(failed)?;
    let header: Value =
        serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
    let text = header.get("__metadata__").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    serde_json::from_value(text).map_err(|error| damaged(error.to_string()))
}
