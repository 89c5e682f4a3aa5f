use amp_core::prelude::*;

/// A language model. For each position of a sentence, it computes a score for each possible next
/// symbol. The model has no metric, so the gate compares its loss.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = self.learning_rate)]
pub struct NextSymbol {
    #[hparam(default = 12)]
    symbols: i64,
    #[hparam(default = 16)]
    width: i64,
    #[hparam(default = 1e-2)]
    learning_rate: f64,
    #[layer(embedding(symbols, width))]
    token: Embedding,
    #[layer(transformer_encoder_layer(
        width,
        2,
        dim_feedforward = 2 * width,
        dropout = 0.0,
        causal = true
    ))]
    block: TransformerEncoderLayer,
    #[layer(linear(width, symbols))]
    head: Linear,
}
