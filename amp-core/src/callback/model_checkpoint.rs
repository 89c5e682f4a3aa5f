use std::path::{Path, PathBuf};

use super::{Action, Callback, Epoch, Mode};
use crate::{
    Error, Hook, Result,
    file::{self, FolderLock},
    module::StepAccess,
    precision::StepOutcome,
    state::State,
};

/// Saves a run during training (lightning.pytorch.callbacks.ModelCheckpoint). Keeps the best epochs
/// according to a monitored value, in files such as `epoch=03-val_acc=0.9821.safetensors`. On
/// request, the callback also writes `last.safetensors` after each epoch, after every N steps, or
/// both. A run can be resumed from any of these files, unless they contain only weights.
#[derive(Debug, Clone)]
pub struct ModelCheckpoint {
    folder: PathBuf,
    monitor: String,
    mode: Mode,
    save_top_k: usize,
    save_last: bool,
    weights_only: bool,
    every_n_train_steps: Option<u64>,
    /// The files that are kept, each with its monitored value, sorted from best to worst.
    best: Vec<(f64, PathBuf)>,
    /// The file of an epoch that ended early, if there is one. The file is kept in addition to the
    /// `save_top_k` files, and is removed when a resumed run completes the epoch.
    early: Option<PathBuf>,
    /// This field is never read. As long as the lock exists, no other process can save its runs in
    /// the folder.
    _lock: FolderLock,
}

/// The most bytes that the monitored name may take in a file name. File systems limit a file name
/// to 255 bytes.
const LONGEST: usize = 150;

impl ModelCheckpoint {
    /// Creates a callback that keeps the file of the best epoch in `folder`. Creates the folder if
    /// it is missing, and removes partly written files that terminated processes left there.
    ///
    /// # Errors
    /// When the folder cannot be created, when another running process saves its run there, or when
    /// the monitored name is too long for a file name.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use amp_core::{
    ///     callback::{Mode, ModelCheckpoint},
    ///     prelude::*,
    /// };
    ///
    /// let best = ModelCheckpoint::new("checkpoints", "val_acc", Mode::Max)?.save_top_k(3);
    /// let trainer = Trainer::new(TrainerConfig::new(Precision::F32True, Device::Cpu)).callback(best);
    /// # let _ = trainer;
    /// # Ok::<(), Error>(())
    /// ```
    pub fn new(folder: impl Into<PathBuf>, monitor: impl Into<String>, mode: Mode) -> Result<Self> {
        let (folder, monitor) = (folder.into(), monitor.into());
        let length = file_name(&monitor).len();
        if !(1..=LONGEST).contains(&length) {
            return Err(Error::config(format!(
                "the name `{monitor}` takes {length} bytes in the file names of checkpoints, but \
                 must take 1 to {LONGEST}: log the value under another name"
            )));
        }
        file::create_folder(&folder)?;
        let lock = FolderLock::new(&folder)?;
        file::remove_abandoned(&folder)?;
        Ok(Self {
            folder,
            monitor,
            mode,
            save_top_k: 1,
            save_last: false,
            weights_only: false,
            every_n_train_steps: None,
            best: Vec::new(),
            early: None,
            _lock: lock,
        })
    }

    /// Sets how many of the best epochs are kept.
    #[must_use]
    pub fn save_top_k(mut self, k: usize) -> Self {
        self.save_top_k = k;
        self
    }

    /// Sets whether `last.safetensors` is written after each epoch, in addition to the files of the
    /// best epochs.
    #[must_use]
    pub fn save_last(mut self, save: bool) -> Self {
        self.save_last = save;
        self
    }

    /// Sets whether files contain only the weights. A run cannot be resumed from such a file.
    #[must_use]
    pub fn save_weights_only(mut self, weights_only: bool) -> Self {
        self.weights_only = weights_only;
        self
    }

    /// Saves `last.safetensors` also within epochs, after every `n` applied optimizer steps.
    #[must_use]
    pub fn every_n_train_steps(mut self, n: u64) -> Self {
        self.every_n_train_steps = Some(n.max(1));
        self
    }

    /// Returns the file of the best epoch so far. Returns `None` if no file was saved.
    pub fn best_model_path(&self) -> Option<&Path> {
        self.best.first().map(|(_, path)| path.as_path())
    }

    fn save(&self, path: PathBuf) -> Action {
        Action::Save { path, weights_only: self.weights_only }
    }

    /// Saves the run if `value` is among the best values so far. Deletes the files that no longer
    /// belong to the best `save_top_k`.
    fn keep_best(&mut self, epoch: &Epoch<'_>, value: f64) -> Vec<Action> {
        // A NaN is never better than a kept value, so its position is at the end.
        let worse = |kept: &(f64, PathBuf)| self.mode.better(value, kept.0, 0.0);
        let place = self.best.iter().position(worse).unwrap_or(self.best.len());
        if !value.is_finite() || place >= self.save_top_k {
            return Vec::new();
        }
        let step = match epoch.goes_on {
            true => format!("-step={:06}", epoch.end.global_step),
            false => String::new(),
        };
        let (monitor, number) = (file_name(&self.monitor), epoch.end.epoch);
        // Scientific notation keeps the text of a large number short.
        let value_text = match value.abs() < 1e9 {
            true => format!("{value:.4}"),
            false => format!("{value:.4e}"),
        };
        let name = format!("epoch={number:02}{step}-{monitor}={value_text}.safetensors");
        let path = self.folder.join(name);
        let mut actions = vec![self.save(path.clone())];
        self.best.insert(place, (value, path));
        if epoch.ended_early {
            self.early = self.best.get(place).map(|(_, path)| path.clone());
            return actions;
        }
        let dropped = self.best.split_off(self.save_top_k.min(self.best.len()));
        actions.extend(dropped.into_iter().map(|(_, path)| Action::Delete(path)));
        actions
    }

    /// Returns the actions that delete the checkpoint that was saved when an epoch ended early.
    fn forget_early(&mut self) -> Vec<Action> {
        let Some(early) = self.early.take() else { return Vec::new() };
        let kept = self.best.len();
        self.best.retain(|(_, path)| *path != early);
        match self.best.len() < kept {
            true => vec![Action::Delete(early)],
            false => Vec::new(),
        }
    }

    fn last(&self) -> Action {
        self.save(self.folder.join("last.safetensors"))
    }
}

/// Returns whether `old` deletes the file that `new` writes.
fn is_of_one_file(old: &Action, new: &Action) -> bool {
    matches!((old, new), (Action::Delete(old), Action::Save { path, .. }) if old == path)
}

/// Encodes the name of a logged value for use in a file name. Different names always get different
/// encodings.
fn file_name(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => text.push(byte.into()),
            _ => text += &format!("%{byte:02X}"),
        }
    }
    text
}

impl Callback for ModelCheckpoint {
    fn name(&self) -> String {
        format!("ModelCheckpoint/{}", self.monitor)
    }

    fn monitors(&self) -> Option<&str> {
        (self.save_top_k > 0).then_some(&self.monitor)
    }

    fn step_access(&self) -> StepAccess {
        match self.every_n_train_steps {
            Some(_) => StepAccess::PerStep,
            None => StepAccess::Deferred,
        }
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        let due = |every: u64| hook.global_step.is_multiple_of(every);
        match (outcome, self.every_n_train_steps) {
            (Some(StepOutcome::Applied), Some(every)) if due(every) => Ok(vec![self.last()]),
            _ => Ok(Vec::new()),
        }
    }

    fn on_validation_end(&mut self, validation: &Epoch<'_>) -> Result<Vec<Action>> {
        self.on_epoch_end(validation)
    }

    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<Vec<Action>> {
        let mut actions = self.forget_early();
        let reported = match self.save_top_k {
            0 => None,
            _ => epoch.reported(&self.monitor)?,
        };
        if let Some(value) = reported {
            let kept = self.keep_best(epoch, value);
            actions.retain(|old| !kept.iter().any(|new| is_of_one_file(old, new)));
            actions.extend(kept);
        }
        if self.save_last {
            actions.push(self.last());
        }
        Ok(actions)
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put("best", &self.best)?;
        if let Some(early) = &self.early {
            state.put("early", early)?;
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        self.best = state.get("best")?;
        self.early =
            state.values().contains_key("early").then(|| state.get("early")).transpose()?;
        // Keeps only files that exist in this callback's folder. Files in another folder belong to
        // the run that was resumed. Other files may have been deleted after the state was saved.
        let here = |path: &Path| path.parent() == Some(self.folder.as_path()) && path.exists();
        self.best.retain(|(_, path)| here(path));
        Ok(())
    }
}
