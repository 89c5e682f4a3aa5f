use std::{fs, path::PathBuf, str::FromStr};

use amp_core::{
    Result,
    callback::{Callback, ModelCheckpoint},
    checkpoint,
    file::{self, FolderLock},
    trainer::Change,
};
use clap::Args;

use crate::{options::positive, registry::Judge, runner::JudgedBy};

/// Options for saving a run and resuming it.
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Save the run in this folder: its best epochs, and its last state as last.safetensors
    #[arg(long, value_name = "FOLDER")]
    pub checkpoint_dir: Option<PathBuf>,
    /// How many of the best epochs to keep
    #[arg(long, value_name = "K", default_value_t = 3, requires = "checkpoint_dir")]
    pub save_top_k: usize,
    /// Also save last.safetensors after every N optimizer steps
    #[arg(long, value_name = "N", value_parser = positive, requires = "checkpoint_dir")]
    pub every_n_train_steps: Option<u64>,
    /// If the run ends with an error, save the state from before the failed step as
    /// on_error.safetensors
    #[arg(long, requires = "checkpoint_dir", conflicts_with = "save_weights_only")]
    pub save_on_error: bool,
    /// Save only the weights; --resume cannot continue from such a checkpoint
    #[arg(long, requires = "checkpoint_dir")]
    pub save_weights_only: bool,
    /// Continue from this checkpoint: a file, a folder (its newest checkpoint), FOLDER/last or
    /// FOLDER/best
    #[arg(long, value_name = "PATH")]
    pub resume: Option<PathBuf>,
    /// Settings that may differ from those of the saved run, separated by commas: lr, optimizer,
    /// epochs, batch-size, data (the data set and the limit of training batches); the learning rate
    /// schedule continues where it was, with the new settings
    #[arg(long, value_name = "CHANGES", value_delimiter = ',', value_parser = Change::from_str)]
    #[arg(requires = "resume")]
    pub resume_with: Vec<Change>,
}

impl CheckpointArgs {
    /// Returns the checkpoint from which the run resumes.
    ///
    /// # Errors
    /// When there is no checkpoint at the given path, or a file of the folder is damaged.
    pub fn resume_from(&self) -> Result<Option<PathBuf>> {
        self.resume.as_deref().map(checkpoint::find).transpose()
    }

    /// Returns a warning if a new run would save its checkpoints into the folder of an earlier run.
    /// A later `--resume FOLDER` would continue from the checkpoint with the most steps, which may
    /// be the earlier run's.
    pub fn mixes_runs(&self) -> Option<String> {
        let folder = self.checkpoint_dir.as_ref().filter(|_| self.resume.is_none())?;
        checkpoint::latest(folder).ok()??;
        let folder = folder.display();
        Some(format!(
            "{folder} has checkpoints of an earlier run, which a later `--resume {folder}` or \
                 `--resume {folder}/best` may load: continue the earlier run with --resume, or \
                 give a new folder"
        ))
    }

    /// Returns the path of the file in which the run saves its last state. Returns `None` if the
    /// user gave no checkpoint folder, or if only the weights are saved.
    pub fn last(&self) -> Option<PathBuf> {
        let folder = self.checkpoint_dir.as_ref().filter(|_| !self.save_weights_only)?;
        Some(folder.join("last.safetensors"))
    }

    /// Returns the path of the file in which a run that ends with an error saves its state. Returns
    /// `None` if the user did not ask for this file.
    pub fn on_error(&self) -> Option<PathBuf> {
        let folder = self.checkpoint_dir.as_ref().filter(|_| self.save_on_error)?;
        Some(folder.join("on_error.safetensors"))
    }

    /// Locks the checkpoint folder for this process. Returns a function that builds the callback
    /// that saves the best epochs in this folder. Returns `None` if the user gave no folder.
    ///
    /// # Errors
    /// When the folder cannot be created, or another running process saves its checkpoints there.
    pub fn callback(&self) -> Result<Option<JudgedBy>> {
        let Some(folder) = self.checkpoint_dir.clone() else { return Ok(None) };
        file::create_folder(&folder)?;
        let lock = FolderLock::new(&folder)?;
        let (top, weights_only) = (self.save_top_k, self.save_weights_only);
        let steps = self.every_n_train_steps;
        Ok(Some(Box::new(move |judge: Judge| {
            let mut checkpoint = ModelCheckpoint::new(folder, judge.name, judge.direction.mode())?
                .save_top_k(top)
                .save_last(true)
                .save_weights_only(weights_only);
            drop(lock);
            if let Some(steps) = steps {
                checkpoint = checkpoint.every_n_train_steps(steps);
            }
            Ok(Box::new(checkpoint) as Box<dyn Callback>)
        })))
    }

    /// Returns whether the user gave a checkpoint folder and this folder exists.
    pub fn has_folder(&self) -> bool {
        self.checkpoint_dir.as_ref().is_some_and(|folder| folder.exists())
    }

    /// Removes the checkpoint folder if it is empty.
    pub fn remove_empty_folder(&self) {
        if let Some(folder) = &self.checkpoint_dir {
            // This fails if the folder is not empty. Such a folder must stay, so the error is
            // ignored.
            let _ = fs::remove_dir(folder);
        }
    }
}
