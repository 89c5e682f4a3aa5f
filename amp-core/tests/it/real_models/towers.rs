//! A model of two towers, one for each of two inputs, trained to find the pairs of a batch.

use amp_core::prelude::*;
use rstest::rstest;

use super::{is_replayed_on_cuda, randn, train};
use crate::support::seeded;

#[derive(Batch)]
struct Pairs {
    question: Tensor,
    answer: Tensor,
}

#[derive(LightningModule)]
#[batch(Pairs, inputs(question, answer), target = batch)]
#[forward(|question, answer| -> Result<(Tensor, Tensor)> {
    let unit = |x: Tensor| -> Result<Tensor> {
        let norm = x.f_norm_scalaropt_dim(2.0, [1_i64].as_slice(), true)?;
        Ok(x.f_div(&norm.f_add_scalar(1e-6)?)?)
    };
    Ok((unit(left(question)?)?, unit(right(answer)?)?))
})]
#[loss(with = |output: &(Tensor, Tensor), _batch: &Pairs| {
    let (left, right) = output;
    let scores = left.f_matmul(&right.f_tr()?)?.f_mul_scalar(10.0)?;
    let own = Tensor::f_arange(scores.size()[0], (Kind::Int64, scores.device()))?;
    loss::cross_entropy(&scores, &own)
})]
#[optimizer(adamw, lr = 3e-3)]
struct Towers {
    #[layer(sequential(linear(16, 32), relu, linear(32, 16)))]
    left: Sequential,
    #[layer(sequential(linear(8, 32), relu, linear(32, 16)))]
    right: Sequential,
}

/// Generates random pairs of a question and an answer. The answer is the first half of the
/// question's vector, doubled and in reverse order.
fn pairs(count: i64) -> Result<Pairs> {
    let question = randn(&[count, 16]);
    let answer = question.f_narrow(1, 0, 8)?.f_flip([1_i64].as_slice())?.f_mul_scalar(2.0)?;
    Ok(Pairs { question, answer })
}

#[rstest]
fn towers_find_their_pairs(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let data = {
        let _section = seeded(9);
        DataModule::new("pairs", pairs(512)?, pairs(128)?, 32)
    };
    let _section = seeded(0);
    let mut model = Towers::builder().build()?;
    let record = train(&mut model, &data, precision, 15)?;
    let loss = record.last("val_loss").expect("val_loss");
    // ln 32 = 3.47 is the loss of a model that cannot distinguish the pairs.
    assert!(loss < 1.0, "{loss}");
    is_replayed_on_cuda(&record);
    Ok(())
}

/// A model of two towers with this crate's InfoNCE loss, which contains an f32 matrix product. The
/// check of dtypes must not report this product as one that the model computes in a wrong
/// precision.
#[derive(LightningModule)]
#[batch(Pairs, inputs(question, answer), target = question)]
#[forward(|question, answer| -> Result<Tensor> {
    Ok(Tensor::f_stack(&[left(question)?, right(answer)?], 1)?)
})]
#[loss(info_nce, temperature = 0.1, symmetric = true)]
#[optimizer(adamw, lr = 3e-3)]
struct Contrastive {
    #[layer(linear(16, 8))]
    left: Linear,
    #[layer(linear(8, 8))]
    right: Linear,
}

#[rstest]
fn a_loss_that_multiplies_in_f32_does_not_hide_the_models_dtype(
    #[values(
        Precision::F32True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
) -> Result<()> {
    let data = {
        let _section = seeded(9);
        DataModule::new("pairs", pairs(64)?, pairs(32)?, 32)
    };
    let _section = seeded(0);
    let mut model = Contrastive::builder().build()?;
    let record = train(&mut model, &data, precision, 1)?;
    let seen: Vec<&str> = record.observed.matmul.iter().map(String::as_str).collect();
    assert_eq!(seen, [amp_core::precision::dtype_name(precision.compute())]);
    Ok(())
}
