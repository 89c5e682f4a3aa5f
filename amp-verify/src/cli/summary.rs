//! `summary`: shows the layers of a model, and the memory of a training step.

use std::str::FromStr;

use amp_core::{Error, Result, Trainer, precision::Precision, random, trainer::ModelSummary};
use clap::Args;

use super::{Format, RunArgs};
use crate::case::Case;

/// Options of `summary`.
#[derive(Debug, Args)]
pub struct SummaryArgs {
    /// Precisions for which the memory is shown, separated by commas; the layers are shown for the
    /// first precision
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = Precision::from_str,
          default_values_t = Precision::ALL, hide_default_value = true)]
    pub precision: Vec<Precision>,
    /// Show layers down to this depth; 1 shows only the direct submodules of the model
    #[arg(long, value_name = "N")]
    pub max_depth: Option<usize>,
    /// Format of the summary
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub run: RunArgs,
}

impl SummaryArgs {
    /// Returns a summary of the model under each precision.
    ///
    /// # Errors
    /// When no precision is given, or a step fails.
    pub fn measure(&self, case: &Case) -> Result<Vec<ModelSummary>> {
        let mut precisions: Vec<Precision> = Vec::new();
        for precision in &self.precision {
            if !precisions.contains(precision) {
                precisions.push(*precision);
            }
        }
        if precisions.is_empty() {
            return Err(Error::config("give at least one precision"));
        }
        let one = |precision: Precision| {
            let config = case.trainer(precision)?;
            let _section = random::seeded(config.seed)?;
            let mut model = case.build()?;
            let summary = Trainer::new(config).summary(model.as_mut(), &case.data);
            let summary = summary
                .map_err(|error| error.within(&format!("{} under {precision}", case.model.name)))?;
            Ok(summary.with_max_depth(self.max_depth.unwrap_or(usize::MAX)))
        };
        precisions.into_iter().map(one).collect()
    }
}
