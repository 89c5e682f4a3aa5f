//! For a PyTorch option that a layer here lacks, the error says why the layer lacks it.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(transformer_encoder_layer(64, 8, batch_first = true))]
    model: TransformerEncoderLayer,
}

fn main() {}
