//! `cargo amp margins`: unchanged runs over seeds, and what they differ by.

use std::{collections::BTreeMap, path::PathBuf, sync::Mutex, thread};

use amp_core::{Error, Result, file::Staged, hardware, precision::Precision, trainer::Check};
use clap::{Args, ValueEnum};

use super::{
    FirstSteps, Margins, MetricSpread, ModelMargin, Population, StepSpreads, goldens,
    kernel_sets::{self, KernelSet},
};
use crate::{
    diagnose::Islands,
    gate::{Cache, Figures, Job, Outcome, Pool, Task, Worker},
    registry::{Direction, Model, Registry},
    verdict::{mean, standard_deviation},
};

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// The spread of each model's metric over seeds, from which its margin follows; on the CPU
    Metric,
    /// How far first steps are from 32-true ones, over seeds and kernels
    Steps,
    /// How far the figures of goldens move between CPUs, next to each golden as NAME.spread.json
    Goldens,
}

/// Options of `margins`.
#[derive(Debug, Args)]
pub struct MarginsArgs {
    /// The models, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub model: Vec<String>,
    /// What to record, separated by commas [default: metric and steps on a CPU, steps on CUDA]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub what: Vec<What>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Seeds of the metric's spread
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub seeds: usize,
    /// Seeds of the first steps' spread; on a CPU each runs under one of ten sets of kernels
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub step_seeds: usize,
    /// The folder of the goldens [default: tests/goldens of the project]
    #[arg(long, value_name = "FOLDER")]
    pub goldens: Option<PathBuf>,
    /// Add this CPU's own kernels to the recorded spread of goldens
    #[arg(long)]
    pub add: bool,
    /// Processes at a time [default: one for each core of a CPU, 8 on CUDA]
    #[arg(long, value_name = "N")]
    pub processes: Option<usize>,
}

/// The precisions that are recorded: all but the baseline.
const PRECISIONS: &[Precision] = Precision::ALL.split_at(1).1;
/// Seeds begin here, away from those that the gate uses.
const METRIC_SEED: u64 = 100;
const STEP_SEED: u64 = 1000;
const GPU_PROCESSES: usize = 8;
/// A margin is rounded up to a multiple of this for a metric that is a share: half a percentage
/// point.
const MARGIN_STEP: f64 = 0.005;
/// A margin is so many times the widest standard deviation.
const MARGIN_SIGMAS: f64 = 3.0;

/// Records what was asked for into the project's `margins.json`; returns what is to be printed.
///
/// # Errors
/// When an option is out of range, a run fails, or the file cannot be written.
pub fn command(registry: &Registry, args: &MarginsArgs) -> Result<String> {
    let models: Vec<Model> = match args.model.as_slice() {
        [] => registry.models().map(|model| Model::clone(model)).collect(),
        names => {
            let find = |name: &String| registry.find(Some(name)).map(|model| Model::clone(model));
            names.iter().map(find).collect::<Result<_>>()?
        }
    };
    for (name, seeds) in [("seeds", args.seeds), ("step-seeds", args.step_seeds)] {
        if seeds < 3 {
            return Err(Error::config(format!("{name} {seeds}: it must be at least 3")));
        }
    }
    if args.processes == Some(0) {
        return Err(Error::config("processes 0: it must be at least 1"));
    }
    let device = hardware::parse_device(&args.device)?;
    let kind = if device.is_cuda() { "cuda" } else { "cpu" };
    let what: &[What] = match args.what.as_slice() {
        [] if device.is_cuda() => &[What::Steps],
        [] => &[What::Metric, What::Steps],
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
    if !what.iter().any(|what| *what != What::Goldens) {
        return Ok(text);
    }
    let path = registry.project().margins_file();
    // What is recorded of other models stays.
    let mut margins = registry.margins()?;
    let file = Staged::create(&path)?;
    let recorder = Recorder { registry, args, device: &args.device, is_cuda: device.is_cuda() };
    if what.contains(&What::Metric) {
        for model in &models {
            let recorded = recorder.metric(model)?;
            text += &format!("{}: margin {}\n", model.name(), recorded.margin);
            margins.models.insert(model.name().to_owned(), recorded);
        }
    }
    if what.contains(&What::Steps) {
        let recorded = recorder.steps(&models)?;
        text += &format!(
            "first steps on {kind}, {} seeds each: {}\n",
            recorded.n,
            recorded.models.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        );
        merge(&mut margins, kind, recorded)?;
    }
    margins.recorded_by = "cargo amp margins".into();
    let json = serde_json::to_string_pretty(&margins);
    file.write((json.map_err(|error| Error::io(&path, error.into()))? + "\n").as_bytes())?;
    Ok(text + &format!("written to {}\n", path.display()))
}

/// Adds newly recorded models to what is known on this kind of device, which has one number of seeds.
fn merge(margins: &mut Margins, kind: &str, recorded: FirstSteps) -> Result<()> {
    match margins.first_steps.get_mut(kind) {
        Some(known) if known.models.keys().any(|name| !recorded.models.contains_key(name)) => {
            if known.n != recorded.n {
                return Err(Error::config(format!(
                    "margins.json has {} seeds of other models on {kind}, these are {}: use \
                     --step-seeds {}, or record all models",
                    known.n, recorded.n, known.n
                )));
            }
            known.device = recorded.device;
            known.models.extend(recorded.models);
        }
        _ => {
            margins.first_steps.insert(kind.to_owned(), recorded);
        }
    }
    Ok(())
}

struct Recorder<'a> {
    registry: &'a Registry,
    args: &'a MarginsArgs,
    device: &'a str,
    is_cuda: bool,
}

impl Recorder<'_> {
    fn job(&self, model: &Model, precision: Precision, seed: u64, task: Task) -> Job {
        Job {
            model: model.name().to_owned(),
            precision,
            seed,
            epochs: model.quick(),
            device: self.device.to_owned(),
            tf32: false,
            deterministic: false,
            check: Check::default(),
            task,
            islands: Islands::new(),
            fault: None,
        }
    }

    /// The spread over seeds of how much worse each precision is than 32-true.
    fn metric(&self, model: &Model) -> Result<ModelMargin> {
        let processes = if self.is_cuda { 1 } else { self.args.processes.unwrap_or_else(cores) };
        let threads = (cores() / processes).max(1);
        let mut pool = Pool::new(self.registry, processes, threads, Cache::none())?;
        let seeds = (0..self.args.seeds as u64).map(|index| METRIC_SEED + index);
        let job = |precision, seed| self.job(model, precision, seed, Task::Train);
        let all = seeds.clone().flat_map(|seed| Precision::ALL.map(|p| job(p, seed)));
        pool.run(all.collect::<Vec<_>>())?;
        let metric = |precision: Precision, seed: u64| -> Result<f64> {
            let outcome = pool.outcome(&job(precision, seed));
            // A metric beside a loss that is not finite means nothing.
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
        Ok(ModelMargin { margin, n: self.args.seeds, epochs: model.quick(), spread })
    }

    /// How far first steps are from 32-true ones, over seeds and, on a CPU, kernels.
    fn steps(&self, models: &[Model]) -> Result<FirstSteps> {
        // Each seed runs under one set of kernels, each set under as many seeds. A GPU has one set,
        // and several processes keep it busy.
        let processes = self.args.processes;
        let (sets, at_once): (Vec<KernelSet>, usize) = match self.is_cuda {
            true => {
                let count = processes.unwrap_or(GPU_PROCESSES);
                (vec![kernel_sets::own(); count], count)
            }
            false => (kernel_sets::all(), processes.unwrap_or_else(cores)),
        };
        let shares: Vec<(usize, Vec<Job>)> = (0..sets.len())
            .map(|at| {
                let seeds = (0..self.args.step_seeds).filter(|seed| seed % sets.len() == at);
                let jobs = seeds.flat_map(|seed| {
                    let seed = STEP_SEED + seed as u64;
                    models.iter().flat_map(move |model| {
                        PRECISIONS.iter().map(move |precision| {
                            self.job(model, *precision, seed, Task::Conformance)
                        })
                    })
                });
                (at, jobs.collect())
            })
            .collect();
        let done = Mutex::new(Vec::new());
        let open = Mutex::new(shares);
        let lock = |error: std::sync::PoisonError<_>| error.into_inner();
        thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    loop {
                        let share = open.lock().unwrap_or_else(|e| e.into_inner()).pop();
                        let Some((at, jobs)) = share else { break };
                        let outcomes = run_in(&sets[at], jobs);
                        done.lock().unwrap_or_else(lock).push(outcomes);
                    }
                });
            }
        });
        let mut samples: BTreeMap<(String, &str), Vec<Figures>> = BTreeMap::new();
        for outcomes in done.into_inner().unwrap_or_else(|error| error.into_inner()) {
            for (job, outcome) in outcomes? {
                let figures = outcome.conformance.clone().ok_or_else(|| {
                    Error::config(format!(
                        "{} under {}, seed {}: {}; nothing was recorded",
                        job.model,
                        job.precision,
                        job.seed,
                        first_failure(&outcome)
                    ))
                })?;
                samples.entry((job.model, job.precision.name())).or_default().push(figures);
            }
        }
        let mut recorded: BTreeMap<String, BTreeMap<String, StepSpreads>> = BTreeMap::new();
        for ((model, precision), figures) in samples {
            recorded.entry(model).or_default().insert(precision.to_owned(), spreads(&figures));
        }
        Ok(FirstSteps { device: self.machine()?, n: self.args.step_seeds, models: recorded })
    }

    fn machine(&self) -> Result<String> {
        if !self.is_cuda {
            return Ok(format!("{}: {}", kernel_sets::processor(), kernel_sets::DESCRIPTION));
        }
        let device = hardware::parse_device(self.device)?;
        Ok(hardware::Fingerprint::of(device)?.device)
    }
}

/// Does the jobs in a process of this binary that runs these kernels.
fn run_in(set: &KernelSet, jobs: Vec<Job>) -> Result<Vec<(Job, Outcome)>> {
    let mut worker = Worker::start(set.threads, &set.environment)?;
    Ok(jobs.into_iter().map(|job| (job.clone(), worker.execute(&job))).collect())
}

fn first_failure(outcome: &Outcome) -> String {
    outcome.failures.first().map_or("it gave no figure".to_owned(), |first| first.text.clone())
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// δ of the widest standard deviation over the precisions.
fn margin_of(direction: Direction, widest: f64) -> f64 {
    let margin = MARGIN_SIGMAS * widest;
    match direction {
        Direction::HigherIsBetter => {
            let steps = (margin / MARGIN_STEP).ceil().max(1.0);
            (steps * MARGIN_STEP * 1e4).round() / 1e4
        }
        // Two digits are enough of a spread over few seeds; rounded up.
        Direction::LowerIsBetter => {
            let unit = 10.0_f64.powf(margin.max(1e-6).log10().floor() - 1.0);
            significant((margin.max(1e-6) / unit).ceil() * unit)
        }
    }
}

fn spreads(figures: &[Figures]) -> StepSpreads {
    let of = |figure: fn(&Figures) -> f64| figures.iter().map(figure).collect::<Vec<f64>>();
    StepSpreads {
        gradient_error: error_population(&of(|f| f.gradient_error)),
        update_error: error_population(&of(|f| f.update_error)),
        loss_error: loss_population(&of(|f| f.loss_error)),
        update_bias: population(&of(|f| f.update_bias)),
        norm_bias: population(&of(|f| f.norm_bias)),
    }
}

/// Of an error the square is a sum of squares, whose cube root is close to normal (Wilson and
/// Hilferty 1931): mean and deviation are those of its power 2/3.
fn error_population(values: &[f64]) -> Population {
    let roots: Vec<f64> = values.iter().map(|value| value.powf(2.0 / 3.0)).collect();
    Population { most: most(values), ..population(&roots) }
}

/// A difference has two sides around a mean.
fn population(values: &[f64]) -> Population {
    let (mean, sigma) = (mean(values), standard_deviation(values));
    Population { mean: significant(mean), sigma: significant(sigma), most: most(values) }
}

/// The sign of a loss's difference is not known: its mean is taken as zero.
fn loss_population(values: &[f64]) -> Population {
    let squares = values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64;
    Population { mean: 0.0, sigma: significant(squares.sqrt()), most: most(values) }
}

fn most(values: &[f64]) -> f64 {
    significant(values.iter().fold(0.0, |most: f64, value| most.max(value.abs())))
}

/// Four significant digits.
fn significant(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// Six decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}
