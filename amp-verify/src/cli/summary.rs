//! `summary`: shows the layers of a model, and the memory of a training step.

use std::str::FromStr;

use amp_core::{Error, Result, Trainer, precision::Precision, random, trainer::ModelSummary};
use clap::Args;

use super::{Format, RunArgs};
use crate::{
    case::Case,
    comparison::{FailedRun, failed_under},
    matrix::{depends_on_precision, named},
    text::one_line,
};

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

/// The summaries of a model under several precisions.
pub struct Summaries {
    /// One summary for each precision under which the model computes.
    pub summaries: Vec<ModelSummary>,
    /// The other precisions, each with the error of its step.
    pub failed: Vec<FailedRun>,
}

impl Summaries {
    /// Checks that every precision has a summary.
    ///
    /// # Errors
    /// When a step failed. The error names the precisions.
    pub fn are_complete(&self) -> Result<()> {
        failed_under(&self.failed)
    }
}

impl SummaryArgs {
    /// Returns a summary of the model under each precision. A step that fails because of its
    /// precision does not end the command.
    ///
    /// # Errors
    /// When no precision is given, when the steps under all precisions fail, or when a step fails for
    /// a reason that does not depend on its precision.
    pub fn measure(&self, case: &Case) -> Result<Summaries> {
        let mut precisions: Vec<Precision> = Vec::new();
        for precision in &self.precision {
            if !precisions.contains(precision) {
                precisions.push(*precision);
            }
        }
        if precisions.is_empty() {
            return Err(Error::config("give at least one precision"));
        }
        let (mut summaries, mut failed, mut first) = (Vec::new(), Vec::new(), None);
        for precision in precisions {
            match self.summary(case, precision) {
                Ok(summary) => summaries.push(summary),
                Err(error) if depends_on_precision(&error) => {
                    let reason = one_line(&error.to_string());
                    failed.push(FailedRun { precision, seed: case.trainer.seed, reason });
                    first.get_or_insert(named(error, case, precision));
                }
                Err(error) => return Err(named(error, case, precision)),
            }
        }
        match first {
            Some(error) if summaries.is_empty() => Err(error),
            _ => Ok(Summaries { summaries, failed }),
        }
    }

    fn summary(&self, case: &Case, precision: Precision) -> Result<ModelSummary> {
        let config = case.trainer(precision)?;
        let _section = random::seeded(config.seed)?;
        let mut model = case.build()?;
        let summary = Trainer::new(config).summary(model.as_mut(), &case.data)?;
        Ok(summary.with_max_depth(self.max_depth.unwrap_or(usize::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use amp_core::{prelude::*, tch::Device};
    use clap::Parser;

    use super::*;
    use crate::{DataSet, Registry, case::Choices, model, project};

    /// A model that adds a tensor in f32 to the output of a layer, and then applies a layer. It does
    /// not compute in a 16-bit `*-true` precision.
    #[derive(LightningModule)]
    #[forward(|x| {
        let hidden = body(x)?;
        head(&hidden.f_add(&Tensor::f_ones([8], (Kind::Float, hidden.device()))?)?)
    })]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Net {
        #[layer(linear(2, 8))]
        body: Linear,
        #[layer(linear(8, 1))]
        head: Linear,
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        summary: SummaryArgs,
    }

    fn measure(precisions: &str) -> Result<Summaries> {
        let ones = |batch_size| {
            let part = |width| Tensor::f_ones([8, width], (Kind::Float, Device::Cpu));
            let rows = || Batch::new(part(2)?, part(1)?);
            Ok(DataModule::new("ones", rows()?, rows()?, batch_size))
        };
        let registry = Registry::new(project!())
            .data_set(DataSet::new("ones", ones))
            .model(model!(Net).judged_by_loss().batch_size(4));
        let case = Case::new(&registry, registry.find(None)?, Choices::default(), Device::Cpu)?;
        Line::parse_from(["amp", "--precision", precisions]).summary.measure(&case)
    }

    #[test]
    fn a_precision_that_fails_leaves_the_others() -> Result<()> {
        let measured = measure("bf16-true,32-true,16-true,bf16-mixed")?;
        let shown: Vec<_> = measured.summaries.iter().map(|summary| summary.precision).collect();
        assert_eq!(shown, [Precision::F32True, Precision::Bf16Mixed]);
        let failed: Vec<_> = measured.failed.iter().map(|run| run.precision).collect();
        assert_eq!(failed, [Precision::Bf16True, Precision::F16True]);
        let reason = &measured.failed[0].reason;
        assert!(reason.starts_with("in `head`: libtorch: "), "{reason}");
        let said = measured.are_complete().expect_err("two failed").to_string();
        assert_eq!(said, "no results under bf16-true, 16-true: the report gives the reason");
        assert!(measure("32-true")?.are_complete().is_ok());
        Ok(())
    }

    #[test]
    fn if_every_precision_fails_the_first_error_is_returned() {
        let said = measure("bf16-true,16-true").err().expect("both fail").to_string();
        assert!(said.starts_with("in `Net under bf16-true`: in `head`: libtorch: "), "{said}");
    }
}
