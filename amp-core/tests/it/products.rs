//! Tests that the check of dtypes also covers matrix products in the user's code, which belong to
//! no layer.

use amp_core::{
    data,
    event::Event,
    log::Log,
    nn,
    precision::{AutocastGuard, Policy},
    prelude::*,
    probe::Observed,
};
use rstest::rstest;

use crate::support::{
    message,
    model::{constant, same},
    seeded,
};

#[derive(Batch)]
struct Words {
    #[batch(ids)]
    ids: Tensor,
    labels: Tensor,
}

fn words() -> Words {
    let ids = Tensor::arange(24, (Kind::Int64, Device::Cpu)).remainder(7).reshape([8, 3]);
    Words { labels: ids.select(1, 0), ids }
}

/// An output layer that uses the embedding's table as its weight. The option `how` decides whether
/// its matrix product runs in the precision of the run, with autocast off, or in an f32 precision
/// region.
#[derive(Module)]
#[forward(|x, table: &Tensor| {
    let x = norm(x)?;
    let table = table.f_transpose(0, 1)?;
    match self.how {
        How::Right => Ok(x.f_matmul(&table)?),
        How::Off => {
            let _guard = AutocastGuard::off(Device::Cpu)?;
            Ok(x.f_to_kind(Kind::Float)?.f_matmul(&table)?)
        }
        How::Region => cx.region(Region::Fp32, &x, |x| Ok(x.f_matmul(&table)?)),
    }
})]
struct Head {
    #[hparam]
    how: How,
    #[layer(layer_norm(4))]
    norm: LayerNorm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum How {
    Right,
    Off,
    Region,
}

/// A model whose matrix products are all in the user's code, and none in a layer.
#[derive(LightningModule)]
#[batch(Words, inputs(ids), target = labels)]
#[forward(|ids| {
    let x = table(ids)?;
    let x = x.f_mean_dim([1].as_slice(), false, x.kind())?;
    if self.root_is_off {
        let _guard = AutocastGuard::off(Device::Cpu)?;
        let _ = x.f_mm(&x.f_transpose(0, 1)?)?;
    }
    let attended = x.f_unsqueeze(1)?;
    let attended = Tensor::f_scaled_dot_product_attention(
        &attended, &attended, &attended, None::<Tensor>, 0.0, false, None, false,
    )?;
    head(&attended.f_squeeze_dim(1)?, self.table.weight())
})]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Tied {
    #[hparam]
    how: How,
    #[hparam(default = false)]
    root_is_off: bool,
    #[layer(embedding(7, 4))]
    table: Embedding,
    #[layer(Head::builder(how).build()?)]
    head: Head,
}

/// Returns the dtypes recorded in the first step, or the error.
fn observed(precision: Precision, mut model: Tied) -> Result<Observed> {
    let mut observed = None;
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::Observed(found) = event {
            observed = Some(found.clone());
        }
        Ok(())
    };
    let data = DataModule::new("words", words(), words(), 4);
    let config = TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, Device::Cpu) };
    Trainer::new(config).subscribe(&mut listen).fit(&mut model, &data)?;
    Ok(observed.expect("the first step was observed"))
}

#[rstest]
#[case::bf16_mixed(Precision::Bf16Mixed, "bfloat16")]
#[case::f16_mixed(Precision::F16Mixed, "float16")]
#[case::f32_true(Precision::F32True, "float32")]
#[case::f64_true(Precision::F64True, "float64")]
fn products_between_layers_are_counted(
    #[case] precision: Precision,
    #[case] dtype: &str,
) -> Result<()> {
    let _generator = seeded(0);
    let found = observed(precision, Tied::builder(How::Right).build()?)?;
    assert_eq!(found.matmul.into_iter().collect::<Vec<_>>(), [dtype]);
    Ok(())
}

#[test]
fn a_product_in_another_dtype_is_an_error() -> Result<()> {
    let _generator = seeded(0);
    let error = message(observed(Precision::Bf16Mixed, Tied::builder(How::Off).build()?));
    assert_eq!(
        error,
        "the run does not compute in bf16-mixed: the output of a `matmul` in `head` is float32, \
         but the precision prescribes bfloat16: convert its operands to bfloat16, or declare that it \
         computes in float32: `#[precision(fp32)]` on a module, `cx.region(Region::Fp32, …)` in \
         `forward`, `step.context().region(Region::Fp32, …)` in a training step"
    );
    let model = Tied::builder(How::Right).root_is_off(true).build()?;
    let error = message(observed(Precision::Bf16Mixed, model));
    assert!(error.contains("the output of a `mm` in the model is float32"), "{error}");
    Ok(())
}

#[test]
fn a_region_asks_for_its_own_dtype() -> Result<()> {
    let _generator = seeded(0);
    let found = observed(Precision::Bf16Mixed, Tied::builder(How::Region).build()?)?;
    assert_eq!(found.matmul.into_iter().collect::<Vec<_>>(), ["bfloat16", "float32"]);
    Ok(())
}

/// A model that runs an additional forward pass in f32 in the middle of a training step, as a
/// monitor may do.
#[derive(LightningModule)]
#[training_step(Self::evaluating)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Evaluating {
    #[layer(linear(3, 3))]
    model: nn::Linear,
}

impl Evaluating {
    fn evaluating(&mut self, batch: &data::Batch, step: &mut Step<'_>) -> Result<Tensor> {
        {
            let _guard = AutocastGuard::off(Device::Cpu)?;
            let plain = Context::new(Policy::new(Precision::F32True, Device::Cpu), false);
            let mut log = Log::default();
            self.validation_step(&batch.to_any()?, &mut Step::new(&plain, &mut log, 0, 0))?;
        }
        loss::mse_loss(&self.forward(&batch.input, step.context())?, &batch.target)
    }
}

/// The dtypes of matrix products are compared with the precision of the run only in forward passes
/// that use the run's own `Context`, and not in those that use another one.
#[test]
fn products_under_another_context_are_not_checked() -> Result<()> {
    let _generator = seeded(0);
    let mut model = Evaluating::builder().build()?;
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::Bf16Mixed, Device::Cpu) };
    let record = Trainer::new(config).fit(&mut model, &same(constant(4, 3, 0.0)?, 2)?)?;
    assert_eq!(record.observed.matmul.into_iter().collect::<Vec<_>>(), ["bfloat16"]);
    Ok(())
}

/// A model whose own training step computes a matrix product in f32 under every precision.
#[derive(LightningModule)]
#[training_step(Self::scored)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Scored {
    #[hparam(default = false)]
    in_region: bool,
    #[layer(linear(3, 3))]
    model: nn::Linear,
}

impl Scored {
    fn scored(&mut self, batch: &data::Batch, step: &mut Step<'_>) -> Result<Tensor> {
        let output = self.forward(&batch.input, step.context())?;
        let product = |x: &Tensor| {
            let x = x.f_to_kind(Kind::Float)?;
            Ok(x.f_matmul(&x.f_transpose(0, 1)?)?)
        };
        let scores = match self.in_region {
            true => step.context().region(Region::Fp32, &output, product)?,
            false => product(&output)?,
        };
        Ok(scores.f_mean(Kind::Float)?)
    }
}

/// The remedy that the error names is accepted: a product of a training step may compute in f32 in a
/// precision region.
#[test]
fn a_product_of_a_step_computes_in_a_region() -> Result<()> {
    let _generator = seeded(0);
    let trained = |in_region: bool| {
        let mut model = Scored::builder().in_region(in_region).build()?;
        let config =
            TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::Bf16True, Device::Cpu) };
        Trainer::new(config).fit(&mut model, &same(constant(4, 3, 1.0)?, 2)?)
    };
    let error = message(trained(false));
    let remedy = "`step.context().region(Region::Fp32, …)` in a training step";
    assert!(error.contains("the output of a `matmul` in the model is float32"), "{error}");
    assert!(error.ends_with(remedy), "{error}");
    let observed = trained(true)?.observed;
    assert_eq!(observed.matmul.into_iter().collect::<Vec<_>>(), ["bfloat16", "float32"]);
    Ok(())
}
