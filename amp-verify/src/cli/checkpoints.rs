use std::{fs, path::PathBuf, str::FromStr};

use amp_core::{
    Result,
    callback::{Mode, ModelCheckpoint},
    checkpoint,
    trainer::Change,
};
use clap::Args;

use crate::{options::positive, registry::Judge};

/// What is saved, and what a run goes on from.
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Save the run in this folder: its best epochs, and the last as last.safetensors
    #[arg(long, value_name = "FOLDER")]
    pub checkpoint_dir: Option<PathBuf>,
    /// How many of the best epochs to keep
    #[arg(long, value_name = "K", default_value_t = 3)]
    pub save_top_k: usize,
    /// Save last.safetensors after every N optimizer steps too
    #[arg(long, value_name = "N", value_parser = positive, requires = "checkpoint_dir")]
    pub every_n_train_steps: Option<u64>,
    /// When the run ends with an error, save it as it was before the step that failed, as
    /// on_error.safetensors
    #[arg(long, requires = "checkpoint_dir", conflicts_with = "save_weights_only")]
    pub save_on_error: bool,
    /// Save the weights alone, without what a run needs to go on
    #[arg(long, requires = "checkpoint_dir")]
    pub save_weights_only: bool,
    /// Go on from this checkpoint: a file, a folder for its newest one, FOLDER/last or FOLDER/best
    #[arg(long, value_name = "PATH")]
    pub resume: Option<PathBuf>,
    /// What the run may have other than the saved one, separated by commas: lr, optimizer, epochs, batch-size,
    /// data; the schedule goes on at its place under the new options
    #[arg(long, value_name = "CHANGES", value_delimiter = ',', value_parser = Change::from_str)]
    #[arg(requires = "resume")]
    pub resume_with: Vec<Change>,
}

impl CheckpointArgs {
    /// The checkpoint to go on from.
    ///
    /// # Errors
    /// When there is none where the user said, or a file of the folder is damaged.
    pub fn resume_from(&self) -> Result<Option<PathBuf>> {
        self.resume.as_deref().map(checkpoint::find).transpose()
    }

    /// Where the last state of the run is saved, if anywhere.
    pub fn last(&self) -> Option<PathBuf> {
        let folder = self.checkpoint_dir.as_ref().filter(|_| !self.save_weights_only)?;
        Some(folder.join("last.safetensors"))
    }

    /// Where the run is saved when it ends with an error, if anywhere.
    pub fn on_error(&self) -> Option<PathBuf> {
        let folder = self.checkpoint_dir.as_ref().filter(|_| self.save_on_error)?;
        Some(folder.join("on_error.safetensors"))
    }

    /// What saves the best epochs by the model's judge, where that was asked for.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn callback(&self, judge: Judge) -> Result<Option<ModelCheckpoint>> {
        let Some(folder) = &self.checkpoint_dir else { return Ok(None) };
        let mode = if judge.direction.is_higher() { Mode::Max } else { Mode::Min };
        let mut checkpoint = ModelCheckpoint::new(folder, judge.name, mode)?
            .save_top_k(self.save_top_k)
            .save_last(true)
            .save_weights_only(self.save_weights_only);
        if let Some(steps) = self.every_n_train_steps {
            checkpoint = checkpoint.every_n_train_steps(steps);
        }
        Ok(Some(checkpoint))
    }

    /// Whether the folder is there.
    pub fn has_folder(&self) -> bool {
        self.checkpoint_dir.as_ref().is_some_and(|folder| folder.exists())
    }

    /// Removes the folder again if nothing was saved there.
    pub fn remove_empty_folder(&self) {
        if let Some(folder) = &self.checkpoint_dir {
            // The system refuses to remove one that holds something, which is what is wanted.
            let _ = fs::remove_dir(folder);
        }
    }
}
