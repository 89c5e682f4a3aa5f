//! Finds and reads weights files: a single file, all files that an index lists, or the files in a
//! folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    Error, Result,
    tensor_file::{self, TensorFile},
};

/// The files that `save_pretrained` of `transformers` writes to a folder, in the order in which
/// they are searched for.
const FILES: [&str; 2] = ["model.safetensors.index.json", "model.safetensors"];

/// The content of `model.safetensors.index.json`: for each tensor, the file that contains it.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads a safetensors file, all files that an index lists, or the files in the folder of a model.
///
/// # Errors
/// When a file is missing or damaged, or does not contain the tensors that its index lists.
pub(super) fn read(path: &Path) -> Result<TensorFile> {
    let path = located(path)?;
    match path.extension().is_some_and(|end| end == "json") {
        true => sharded(&path),
        false => tensor_file::read(&path),
    }
}

fn located(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let candidates = FILES.map(|name| path.join(name));
    candidates.into_iter().find(|file| file.exists()).ok_or_else(|| {
        Error::config(format!("{}: the folder has no {}", path.display(), FILES.join(" and no ")))
    })
}

fn sharded(path: &Path) -> Result<TensorFile> {
    let text = fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
    let Index { weight_map } = serde_json::from_str(&text).map_err(|error| {
        Error::config(format!("{}: not an index of weights files: {error}", path.display()))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let files: BTreeSet<&String> = weight_map.values().collect();
    let mut whole = TensorFile { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
    for file in files {
        // The file must be in the index's folder.
        if Path::new(file).components().count() != 1 {
            return Err(Error::config(format!(
                "{}: the shard `{file}` is not in the index's folder",
                path.display()
            )));
        }
        let TensorFile { tensors, metadata } = tensor_file::read(&folder.join(file))?;
        for (name, tensor) in tensors {
            if weight_map.get(&name) != Some(file) {
                return Err(Error::config(format!(
                    "{}: `{name}` is in {file}, but the index does not list it there",
                    path.display()
                )));
            }
            whole.tensors.insert(name, tensor);
        }
        whole.metadata.extend(metadata);
    }
    match weight_map.iter().find(|(name, _)| !whole.tensors.contains_key(*name)) {
        None => Ok(whole),
        Some((name, file)) => Err(Error::config(format!(
            "{}: `{name}` is not in {file}, although the index lists it there",
            path.display()
        ))),
    }
}
