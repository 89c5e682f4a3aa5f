//! `cargo amp margins`: trains the registered models under all precisions with several seeds, and
//! records how much their metrics differ.

use std::{collections::BTreeMap, path::PathBuf};

use amp_core::{Error, Result, file::Staged, hardware, precision::Precision, trainer::Check};
use clap::{Args, ValueEnum};

use super::{MetricSpread, ModelMargin, goldens};
use crate::{
    case::{Case, Choices},
    changes::Changes,
    gate::{self, Job, Outcome, Task},
    length::Length,
    options::ChangeArgs,
    registry::{Direction, Model, Registry},
    verdict::{mean, standard_deviation},
};

/// What `margins` records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// How much each model's metric differs between precisions, over several seeds; the model's
    /// margin is computed from these differences
    Metric,
    /// How much the results of each golden (recorded results of a test) differ between CPUs,
    /// written next to the golden as NAME.spread.json
    Goldens,
}

/// Options of `margins`.
#[derive(Debug, Args)]
pub struct MarginsArgs {
    /// The models, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub model: Vec<String>,
    /// What to record, separated by commas [default: metric]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub what: Vec<What>,
    /// The device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Number of seeds with which the differences of the metric are measured
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub seeds: usize,
    /// The folder of the goldens [default: tests/goldens of the project]
    #[arg(long, value_name = "FOLDER")]
    pub goldens: Option<PathBuf>,
    /// For goldens: keep the results in NAME.spread.json, and add results of this CPU with its own
    /// kernels
    #[arg(long)]
    pub add: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub changes: ChangeArgs,
    /// Number of processes that run at the same time [default: one for each core of a CPU, 1 on
    /// CUDA]
    #[arg(long, value_name = "N")]
    pub processes: Option<usize>,
}

/// The precisions whose differences from 32-true are recorded: all except 32-true itself.
const PRECISIONS: &[Precision] = Precision::ALL.split_at(1).1;
/// The first seed. The gate uses other seeds, because runs must not be judged with a margin that
/// was computed from the same runs.
const METRIC_SEED: u64 = 100;
/// The margin of a metric that is a fraction, such as an accuracy, is rounded up to a multiple of
/// this step: half a percentage point.
const MARGIN_STEP: f64 = 0.005;
/// The margin is this multiple of sigma, the standard deviation over the seeds of a precision's
/// differences from 32-true. The precision with the largest sigma decides.
const MARGIN_SIGMAS: f64 = 3.0;

/// Records what the options ask for, and returns the text to print. Margins are written to the
/// project's file `margins.json`. The differences between CPUs are written to one file next to each
/// golden.
///
/// # Errors
/// When an option is out of range, a run fails, or a file cannot be read or written.
pub fn command(registry: &Registry, args: &MarginsArgs) -> Result<String> {
    let models: Vec<Model> = match args.model.as_slice() {
        [] => registry.models().map(|model| Model::clone(model)).collect(),
        names => {
            let find = |name: &String| registry.find(Some(name)).map(|model| Model::clone(model));
            names.iter().map(find).collect::<Result<_>>()?
        }
    };
    if args.seeds < 3 {
        return Err(Error::config(format!("seeds {}: it must be at least 3", args.seeds)));
    }
    if args.processes == Some(0) {
        return Err(Error::config("processes 0: it must be at least 1"));
    }
    let device = hardware::parse_device(&args.device)?;
    let changes = args.changes.changes();
    if !changes.is_empty() {
        for model in &models {
            Case::new(registry, model, Choices::from(&changes), device)
                .map_err(|error| error.at(model.name()))?;
        }
    }
    let what: &[What] = match args.what.as_slice() {
        [] => &[What::Metric],
        chosen => chosen,
    };
    let mut text = String::new();
    if what.contains(&What::Goldens) {
        let own = || registry.project().path("tests/goldens");
        let folder = args.goldens.clone().unwrap_or_else(own);
        for name in goldens::record(registry, &folder, &args.model, args.add)? {
            text += &format!("{}\n", folder.join(format!("{name}.spread.json")).display());
        }
    }
    if !what.contains(&What::Metric) {
        return Ok(text);
    }
    let path = registry.project().margins_file();
    // The file is read before it is written, because the entries of other models must be kept.
    let mut margins = registry.margins()?;
    let file = Staged::create(&path)?;
    let recorder = Recorder { registry, args, device: &args.device, changes };
    for model in &models {
        let recorded = recorder.metric(model)?;
        text += &format!("{}: margin {}\n", model.name(), recorded.margin);
        text += &hidden(model, &recorded);
        margins.add(model.name(), recorded);
    }
    margins.recorded_by = "cargo amp margins".into();
    let json = serde_json::to_string_pretty(&margins);
    file.write((json.map_err(|error| Error::io(&path, error.into()))? + "\n").as_bytes())?;
    Ok(text + &format!("written to {}\n", path.display()))
}

/// Returns a note if the margin that the registry declares takes the place of the recorded one.
fn hidden(model: &Model, recorded: &ModelMargin) -> String {
    match model.margin_for(&recorded.changes, recorded.length) {
        Some(declared) => format!(
            "note: the registry declares `.margin({declared})` for {}, which is used in place of the \
             recorded margin {}: remove it from the registry to use the recorded one\n",
            model.name(),
            recorded.margin
        ),
        None => String::new(),
    }
}

struct Recorder<'a> {
    registry: &'a Registry,
    args: &'a MarginsArgs,
    device: &'a str,
    changes: Changes,
}

impl Recorder<'_> {
    fn length(&self, model: &Model) -> Length {
        self.changes.length.unwrap_or(model.quick())
    }

    fn job(&self, model: &Model, precision: Precision, seed: u64, task: Task) -> Job {
        Job {
            changes: self.changes.clone(),
            device: self.device.to_owned(),
            check: Check::default(),
            ..Job::new(model.name(), precision, seed, self.length(model), task)
        }
    }

    /// Trains a model under every precision with every seed. Computes from the metrics how much
    /// worse each precision is than 32-true, and the model's margin.
    fn metric(&self, model: &Model) -> Result<ModelMargin> {
        let mut pool = gate::pool(self.registry, self.device, self.args.processes, 1, None)?;
        let seeds = (0..self.args.seeds as u64).map(|index| METRIC_SEED + index);
        let job = |precision, seed| self.job(model, precision, seed, Task::Train);
        let all = seeds.clone().flat_map(|seed| Precision::ALL.map(|p| job(p, seed)));
        pool.run(all.collect::<Vec<_>>())?;
        let metric = |precision: Precision, seed: u64| -> Result<f64> {
            let outcome = pool.outcome(&job(precision, seed));
            // If a run has a failure, for example a loss that is not finite, its metric has no
            // meaning.
            let sound = outcome.filter(|outcome| outcome.failures.is_empty());
            sound.and_then(|outcome| outcome.metric).ok_or_else(|| {
                let why = outcome.map_or("it was not run".to_owned(), first_failure);
                Error::config(format!(
                    "{} under {precision}, seed {seed}: {why}; nothing was recorded",
                    model.name()
                ))
            })
        };
        let direction = model.judge.direction;
        let mut spread = BTreeMap::new();
        for precision in PRECISIONS {
            let worse = |seed| -> Result<f64> {
                Ok(direction
                    .regression(metric(Precision::F32True, seed)?, metric(*precision, seed)?))
            };
            let worse: Vec<f64> = seeds.clone().map(worse).collect::<Result<_>>()?;
            let (mean, sigma) = (mean(&worse), standard_deviation(&worse));
            let recorded = MetricSpread { mean: rounded(mean), sigma: rounded(sigma) };
            spread.insert(precision.name().to_owned(), recorded);
        }
        let widest = spread.values().map(|spread| spread.sigma).fold(0.0, f64::max);
        let margin = margin_of(direction, widest);
        let first = pool.outcome(&job(Precision::F32True, METRIC_SEED));
        Ok(ModelMargin {
            margin,
            n: self.args.seeds,
            length: self.length(model),
            changes: self.changes.clone(),
            hyperparameters: first.map(|outcome| outcome.hyperparameters.clone()),
            spread,
        })
    }
}

fn first_failure(outcome: &Outcome) -> String {
    outcome.failures.first().map_or("it returned no metric".to_owned(), |first| first.text.clone())
}

/// Computes a model's margin from `widest`, the largest sigma of all precisions.
fn margin_of(direction: Direction, widest: f64) -> f64 {
    let margin = MARGIN_SIGMAS * widest;
    match direction.is_share() {
        true => {
            let steps = (margin / MARGIN_STEP).ceil().max(1.0);
            (steps * MARGIN_STEP * 1e4).round() / 1e4
        }
        // Rounds up to two significant digits. More digits would have no meaning, because the
        // standard deviation is estimated from a few seeds.
        false => {
            let unit = 10.0_f64.powf(margin.max(1e-6).log10().floor() - 1.0);
            significant((margin.max(1e-6) / unit).ceil() * unit)
        }
    }
}

/// Rounds a number to four significant digits.
fn significant(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// Rounds a number to six decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use amp_core::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::model;

    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Net {
        #[layer(linear(2, 1))]
        head: Linear,
    }

    #[rstest]
    #[case::declared(model!(Net).margin(0.25), Length::Epochs(3), true)]
    #[case::of_another_length(model!(Net).margin(0.25), Length::Epochs(7), false)]
    #[case::not_declared(model!(Net), Length::Epochs(3), false)]
    fn a_recorded_margin_that_the_registry_replaces_is_noted(
        #[case] model: Model,
        #[case] length: Length,
        #[case] noted: bool,
    ) {
        let (changes, spread) = (Changes::default(), BTreeMap::new());
        let recorded =
            ModelMargin { margin: 0.02, n: 3, length, changes, hyperparameters: None, spread };
        let said = hidden(&model, &recorded);
        assert_eq!(
            said.contains("`.margin(0.25)` for Net, which is used in place of"),
            noted,
            "{said}"
        );
        assert_eq!(said.is_empty(), !noted, "{said}");
    }
}
