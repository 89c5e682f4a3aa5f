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
    registry::Registry,
};

/// The measurement that decides whether enough modules stay in FP32.
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
    /// The measurement that decides whether enough modules stay in FP32
    #[arg(long, value_enum, default_value_t = Search::Metric)]
    pub search: Search,
    /// Largest accepted result of the measurement. With --search metric: how much worse than under
    /// 32-true the metric may be [default: the model's margin; if options change the model, the
    /// margin recorded with these options]. With --search layers: the relative error that a layer
    /// makes by itself [default: 0.05]
    #[arg(long, value_name = "X", visible_alias = "margin")]
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
    /// Returns the limit of the measurement. For the metric, the default limit is the margin that
    /// the gate uses for the model with the same changes.
    ///
    /// # Errors
    /// When the user gives no limit, and the model has no margin for these changes.
    fn limit(&self, registry: &Registry) -> Result<f64> {
        match (self.limit, self.search) {
            (Some(limit), _) if !(limit >= 0.0 && limit.is_finite()) => {
                Err(Error::config(format!("limit {limit}: it must be a number of at least 0")))
            }
            (Some(limit), _) => Ok(limit),
            (None, Search::Metric) => {
                let model = registry.find(self.run.model.as_deref())?;
                let changes = self.run.changes.changes();
                registry.margin(model, &changes, changes.length.unwrap_or(model.length()))
            }
            (None, Search::Layers) => Ok(0.05),
        }
    }

    /// Finds the modules of the model that must stay in FP32. If the user asked for a policy file,
    /// writes it. `case` is the model of `registry` with the changes that the options ask for.
    ///
    /// # Errors
    /// When an option or a file cannot be used, the model has no margin, or training fails.
    pub fn diagnose(&self, registry: &Registry, case: &Case) -> Result<Diagnosis> {
        if self.precision == Precision::F32True {
            return Err(Error::config("32-true is the baseline: choose another --precision"));
        }
        let limit = self.limit(registry)?;
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
        // Both runs train only one epoch, because non-finite values might end a longer run without
        // the FP32 modules.
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
    use amp_core::{data::DataModule, prelude::*};
    use clap::Parser;
    use rstest::rstest;

    use super::*;
    use crate::{DataSet, Project, model};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        diagnose: DiagnoseArgs,
    }

    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[optimizer(adamw, lr = 1e-3)]
    struct Net {
        #[layer(linear(4, 1))]
        head: Linear,
    }

    fn unused(_: i64) -> Result<DataModule> {
        Err(Error::config("no data"))
    }

    /// Returns the limit of the measurement for these options. The registry declares the margin 0.3,
    /// and `margins.json` contains the margin 0.2 for batches of 32 examples.
    fn limit(given: &[&str]) -> Result<f64> {
        let folder = tempfile::tempdir().map_err(|error| Error::io("a folder", error))?;
        let recorded = r#"{"models": {"Net": [
            {"margin": 0.2, "n": 3, "epochs": 10, "changes": {"batch_size": 32}, "spread": {}}]}}"#;
        std::fs::write(folder.path().join("margins.json"), recorded)
            .map_err(|error| Error::io("margins.json", error))?;
        let registry = Registry::new(Project::new("test", folder.path()))
            .data_set(DataSet::new("data", unused))
            .data_set(DataSet::new("others", unused))
            .model(model!(Net).data("data").judged_by_loss().margin(0.3));
        Command::parse_from(["amp"].iter().chain(given)).diagnose.limit(&registry)
    }

    /// Checks that the limit of a metric is the margin of the model with the same changes, unless
    /// the user gives a limit.
    #[rstest]
    #[case::declared(&[], 0.3)]
    #[case::recorded(&["--batch-size", "32"], 0.2)]
    #[case::given(&["--limit", "0.1"], 0.1)]
    #[case::given_as_margin(&["--margin", "0.1", "--data", "others"], 0.1)]
    #[case::of_layers(&["--search", "layers", "--data", "others"], 0.05)]
    fn the_limit_is_the_margin(#[case] given: &[&str], #[case] expected: f64) {
        assert_eq!(limit(given).ok(), Some(expected));
    }

    /// Checks that a changed model whose margin was not recorded is refused, whichever option
    /// changes it.
    #[rstest]
    #[case::data(&["--data", "others"], "data others")]
    #[case::set(&["--set", "width=3"], "width=3")]
    #[case::epochs(&["--epochs", "4"], "4 epochs")]
    #[case::steps(&["--steps", "1"], "1 step")]
    #[case::max_steps(&["--max-steps", "1"], "at most 1 step")]
    #[case::accumulate(&["--accumulate-grad-batches", "2"], "2 batches per optimizer step")]
    #[case::clip(&["--gradient-clip-val", "0.5"], "gradients clipped to 0.5")]
    #[case::stopping(
        &["--early-stopping", "val_loss", "--patience", "2"],
        "early stopping by val_loss, patience 2"
    )]
    #[case::limit(&["--limit-train-batches", "0.5"], "0.5 of the training batches")]
    #[case::more(&["--batch-size", "32", "--epochs", "2"], "batches of 32, 2 epochs")]
    fn a_changed_model_without_margin_is_refused(#[case] given: &[&str], #[case] changes: &str) {
        let said = limit(given).expect_err("there is no margin").to_string();
        assert!(said.contains(&format!("Net has no margin for {changes}: a margin is")), "{said}");
    }
}
