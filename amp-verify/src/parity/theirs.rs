//! Runs the PyTorch version in a Python process, which receives the batches on which the model in
//! Rust trains.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use amp_core::{
    Error, LightningModule, Result, TrainerConfig,
    data::{AnyBatch, DataLoader},
    precision::{Policy, Precision},
    tch::{self, Device, Tensor},
    weights,
};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use super::{
    ours::{self, Ours},
    skips::Attempt,
};
use crate::{
    case::Case,
    python::{Process, device_name, unexpected},
    registry::Twin,
};

/// The Python program that runs a PyTorch version.
const PROGRAM: &str = include_str!("program.py");
/// The number of bytes of batches that are collected before they are sent together to the PyTorch
/// version's process.
const CHUNK: usize = 1 << 26;

/// A running process that trains a PyTorch version, and the temporary folder with the files that
/// the process reads.
pub(super) struct Theirs {
    process: Process,
    folder: TempDir,
    /// The versions of Python and torch in this process.
    pub(super) versions: BTreeMap<String, String>,
}

/// The results of training a PyTorch version.
#[derive(Default)]
pub(super) struct Ran {
    /// The loss of each batch, in the order of training.
    pub(super) losses: Vec<f64>,
    /// The indices of the skipped optimizer steps, from 0.
    pub(super) skipped: Vec<u64>,
    /// The attempted steps, if the loss is scaled.
    pub(super) attempts: Vec<Attempt>,
    pub(super) scale: Option<f64>,
    pub(super) metric: Option<f64>,
    pub(super) peak_memory_bytes: Option<u64>,
    steps: u64,
}

#[derive(Deserialize)]
struct Trained {
    losses: Vec<Option<f64>>,
    skipped: Vec<bool>,
    scale: Option<f64>,
    /// For each attempted step, the loss scale and the largest gradient. Empty if the loss is not
    /// scaled.
    #[serde(default)]
    attempts: Vec<(f64, Option<f64>)>,
}

#[derive(Deserialize)]
struct Ended {
    metric: Option<f64>,
    peak_memory_bytes: Option<u64>,
}

impl Theirs {
    /// Starts the process for the PyTorch version and waits until the process has loaded torch.
    ///
    /// # Errors
    /// When the interpreter `python` does not exist or has no torch.
    pub(super) fn start(python: &Path, name: &str, twin: &Twin, device: Device) -> Result<Self> {
        let failed = |error| Error::io(std::env::temp_dir(), error);
        let folder = tempfile::tempdir().map_err(failed)?;
        let write = |file: &str, text: &str| -> Result<PathBuf> {
            let path = folder.path().join(file);
            fs::write(&path, text).map_err(|error| Error::io(&path, error))?;
            Ok(path)
        };
        let (program, script) = (write("parity.py", PROGRAM)?, write("twin.py", twin.python)?);
        let threads = tch::get_num_threads().to_string();
        let arguments = [
            program.into(),
            "--twin".into(),
            script.into(),
            "--name".into(),
            name.into(),
            "--device".into(),
            device_name(device).into(),
            "--threads".into(),
            threads.into(),
        ];
        let mut process = Process::start(python, arguments)?;
        let versions = process.versions()?;
        Ok(Self { process, folder, versions })
    }

    /// Returns the path of the file for the initial weights.
    pub(super) fn weights(&self) -> PathBuf {
        self.folder.path().join("weights.safetensors")
    }

    /// Trains and validates the PyTorch version. The PyTorch version starts from the weights in the
    /// file [`weights`](Self::weights), and uses the hyperparameters and the training plan of
    /// `ours`.
    ///
    /// # Errors
    /// When the PyTorch version reports an error, or a batch cannot be read or written.
    pub(super) fn train(&mut self, case: &Case, precision: Precision, ours: &Ours) -> Result<Ran> {
        let config = ours::config(case, precision)?;
        let prepare = json!({
            "precision": precision.to_string(),
            "weights": self.weights(),
            "hyperparameters": ours.hyperparameters,
            "plan": ours.plan,
            "clip": config.optimization.gradient_clip,
            "scaler": config.numerics.scaler,
        });
        self.process.ask(&json!({ "prepare": prepare }))?;
        // Reads again the examples on which the model in Rust has already trained. The tensors stay
        // on the host and in f32, because the PyTorch version's process converts them.
        let host = TrainerConfig { precision: Precision::F32True, device: Device::Cpu, ..config };
        let loader = host.train_loader(&case.data)?;
        let model = case.build()?;
        let mut ran = Ran::default();
        for epoch in 0..host.max_epochs {
            if ran.is_over(&host) {
                break;
            }
            self.epoch(&host, &loader, epoch.cast_unsigned(), model.as_ref(), &mut ran)?;
            if !ran.is_over(&host) {
                self.process.ask(&json!({ "epoch_end": true }))?;
            }
        }
        self.validate(case, host.policy())?;
        let answer = self.process.ask(&json!({ "end": true }))?;
        let ended = Ended::deserialize(&answer).map_err(|_| unexpected(&answer))?;
        Ok(Ran { metric: ended.metric, peak_memory_bytes: ended.peak_memory_bytes, ..ran })
    }

    fn epoch(
        &mut self,
        config: &TrainerConfig,
        loader: &DataLoader,
        epoch: u64,
        model: &dyn LightningModule,
        ran: &mut Ran,
    ) -> Result<()> {
        let window = config.optimization.accumulate_grad_batches as usize;
        let mut chunk = Chunk::default();
        let mut batches = loader.epoch(epoch, 0)?;
        loop {
            let step = batches.by_ref().take(window).collect::<Result<Vec<_>>>()?;
            let is_last = step.is_empty() || ran.is_over(config);
            if !is_last {
                ran.steps += 1;
                chunk.add(model, step)?;
            }
            if !chunk.shares.is_empty() && (is_last || chunk.bytes > CHUNK) {
                self.send(std::mem::take(&mut chunk), ran)?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    fn send(&mut self, chunk: Chunk, ran: &mut Ran) -> Result<()> {
        let path = self.folder.path().join("train.safetensors");
        write(&chunk.batches, &path)?;
        let answer = self.process.ask(&json!({ "train": path, "shares": chunk.shares }))?;
        let trained = Trained::deserialize(&answer).map_err(|_| unexpected(&answer))?;
        let steps = chunk.shares.len();
        if trained.skipped.len() != steps || trained.losses.len() != chunk.batches.len() {
            return Err(unexpected(&answer));
        }
        ran.losses.extend(trained.losses.into_iter().map(|loss| loss.unwrap_or(f64::NAN)));
        let first = ran.steps - steps as u64;
        let attempts = (first..).zip(&trained.skipped).zip(&trained.attempts);
        ran.attempts.extend(attempts.map(|((step, skipped), (scale, largest))| Attempt {
            step,
            scale: *scale,
            largest: *largest,
            skipped: *skipped,
        }));
        let skipped = trained.skipped.into_iter().zip(first..).filter(|(skipped, _)| *skipped);
        ran.skipped.extend(skipped.map(|(_, step)| step));
        ran.scale = trained.scale;
        Ok(())
    }

    fn validate(&mut self, case: &Case, policy: Policy) -> Result<()> {
        let path = self.folder.path().join("validate.safetensors");
        for (_, set) in case.data.val.iter().take(1) {
            let loader = case.data.loader(set, policy)?;
            let mut chunk = Chunk::default();
            for batch in loader.epoch(0, 0)? {
                chunk.push(batch?);
                if chunk.bytes > CHUNK {
                    self.send_validation(std::mem::take(&mut chunk), &path)?;
                }
            }
            self.send_validation(chunk, &path)?;
        }
        Ok(())
    }

    fn send_validation(&mut self, chunk: Chunk, path: &Path) -> Result<()> {
        if chunk.batches.is_empty() {
            return Ok(());
        }
        write(&chunk.batches, path)?;
        self.process.ask(&json!({ "validate": path, "batches": chunk.batches.len() })).map(drop)
    }
}

impl Ran {
    /// Returns whether PyTorch's run has reached `max_steps`.
    fn is_over(&self, config: &TrainerConfig) -> bool {
        config.max_steps.is_some_and(|most| self.steps >= most)
    }
}

/// Batches that are sent to the PyTorch version's process in one file.
#[derive(Default)]
struct Chunk {
    batches: Vec<AnyBatch>,
    /// For each optimizer step, the factors with which the losses of its batches are multiplied
    /// before they are added. The factors of a step sum to 1.
    shares: Vec<Vec<f64>>,
    bytes: usize,
}

impl Chunk {
    /// Adds the batches of one optimizer step. The factor of a batch's loss is proportional to the
    /// number of elements (for example examples or tokens) over which this loss is a mean.
    fn add(&mut self, model: &dyn LightningModule, step: Vec<AnyBatch>) -> Result<()> {
        let counts = match step.as_slice() {
            [_] => vec![1.0],
            several => several.iter().map(|b| model.loss_weight(b)).collect::<Result<_>>()?,
        };
        let sum: f64 = counts.iter().sum();
        self.shares.push(counts.into_iter().map(|count| count / sum).collect());
        step.into_iter().for_each(|batch| self.push(batch));
        Ok(())
    }

    fn push(&mut self, batch: AnyBatch) {
        let size = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        self.bytes += batch.tensors().map(|(_, tensor)| size(tensor)).sum::<usize>();
        self.batches.push(batch);
    }
}

fn write(batches: &[AnyBatch], path: &Path) -> Result<()> {
    let tensors = batches.iter().enumerate().flat_map(|(at, batch)| {
        batch.tensors().map(move |(name, tensor)| (format!("{at}/{name}"), tensor))
    });
    weights::save_tensors(tensors, path, BTreeMap::new())
}
