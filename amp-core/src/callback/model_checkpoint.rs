use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{Action, Callback, Epoch, Mode};
use crate::{Error, Result, weights};

/// Keeps the weights of the best epochs (lightning.pytorch.callbacks.ModelCheckpoint), as
/// `epoch=03-val_acc=0.9821.safetensors`, and on request those of the last as `last.safetensors`.
#[derive(Debug, Clone)]
pub struct ModelCheckpoint {
    folder: PathBuf,
    monitor: String,
    mode: Mode,
    save_top_k: usize,
    save_last: bool,
    /// The files kept, the best first.
    best: Vec<(f64, PathBuf)>,
}

impl ModelCheckpoint {
    /// Keeps the best epoch in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(folder: impl Into<PathBuf>, monitor: impl Into<String>, mode: Mode) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        let (monitor, best) = (monitor.into(), Vec::new());
        Ok(Self { folder, monitor, mode, save_top_k: 1, save_last: false, best })
    }

    /// How many of the best epochs are kept.
    #[must_use]
    pub fn save_top_k(mut self, k: usize) -> Self {
        self.save_top_k = k;
        self
    }

    /// Whether the last epoch is kept too.
    #[must_use]
    pub fn save_last(mut self, save: bool) -> Self {
        self.save_last = save;
        self
    }

    /// The best epoch's file so far.
    pub fn best_model_path(&self) -> Option<&Path> {
        self.best.first().map(|(_, path)| path.as_path())
    }

    fn save(&self, epoch: &Epoch<'_>, path: &Path) -> Result<()> {
        let hyperparameters = serde_json::Value::Object(epoch.model.hyperparameters());
        let metadata = HashMap::from([
            ("model".to_owned(), epoch.model.name().to_owned()),
            ("hyperparameters".to_owned(), hyperparameters.to_string()),
            ("precision".to_owned(), epoch.precision.to_string()),
            ("epoch".to_owned(), epoch.end.epoch.to_string()),
            ("global_step".to_owned(), epoch.end.global_step.to_string()),
            ("values".to_owned(), json!([epoch.end.train, epoch.end.val]).to_string()),
            ("amp".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        weights::save(epoch.model, path, metadata)
    }
}

impl Callback for ModelCheckpoint {
    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<Vec<Action>> {
        let mut actions = Vec::new();
        let value = epoch.monitored(&self.monitor)?;
        // A value that is not a number is no better than any other.
        let worse = |kept: &(f64, PathBuf)| self.mode.better(value, kept.0, 0.0);
        let place = self.best.iter().position(worse).unwrap_or(self.best.len());
        if value.is_finite() && place < self.save_top_k {
            let name =
                format!("epoch={:02}-{}={value:.4}.safetensors", epoch.end.epoch, self.monitor);
            let path = self.folder.join(name);
            self.save(epoch, &path)?;
            self.best.insert(place, (value, path.clone()));
            actions.push(Action::Saved(path));
            for (_, dropped) in self.best.split_off(self.save_top_k.min(self.best.len())) {
                fs::remove_file(&dropped).map_err(|error| Error::io(&dropped, error))?;
            }
        }
        if self.save_last {
            self.save(epoch, &self.folder.join("last.safetensors"))?;
        }
        Ok(actions)
    }
}
