//! Tests of a classifier like BERT, with a key padding mask.

use amp_core::prelude::*;
use rstest::rstest;

use super::{is_replayed_on_cuda, train};
use crate::support::{device, seeded};

const WIDTH: i64 = 32;
const HEADS: i64 = 4;
const LENGTH: i64 = 12;

#[derive(Batch)]
struct Sentences {
    #[batch(ids)]
    ids: Tensor,
    #[batch(mask)]
    mask: Tensor,
    labels: Tensor,
}

/// A post-norm encoder block: masked attention, then an MLP.
#[derive(Module)]
#[forward(|x: &Tensor, allowed: &Tensor| {
    let heads = |x: Tensor| -> Result<Tensor> {
        Ok(x.f_view([-1, LENGTH, HEADS, WIDTH / HEADS])?.f_transpose(1, 2)?)
    };
    let (q, k, v) = (heads(query(x)?)?, heads(key(x)?)?, heads(value(x)?)?);
    let mixed =
        Tensor::f_scaled_dot_product_attention(&q, &k, &v, Some(allowed), 0.0, false, None, false)?;
    let mixed = mixed.f_transpose(1, 2)?.f_reshape([-1, LENGTH, WIDTH])?;
    let x = norm1(&x.f_add(&output(&mixed)?)?)?;
    norm2(&x.f_add(&perceptron(&x)?)?)
})]
struct Block {
    #[layer(linear(WIDTH, WIDTH))]
    query: Linear,
    #[layer(linear(WIDTH, WIDTH))]
    key: Linear,
    #[layer(linear(WIDTH, WIDTH))]
    value: Linear,
    #[layer(linear(WIDTH, WIDTH))]
    output: Linear,
    #[layer(layer_norm(WIDTH))]
    norm1: LayerNorm,
    #[layer(sequential(linear(WIDTH, 4 * WIDTH), gelu, dropout(0.1), linear(4 * WIDTH, WIDTH)))]
    perceptron: Sequential,
    #[layer(layer_norm(WIDTH))]
    norm2: LayerNorm,
}

#[derive(LightningModule)]
#[batch(Sentences, inputs(ids, mask), target = labels)]
#[forward(|ids, mask| {
    let allowed = mask.f_view([-1, 1, 1, LENGTH])?;
    let mut x = words(ids)?.f_add(&self.positions)?;
    for block in &self.blocks {
        x = block.forward(&x, &allowed, cx)?;
    }
    head(&x.f_select(1, 0)?)
})]
#[loss(cross_entropy)]
#[metric(accuracy, name = acc, stage = val)]
#[optimizer(adamw, lr = 3e-3)]
struct Bert {
    #[layer(embedding(24, WIDTH))]
    words: Embedding,
    #[parameter(shape = [LENGTH, WIDTH], init = normal(0.0, 0.02))]
    positions: Tensor,
    #[layer(repeat(2, |_| Block::builder().build()?))]
    blocks: Vec<Block>,
    #[layer(linear(WIDTH, 2))]
    head: Linear,
}

/// Generates random sentences. The class of a sentence says which of the words 1 and 2 is among its
/// first words. If `padding` is 0, the padding of the sentence consists of the other of these two
/// words, so a model that does not mask the padding learns nothing. Otherwise it consists of the
/// word `padding`.
fn sentences(count: i64, padding: i64) -> Result<Sentences> {
    let options = (Kind::Int64, Device::Cpu);
    let labels = Tensor::f_randint(2, [count], options)?;
    let mut ids = Tensor::f_randint_low(3, 24, [count, LENGTH], options)?;
    let ends = Tensor::f_randint_low(4, LENGTH, [count, 1], options)?;
    let places = Tensor::f_arange(LENGTH, options)?.f_unsqueeze(0)?;
    let mask = places.f_lt_tensor(&ends)?;
    let at = Tensor::f_randint_low(1, 4, [count, 1], options)?;
    ids = ids.f_scatter(1, &at, &labels.f_unsqueeze(1)?.f_add_scalar(1)?)?;
    let behind = match padding {
        0 => labels.f_unsqueeze(1)?.f_neg()?.f_add_scalar(2)?.f_expand([count, LENGTH], false)?,
        word => Tensor::f_full([count, LENGTH], word, options)?,
    };
    let ids = ids.f_where_self(&mask, &behind)?;
    Ok(Sentences { ids, mask, labels })
}

fn data(padding: i64) -> Result<DataModule> {
    let _section = seeded(3);
    Ok(DataModule::new("sentences", sentences(512, padding)?, sentences(128, padding)?, 32))
}

#[rstest]
fn a_masked_encoder_learns(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let _section = seeded(0);
    let mut model = Bert::builder().build()?;
    let record = train(&mut model, &data(0)?, precision, 8)?;
    let accuracy = record.last("val_acc").expect("val_acc");
    assert!(accuracy > 0.95, "{accuracy}");
    is_replayed_on_cuda(&record);
    Ok(())
}

/// Masked words have no effect. If the words after the end of each sentence are changed, the
/// trained weights have the same bits.
#[test]
fn masked_words_have_no_effect() -> Result<()> {
    let mut weights = Vec::new();
    for padding in [0, 7] {
        let data = data(padding)?;
        let _section = seeded(0);
        let mut model = Bert::builder().build()?;
        train(&mut model, &data, Precision::Bf16Mixed, 1)?;
        weights.push(amp_core::nn::parameters(&model));
    }
    for (one, other) in weights[0].iter().zip(&weights[1]) {
        // The embedding's vectors of the masked words are equal too, because their gradient is 0.
        assert!(one.tensor.equal(&other.tensor), "`{}` on {:?}", one.name, device());
    }
    Ok(())
}
