//! Tests the derive macros in a crate that depends on amp-core under the name `engine`.

mod fragments;
mod shadowed;

use derive_names::{Residual, Whole};
use engine::{precision::Policy, prelude::*, trainer::TrainerConfig};

/// Returns points on the two sides of a line. The class of a point says on which side it is.
fn points() -> DataModule {
    let points = |count: i64| {
        let x = Tensor::arange(count, (Kind::Float, Device::Cpu)) / count - 0.5;
        let class = x.ge(0.0).to_kind(Kind::Int64);
        Batch::new(Tensor::stack(&[&x, &(&x * 2.0)], 1), class).expect("a batch")
    };
    DataModule::new("points", points(32), points(8), 8)
}

/// Trains the model for one optimizer step. Returns its validation loss after the step.
fn step(model: &mut dyn LightningModule) -> f64 {
    let config = TrainerConfig {
        max_epochs: 1,
        max_steps: Some(1),
        ..TrainerConfig::new(Precision::F32True, Device::Cpu)
    };
    let record = Trainer::new(config).fit(model, &points()).expect("a run");
    record.epochs[0].value("val_loss").expect("a loss")
}

fn output(model: &dyn Module, input: &Tensor) -> Tensor {
    let context = Context::new(Policy::new(Precision::F32True, Device::Cpu), false);
    model.forward(input, &context).expect("an output")
}

#[test]
fn a_model_with_everything_trains() {
    let mut model = Whole::builder(2, Relu).width(4).build().expect("a model");
    let before = model.hyperparameters();
    assert!(step(&mut model).is_finite());
    assert_eq!((model.hyperparameters(), model.seen()), (before, (1, None)));
    let block = Residual::<3>::builder(4).build().expect("a block");
    assert_eq!(block.widths(), [4; 3]);
    let input = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu));
    assert_eq!(output(&block, &input).size(), [3, 4]);
}
