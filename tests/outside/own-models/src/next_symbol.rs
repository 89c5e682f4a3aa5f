use amp_core::prelude::*;

/// A language model: for each position of a sentence, scores of the next symbol. It has no metric,
/// so it is judged by its loss.
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
