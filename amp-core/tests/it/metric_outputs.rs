//! Tests the option `output = …` of a metric. It says from what the metric is computed: from a part
//! of the model's output, or from a tensor that is computed from this output.

use amp_core::prelude::*;

use crate::support::model::{digits, same};

/// A model that logs the same accuracy three times: from an element of the output, from a tensor
/// that a function computes from this element, and from a tensor that a method computes.
#[derive(LightningModule)]
#[forward(|x| -> Result<(Tensor, Tensor)> { Ok((model(x)?, x.shallow_clone())) })]
#[loss(with = |output, target| loss::cross_entropy(&output.0, target))]
#[metric(accuracy, output = output.0, name = place)]
#[metric(accuracy, output = doubled(&output.0)?, name = new)]
#[metric(accuracy, output = output.0.f_mul_scalar(3.0)?, name = method)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn doubled(logits: &Tensor) -> Result<Tensor> {
    Ok(logits.f_mul_scalar(2.0)?)
}

#[test]
fn an_output_may_be_a_new_tensor() -> Result<()> {
    let mut model = Net::builder().build()?;
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, Device::Cpu) };
    let record = Trainer::new(config).fit(&mut model, &same(digits(64)?, 32)?)?;
    let [place, new, method] =
        ["val_place", "val_new", "val_method"].map(|name| record.last(name).expect("a value"));
    assert!(place > 0.0 && place == new && place == method, "{place} {new} {method}");
    Ok(())
}
