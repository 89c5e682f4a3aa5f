//! An encoder and a decoder that learn to copy a sentence with padding.

use amp_core::{
    nn::{AttentionMask, TransformerDecoder, TransformerEncoder},
    prelude::*,
};
use rstest::rstest;

use super::{is_replayed_on_cuda, train};
use crate::support::seeded;

const WORDS: i64 = 16;
const LENGTH: i64 = 6;
const WIDTH: i64 = 32;

#[derive(Batch)]
struct Sentences {
    #[batch(ids)]
    source: Tensor,
    /// A mask that is true at the positions after the end of a sentence.
    #[batch(mask)]
    padding: Tensor,
    /// The input of the decoder: the target, shifted by one position.
    #[batch(ids)]
    before: Tensor,
    target: Tensor,
}

#[derive(LightningModule)]
#[batch(Sentences, inputs(source, padding, before), target = target)]
#[forward(|source, padding, before| {
    let padding = AttentionMask::padding(padding);
    let memory = words(source)?.f_add(&self.places)?;
    let memory = self.encoder.forward_masked(&memory, &padding, cx)?;
    let x = words(before)?.f_add(&self.places)?;
    let x = decoder(&x, &memory, &AttentionMask::none(), &padding)?;
    Ok(head(&x)?.f_transpose(1, 2)?)
})]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 3e-3)]
struct Copying {
    #[layer(embedding(WORDS + 2, WIDTH, padding_idx = 0))]
    words: Embedding,
    #[parameter(shape = [LENGTH, WIDTH], init = normal(0.0, 0.5))]
    places: Tensor,
    #[layer(transformer_encoder(
        WIDTH,
        4,
        1,
        dim_feedforward = 64,
        norm_first = true,
        dropout = 0.0,
        norm = true
    ))]
    encoder: TransformerEncoder,
    #[layer(transformer_decoder(
        WIDTH, 4, 1, dim_feedforward = 64, activation = swiglu, dropout = 0.0, causal = true,
    ))]
    decoder: TransformerDecoder,
    #[layer(linear(WIDTH, WORDS + 2))]
    head: Linear,
}

fn sentences(count: i64) -> Result<Sentences> {
    let options = (Kind::Int64, Device::Cpu);
    let words = Tensor::f_randint_low(2, WORDS + 2, [count, LENGTH], options)?;
    let ends = Tensor::f_randint_low(4, LENGTH + 1, [count, 1], options)?;
    let padding = Tensor::f_arange(LENGTH, options)?.f_unsqueeze(0)?.f_ge_tensor(&ends)?;
    let source = words.f_masked_fill(&padding, 0)?;
    let start = Tensor::f_ones([count, 1], options)?;
    let before = Tensor::f_cat(&[start, source.f_narrow(1, 0, LENGTH - 1)?], 1)?;
    let target = words.f_masked_fill(&padding, -100)?;
    Ok(Sentences { source, padding, before, target })
}

#[rstest]
fn a_decoder_learns_to_copy(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let data = {
        let _section = seeded(5);
        DataModule::new("sentences", sentences(1024)?, sentences(128)?, 32)
    };
    let _section = seeded(0);
    let mut model = Copying::builder().build()?;
    let record = train(&mut model, &data, precision, 12)?;
    let loss = record.last("val_loss").expect("val_loss");
    // A random guess among sixteen words has the loss ln 16 = 2.8.
    assert!(loss < 0.5, "{loss}");
    is_replayed_on_cuda(&record);
    Ok(())
}
