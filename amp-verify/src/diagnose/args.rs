use std::{path::PathBuf, str::FromStr};

use amp_core::{Error, Result, file::Staged, hardware::Fingerprint, precision::Precision};
use clap::{Args, ValueEnum};

use super::{
    Check, Cost, Diagnosis, Fix, LayerError, MetricLoss, PolicyFile, Scope,
    checks::{train, with},
    diagnose, fp32,
    reference::Reference,
};
use crate::{
    case::Case,
    layers::{Options, Subject, groups, module_paths},
    options::{Format, RunArgs},
};

/// Which measurement decides whether enough modules are in FP32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Search {
    /// How much worse the validation metric is than that of 32-true
    Metric,
    /// The largest error that a layer makes by itself (with exact inputs) in the first step
    Layers,
}

/// Options of `diagnose`.
#[derive(Debug, Args)]
pub struct DiagnoseArgs {
    /// The precision to diagnose
    #[arg(long, value_name = "NAME", value_parser = Precision::from_str,
          default_value_t = Precision::F16Mixed)]
    pub precision: Precision,
    /// The measurement that decides whether a set of FP32 modules is good enough
    #[arg(long, value_enum, default_value_t = Search::Metric)]
    pub search: Search,
    /// How much worse than under 32-true the metric may be [default: the margin that the registry
    /// declares, or else 0.01]; with --search layers, the largest accepted relative error that a
    /// layer makes by itself [default: 0.05]
    #[arg(long, value_name = "X")]
    pub limit: Option<f64>,
    /// Number of seeds to train with, starting with --seed
    #[arg(long, value_name = "K", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Results of an earlier run of 32-true, to distinguish a changed environment from the effect
    /// of the precision: an output of `verify --output`, or a golden (.snap)
    #[arg(long, value_name = "FILE")]
    pub reference: Option<PathBuf>,
    /// Write the modules that must stay in FP32 to this policy file
    #[arg(long, value_name = "FILE")]
    pub fix: Option<PathBuf>,
    /// Format of the diagnosis
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub run: RunArgs,
}

impl DiagnoseArgs {
    /// Returns the limit of the measurement. `margin` is the margin that the registry declares.
    fn limit(&self, margin: Option<f64>) -> f64 {
        self.limit.unwrap_or(match self.search {
            Search::Metric => margin.unwrap_or(0.01),
            Search::Layers => 0.05,
        })
    }

    /// Finds the modules of the model that must stay in FP32. If the user asked for a policy file,
    /// writes it.
    ///
    /// # Errors
    /// When an option or a file cannot be used, or training fails.
    pub fn diagnose(&self, case: &Case) -> Result<Diagnosis> {
        if self.precision == Precision::F32True {
            return Err(Error::config("32-true is the baseline: choose another --precision"));
        }
        let limit = self.limit(case.model.margin);
        if !(limit >= 0.0 && limit.is_finite()) {
            return Err(Error::config(format!("limit {limit}: it must be a number of at least 0")));
        }
        let _kernels = case.trainer.numerics.kernels.enter();
        let policy = self.fix.as_deref().map(Staged::create).transpose()?;
        let reference = self.reference.as_deref().map(Reference::read).transpose()?;
        let baseline_moved = reference.map(|reference| reference.moved(case)).transpose()?;
        let build = || case.build();
        let batch = case.data.train.head(case.data.batch_size)?;
        let subject = || Subject::new(case, &build, &batch);
        let (layers, modules) = module_paths(&subject())?;
        let scope = Scope {
            overrides: &case.trainer.numerics.overrides,
            layers,
            modules,
            baseline_moved,
            groups: groups(&subject(), self.precision)?,
            suspect: None,
        };
        let mut check: Box<dyn Check> = match self.search {
            Search::Metric => Box::new(MetricLoss::new(case, self.precision, limit, self.seeds)?),
            Search::Layers => {
                let options = Options::new(self.precision);
                Box::new(LayerError { subject: subject(), options, limit })
            }
        };
        let mut diagnosis = diagnose(check.as_mut(), &scope)?;
        if let Some(fix) = &mut diagnosis.fix {
            if self.search == Search::Metric {
                fix.cost = Some(self.cost(case, fix)?);
            }
            if let Some(policy) = policy {
                let reason = format!("{}: {}", self.precision, diagnosis.check);
                let overrides = fp32(&case.trainer.numerics.overrides, &fix.modules);
                let fingerprint = Fingerprint::of(case.trainer.device)?;
                PolicyFile::new(case.model.name, self.precision, fingerprint, reason, overrides)
                    .write(policy)?;
            }
        }
        Ok(diagnosis)
    }

    fn cost(&self, case: &Case, fix: &Fix) -> Result<Cost> {
        let run = |case: &Case| -> Result<(f64, f64)> {
            let record = train(case, self.precision)?;
            let seconds = record.epochs.iter().map(|epoch| epoch.train_seconds).sum();
            Ok((seconds, record.memory.unwrap_or_default().peak_allocated as f64))
        };
        // Both runs train only one epoch, because a longer run without FP32 modules might end early
        // with an error.
        let brief = |overrides| {
            let mut case = with(case, case.trainer.seed, overrides);
            case.trainer.max_epochs = 1;
            case
        };
        let without = run(&brief(&case.trainer.numerics.overrides))?;
        let with_fix = run(&brief(&fp32(&case.trainer.numerics.overrides, &fix.modules)))?;
        Ok(Cost {
            train_seconds_ratio: with_fix.0 / without.0,
            peak_memory_ratio: with_fix.1 / without.1,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        diagnose: DiagnoseArgs,
    }

    /// Checks that the limit of a metric is the declared margin, unless the user gives a limit.
    #[rstest]
    #[case::declared(&[], Some(0.3), 0.3)]
    #[case::not_declared(&[], None, 0.01)]
    #[case::given(&["--limit", "0.2"], Some(0.3), 0.2)]
    #[case::of_layers(&["--search", "layers"], Some(0.3), 0.05)]
    fn the_limit_is_the_margin(
        #[case] given: &[&str],
        #[case] margin: Option<f64>,
        #[case] expected: f64,
    ) {
        let command = Command::parse_from(["amp"].iter().chain(given));
        assert_eq!(command.diagnose.limit(margin), expected);
    }
}
