use amp_core::{Hyperparameters, data::Limit};
use clap::Args;
use serde_json::Value;

use super::{assignment, positive};
use crate::{changes::Changes, length::Length};

/// Options that change a registered model: its size, its data, and how it is trained.
#[derive(Debug, Clone, Default, Args)]
pub struct ChangeArgs {
    /// Set a hyperparameter, for example --set n_layer=12; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, Value)>,
    /// The data set; `cargo amp models` lists them [default: the checkpoint's in `validate`,
    /// `test-set` and `predict`, else each model's own]
    #[arg(long)]
    pub data: Option<String>,
    /// Examples per batch [default: as for --data]
    #[arg(long)]
    pub batch_size: Option<i64>,
    /// Epochs [default: each model's own epochs or steps; the gate's quick tier, `margins` and
    /// `selftest` use each model's quick length]
    #[arg(long)]
    pub epochs: Option<i64>,
    /// Train N optimizer steps, in as many epochs as needed [default: as for --epochs]
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "epochs")]
    pub steps: Option<u64>,
    /// End training after N optimizer steps, if this is before the end of the last epoch
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_steps: Option<u64>,
    /// Accumulate the gradients of N batches into one optimizer step [default: each model's own]
    #[arg(long, value_name = "N")]
    pub accumulate_grad_batches: Option<i64>,
    /// Clip gradients to this global norm
    #[arg(long, value_name = "NORM")]
    pub gradient_clip_val: Option<f64>,
    /// End training when this logged value, for example val_loss, stops improving. NAME:max or
    /// NAME:min says whether larger or smaller values are better, if it is neither a loss nor a
    /// built-in metric [default: each model's own]
    #[arg(long, value_name = "NAME")]
    pub early_stopping: Option<String>,
    /// Number of epochs without improvement after which training ends [default: each model's own,
    /// or 3 with --early-stopping]
    #[arg(long, value_name = "EPOCHS")]
    pub patience: Option<u32>,
    /// Train on only the first batches of each epoch: a number of batches, or a fraction such as
    /// 0.1
    #[arg(long, value_name = "LIMIT")]
    pub limit_train_batches: Option<Limit>,
    /// Validate on only the first batches of each validation set: a number of batches, or a
    /// fraction such as 0.1; 0 switches validation off
    #[arg(long, value_name = "LIMIT")]
    pub limit_val_batches: Option<Limit>,
}

impl ChangeArgs {
    /// Returns the changes to a registered model that these options ask for.
    pub fn changes(&self) -> Changes {
        Changes {
            hyperparameters: self.set.iter().cloned().collect::<Hyperparameters>(),
            data: self.data.clone(),
            batch_size: self.batch_size,
            length: self.epochs.map(Length::Epochs).or(self.steps.map(Length::Steps)),
            max_steps: self.max_steps,
            accumulate_grad_batches: self.accumulate_grad_batches,
            gradient_clip_val: self.gradient_clip_val,
            early_stopping: self.early_stopping.clone(),
            patience: self.patience,
            limit_train_batches: self.limit_train_batches,
            limit_val_batches: self.limit_val_batches,
        }
    }
}

#[cfg(test)]
mod tests {
    use amp_core::prelude::*;
    use clap::Parser;

    use crate::{DataSet, Registry, case::Case, model, options::RunArgs, project};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        run: RunArgs,
    }

    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Net {
        #[layer(linear(2, 1))]
        head: Linear,
    }

    /// Returns 16 training examples and 16 validation examples.
    fn ones(batch_size: i64) -> Result<DataModule> {
        let part = |width| Tensor::f_ones([16, width], (Kind::Float, Device::Cpu));
        let rows = || Batch::new(part(2)?, part(1)?);
        Ok(DataModule::new("ones", rows()?, rows()?, batch_size))
    }

    /// Checks that the options change the number of epochs and of optimizer steps in the training
    /// plan, from which learning rate schedules take their length.
    #[test]
    fn a_run_is_planned_with_the_changes() -> Result<()> {
        let registry = Registry::new(project!())
            .data_set(DataSet::new("ones", ones))
            .model(model!(Net).judged_by_loss().batch_size(4));
        let planned = |options: &str| -> Result<(i64, i64)> {
            let run = Command::parse_from(["amp"].into_iter().chain(options.split(' '))).run;
            let case = Case::new(&registry, registry.find(None)?, run.choices(), Device::Cpu)?;
            let plan = case.trainer.optimization.plan.expect("a plan");
            Ok((plan.max_epochs, plan.estimated_stepping_batches))
        };
        assert_eq!(planned("--epochs 3")?, (3, 12));
        assert_eq!(planned("--epochs 3 --limit-train-batches 1")?, (3, 3));
        assert_eq!(planned("--epochs 3 --limit-train-batches 0.5")?, (3, 6));
        assert_eq!(planned("--epochs 3 --batch-size 8 --accumulate-grad-batches 2")?, (3, 3));
        assert_eq!(planned("--epochs 3 --max-steps 5")?, (3, 5));
        assert_eq!(planned("--steps 9")?.1, 9);
        Ok(())
    }
}
