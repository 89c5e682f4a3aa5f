//! Saves and loads small values as JSON files.

use std::{fs, path::Path};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result, file::Staged};

pub(super) fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::config(format!("{}: {error}", path.display())))?;
    Staged::create(path)?.write(&text)
}

pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(|error| Error::io(path, error))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::config(format!("{}: {error}", path.display())))
}
