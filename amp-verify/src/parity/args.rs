//! The command-line options of `parity`.

use std::{path::PathBuf, str::FromStr, sync::Arc};

use amp_core::{
    Error, Result, hardware,
    precision::{Kernels, Precision},
    tch,
    tch::Device,
};
use clap::Args;

use crate::{
    changes::Changes,
    length::Length,
    options::{check_margin, positive},
    registry::{Model, Registry, Twin},
};

/// The precisions that are compared by default: those that PyTorch has as well.
const PRECISIONS: [Precision; 3] = [Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed];

/// The command-line options of `parity`.
#[derive(Debug, Args)]
pub struct ParityArgs {
    /// The models [default: all models with a PyTorch version]
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// Precisions to compare, separated by commas: 32-true, 16-mixed or bf16-mixed
    /// [default: these three]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = Precision::from_str)]
    pub precision: Vec<Precision>,
    /// The device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Number of seeds, at least 2. For each seed the model and its PyTorch version start with the
    /// same weights and use the same batches
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub seeds: u64,
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Epochs [default: the model's own]
    #[arg(long, value_name = "N")]
    pub epochs: Option<i64>,
    /// End training after N optimizer steps, if this is before the end of the last epoch
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_steps: Option<u64>,
    /// The margin: how far the metrics of the model and of its PyTorch version may differ on
    /// average [default: the margin that is declared or recorded for the same length of training]
    #[arg(long, value_name = "M")]
    pub margin: Option<f64>,
    /// Number of batches at the start whose losses are compared with the PyTorch version's
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = positive)]
    pub losses: u64,
    /// Kernels of the Rust model's layers and losses on CUDA: own (amp-core's), or libtorch (which
    /// round as PyTorch does). If the model and its PyTorch version skip different steps, the model
    /// also runs with libtorch's kernels
    #[arg(long, value_name = "WHOSE", value_parser = Kernels::from_str,
          default_value_t = Kernels::default())]
    pub kernels: Kernels,
    /// A Python interpreter with torch
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub python: PathBuf,
    /// Threads of one CPU operation, in Rust and in PyTorch [default: all cores]
    #[arg(long)]
    pub threads: Option<i32>,
    /// Store the results in this folder, and reuse them if the binary, the machine and the options
    /// are the same
    #[arg(long, value_name = "FOLDER")]
    pub cache: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Do not report progress on standard error
    #[arg(long)]
    pub quiet: bool,
}

/// What to compare: the options of `parity`, after they were checked.
pub(super) struct Plan {
    pub(super) device: Device,
    pub(super) subjects: Vec<Subject>,
    pub(super) precisions: Vec<Precision>,
}

/// A model, its PyTorch version, and the margin by which their metrics may differ.
pub(super) struct Subject {
    pub(super) model: Arc<Model>,
    pub(super) twin: Twin,
    pub(super) margin: f64,
}

impl ParityArgs {
    /// Checks the options and looks up the models.
    pub(super) fn plan(&self, registry: &Registry) -> Result<Plan> {
        if self.seeds < 2 {
            let text = "it must be at least 2, to distinguish a difference from chance";
            return Err(Error::config(format!("seeds {}: {text}", self.seeds)));
        }
        check_margin(self.margin)?;
        if let Some(threads) = self.threads {
            if threads < 1 {
                return Err(Error::config(format!("threads {threads}: it must be at least 1")));
            }
            tch::set_num_threads(threads);
        }
        let asked = if self.precision.is_empty() { &PRECISIONS[..] } else { &self.precision };
        let mut precisions = Vec::new();
        for precision in asked {
            if !PRECISIONS.contains(precision) {
                return Err(Error::config(format!(
                    "PyTorch has no precision {precision}: choose among 32-true, 16-mixed and bf16-mixed"
                )));
            }
            if !precisions.contains(precision) {
                precisions.push(*precision);
            }
        }
        let device = hardware::parse_device(&self.device)?;
        hardware::set_numerics(false, false)?;
        Ok(Plan { device, subjects: self.subjects(registry)?, precisions })
    }

    fn subjects(&self, registry: &Registry) -> Result<Vec<Subject>> {
        let advice =
            "declare one with `.twin(Twin::new(include_str!(\"….py\"), include_str!(\"….rs\")))`";
        let subject = |model: &Arc<Model>, twin: &Twin| -> Result<Subject> {
            let margin = match self.margin {
                Some(margin) => margin,
                None => {
                    let changes = Changes { max_steps: self.max_steps, ..Changes::default() };
                    let length = self.epochs.map_or(model.length(), Length::Epochs);
                    registry.margin(model, &changes, length)?
                }
            };
            Ok(Subject { model: Arc::clone(model), twin: twin.clone(), margin })
        };
        if self.models.is_empty() {
            let all = registry.models();
            let twins = all.filter_map(|model| Some(subject(model, model.own_twin()?)));
            let subjects = twins.collect::<Result<Vec<_>>>()?;
            if subjects.is_empty() {
                let name = registry.project().name();
                return Err(Error::config(format!(
                    "no model of {name} has a PyTorch version: {advice}"
                )));
            }
            return Ok(subjects);
        }
        let find = |name: &String| -> Result<Subject> {
            let model = registry.find(Some(name))?;
            let twin = model
                .own_twin()
                .ok_or_else(|| Error::config(format!("{name} has no PyTorch version: {advice}")))?;
            subject(model, twin)
        };
        self.models.iter().map(find).collect()
    }
}
