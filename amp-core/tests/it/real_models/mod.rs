//! Tests of models like those of real projects, with several inputs, masks, tuples, or a training
//! step that the user has written. Each task can be learned only if the model gets the right
//! inputs.

mod bert;
mod copying;
mod forecast;
mod gan;
mod resnet;
mod towers;
mod unet;

use amp_core::{
    LightningModule, Result, Trainer, TrainerConfig,
    data::DataModule,
    precision::{GradScalerConfig, Precision},
    record::RunRecord,
    tch::{Device, Kind, Tensor},
    trainer::Check,
};

use crate::support::device;

/// Trains the model for `max_epochs` epochs. Asserts that all logged values are finite.
fn train(
    model: &mut dyn LightningModule,
    data: &DataModule,
    precision: Precision,
    max_epochs: i64,
) -> Result<RunRecord> {
    let config =
        TrainerConfig { max_epochs, ..TrainerConfig::new(precision, device()) }.with(|config| {
            config.logging.log_every_n_steps = 1000;
            config.numerics.scaler = GradScalerConfig { init_scale: 1024.0, ..Default::default() };
            // A contrastive loss needs all examples of a batch, so it cannot be computed from
            // micro-batches.
            config.memory.micro_batching = false;
            // A correct training run must not violate an invariant of training.
            config.checks.level = Check::Full;
        });
    let record = Trainer::new(config).fit(model, data)?;
    for value in record.epochs.iter().flat_map(|epoch| epoch.train.iter().chain(&epoch.val)) {
        assert!(value.value.is_finite(), "{} is {}", value.name, value.value);
    }
    Ok(record)
}

/// Asserts that the run used CUDA graphs if it ran on CUDA, and none otherwise.
fn is_replayed_on_cuda(record: &RunRecord) {
    let replayed = record.end.replayed;
    assert_eq!(
        replayed > 0,
        device().is_cuda(),
        "{replayed} steps ran as CUDA graphs: {:?}",
        record.notes
    );
}

fn randn(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu))
}
