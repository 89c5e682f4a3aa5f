//! `cargo amp parity`: compares models with their PyTorch versions.
//!
//! The model in Rust and its PyTorch version start with the same weights, and use the same batches,
//! hyperparameters, precision and schedule. The module `ours` writes the initial weights to a file
//! and trains the model in Rust. `theirs` sends the batches to a Python process, which trains the
//! PyTorch version. `report` compares the results of the two: the losses of the first batches (with
//! bounds from `bound`), the skipped optimizer steps (with `skips`), and the final metric over
//! several seeds.

mod args;
mod bound;
mod cache;
mod lines;
mod ours;
mod report;
mod skips;
mod theirs;

pub use args::ParityArgs;
pub use report::{First, Pair, Report, Row, SCHEMA, Seed, Status};
pub use skips::{Again, Attempt, Rounding};

use std::collections::BTreeMap;

use amp_core::{
    Result,
    hardware::Fingerprint,
    precision::{Kernels, Precision},
    tch::Device,
    trainer::NumericsConfig,
};

use self::{
    args::Subject,
    cache::Cache,
    theirs::{Ran, Theirs},
};
use crate::{
    case::{Case, Choices},
    length::Length,
    registry::Registry,
    text::one_line,
};

/// Trains the requested models and their PyTorch versions, and compares them. Before each
/// comparison, passes a message about the progress to `tell`.
///
/// # Errors
/// When an option is invalid, or the model in Rust fails. If a PyTorch version fails, its row in
/// the report contains the error.
pub fn run(registry: &Registry, args: &ParityArgs, tell: &dyn Fn(&str)) -> Result<Report> {
    let plan = args.plan(registry)?;
    let (mut rows, mut versions) = (Vec::new(), BTreeMap::new());
    let cache = args.cache.as_deref().map(Cache::open).transpose()?;
    let fingerprint = Fingerprint::of(plan.device)?;
    for subject in &plan.subjects {
        let name = subject.model.name();
        let start = || {
            Theirs::start(&args.python, name, &subject.twin, plan.device)
                .map_err(|error| error.at(&format!("the PyTorch version of {name}")))
        };
        let mut theirs = None;
        if versions.is_empty() {
            let first = start()?;
            versions.clone_from(&first.versions);
            theirs = Some(first);
        }
        for precision in &plan.precisions {
            let what = format!("{name} under {precision}");
            let file = cache
                .as_ref()
                .map(|cache| cache.path(args, subject, *precision, &fingerprint, &versions));
            if let Some(row) = file.as_deref().and_then(cache::read) {
                rows.push(row);
                continue;
            }
            tell(&what);
            let comparison =
                Comparison { registry, args, subject, device: plan.device, precision: *precision };
            let theirs = match &mut theirs {
                Some(theirs) => theirs,
                none => none.insert(start()?),
            };
            let row = comparison.row(theirs).map_err(|error| error.at(&what))?;
            // If the PyTorch version failed, the row lacks the results of some seeds. It is not
            // stored in the cache, because the next call of `parity` may succeed.
            let is_whole = row.seeds.len() as u64 == args.seeds;
            if let Some(file) = file.filter(|_| is_whole) {
                cache::write(&file, &row)?;
            }
            rows.push(row);
        }
    }
    Ok(Report { schema: SCHEMA.to_owned(), fingerprint, versions, rows })
}

/// What is needed to compare one model with its PyTorch version under one precision.
struct Comparison<'a> {
    registry: &'a Registry,
    args: &'a ParityArgs,
    subject: &'a Subject,
    device: Device,
    precision: Precision,
}

impl Comparison<'_> {
    fn case(&self, seed: u64) -> Result<Case> {
        let choices = Choices {
            length: self.args.epochs.map(Length::Epochs),
            max_steps: self.args.max_steps,
            seed,
            set: self.subject.twin.hyperparameters.clone(),
            numerics: NumericsConfig { kernels: self.args.kernels, ..NumericsConfig::default() },
            ..Choices::default()
        };
        let mut case = Case::new(self.registry, &self.subject.model, choices, self.device)?;
        // Early stopping is switched off, so that the model and its PyTorch version train for the
        // same number of epochs.
        case.early_stopping = None;
        Ok(case)
    }

    fn row(&self, theirs: &mut Theirs) -> Result<Row> {
        let Subject { model, twin, margin } = self.subject;
        let judge = model.judge();
        let lines = Pair {
            ours: lines::of_model(twin.rust, model.name())?,
            theirs: lines::of_twin(twin.python),
        };
        let mut row = Row::new(model.name(), self.precision, judge, lines);
        let mut examples = 1;
        for seed in (0..self.args.seeds).map(|index| self.args.seed.wrapping_add(index)) {
            let case = self.case(seed)?;
            examples = case.data.val.iter().next().map_or(1, |(_, set)| set.len());
            let ours = ours::train(&case, self.precision, &theirs.weights())?;
            let twin = match theirs.train(&case, self.precision, &ours) {
                Ok(twin) => twin,
                Err(error) => {
                    row.failures
                        .push(format!("the PyTorch version: {}", one_line(&error.to_string())));
                    break;
                }
            };
            if row.seeds.is_empty() {
                row.peak_memory_bytes = Some(Pair {
                    ours: Some(ours.peak_memory_bytes),
                    theirs: twin.peak_memory_bytes,
                });
                row.first = Some(self.first_losses(&case, &ours.losses, twin.losses.clone())?);
            }
            let metric = ours.record.last(judge.name).filter(|value| value.is_finite());
            let mut found = Seed {
                seed,
                metric: Pair { ours: metric, theirs: twin.metric },
                skipped: Pair { ours: ours.skipped, theirs: twin.skipped.clone() },
                scale: Pair { ours: ours.record.end.scale, theirs: twin.scale },
                again: None,
            };
            if !found.has_equal_skips(self.args.losses) {
                found.again = Some(self.again(case, &ours.losses, &twin)?);
            }
            row.seeds.push(found);
        }
        row.judge(judge, *margin, examples, self.args.losses);
        Ok(row)
    }

    /// Trains the model in Rust again, to find out whether it and its PyTorch version skip
    /// different steps because of rounding: once with libtorch's kernels, which round as PyTorch
    /// does, once with this library's kernels, and a few times with initial weights that are
    /// perturbed at random.
    fn again(&self, mut case: Case, losses: &[f64], twin: &Ran) -> Result<Again> {
        let mut traced = |kernels: Kernels| {
            case.trainer.numerics.kernels = kernels;
            ours::trace(&case, self.precision)
        };
        let (plain, own) = (traced(Kernels::Libtorch)?, traced(Kernels::Own)?);
        let window = case.trainer.optimization.accumulate_grad_batches.cast_unsigned().max(1);
        let batches = self.args.losses.saturating_mul(window);
        let moved = |run| ours::trace_moved(&case, self.precision, run, batches);
        let moved = (1..=bound::RUNS).map(moved).collect::<Result<Vec<_>>>()?;
        let count = usize::try_from(self.args.losses).unwrap_or(usize::MAX);
        let first = |attempts: &[Attempt]| attempts[..attempts.len().min(count)].to_vec();
        let attempts = Pair { ours: first(&own.attempts), theirs: first(&twin.attempts) };
        let courses = Pair { ours: losses, theirs: &twin.losses[..] };
        Ok(Again {
            skipped: plain.skipped,
            scale: plain.scale,
            rounding: Rounding::of(&attempts.ours, courses, &moved, window),
            attempts,
            libtorch: first(&plain.attempts),
        })
    }

    /// Compares the losses of the first batches in Rust and in PyTorch. Under 32-true, compares
    /// each difference with a bound.
    fn first_losses(&self, case: &Case, own: &[f64], mut other: Vec<f64>) -> Result<First> {
        let count = usize::try_from(self.args.losses).unwrap_or(usize::MAX);
        let own = own[..own.len().min(count)].to_vec();
        other.truncate(count);
        let bounds = match self.precision {
            Precision::F32True => {
                let moved =
                    (1..=bound::RUNS).map(|run| ours::train_moved(case, run, own.len() as u64));
                Some(bound::bounds(&own, &moved.collect::<Result<Vec<_>>>()?))
            }
            _ => None,
        };
        Ok(First::new(Pair { ours: own, theirs: other }, bounds.as_deref()))
    }
}
