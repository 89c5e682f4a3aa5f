//! Tests of the invariants of training, which are rules that every correct run follows. The tests
//! violate each invariant once, by a fault in an optimizer, a schedule or a model. They also check
//! that correct runs violate none.

mod breaks;
mod healthy;
mod optimizer;
mod planted;
mod reports;
mod sets;
mod shapes;

use amp_core::{
    Error, LightningModule, Result, Trainer, TrainerConfig,
    data::DataModule,
    precision::{GradScalerConfig, Precision},
    record::RunRecord,
    trainer::{Check, Invariant},
};

use self::{optimizer::Odd, planted::Planted};
use crate::support::{
    device,
    model::{digits, same},
};

/// Returns a configuration of two epochs in 16-mixed. With [`data`], each epoch has seven steps of
/// eight digits each.
fn config(level: Check) -> TrainerConfig {
    TrainerConfig::new(Precision::F16Mixed, device()).with(|config| {
        config.max_epochs = 2;
        config.numerics.scaler = GradScalerConfig { init_scale: 1024.0, ..Default::default() };
        (config.checks.level, config.checks.shared_examples) = (level, true);
    })
}

fn data() -> Result<DataModule> {
    same(digits(56)?, 8)
}

fn fit(config: TrainerConfig, model: &mut dyn LightningModule) -> Result<RunRecord> {
    Trainer::new(config).fit(model, &data()?)
}

/// Asserts that the run violates the invariant. Returns the text of the error.
fn broken(outcome: Result<RunRecord>, invariant: Invariant) -> String {
    match outcome {
        Err(Error::Invariant { name, text }) => {
            assert_eq!(name, invariant.name(), "{text}");
            assert!(
                text.ends_with(&format!("(invariant {name})")) && !text.contains('\n'),
                "{text}"
            );
            text
        }
        Err(error) => panic!("expected a violation of {invariant}, but the error is: {error}"),
        Ok(_) => panic!("{invariant} was not violated"),
    }
}
