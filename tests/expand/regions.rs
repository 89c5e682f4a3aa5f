//! A model with precision regions, a forward closure, the user's own loss, several metrics and a
//! scheduler that counts steps.

use amp_core::{
    nn::{Visit, Visitor},
    prelude::*,
};

#[derive(LightningModule)]
#[forward(|x| {
    let features = feature_extractor(&normalize(x)?)?;
    let attended = transformer_block(&features.f_unsqueeze(1)?)?;
    head(&cx.region(Region::Fp32, &attended, |x| Ok(x.f_squeeze_dim(1)?))?)
})]
#[loss(with = |output, target| Ok(loss::cross_entropy(output, target)?.f_mul_scalar(self.weight)?))]
#[metric(accuracy)]
#[metric(top_k, k = 5, name = top5, stage = val)]
#[metric(f1, num_classes = self.num_classes, stage = val)]
#[log(val_accuracy, prog_bar)]
#[optimizer(adamw, lr = 1e-3, betas = (0.9, 0.95), eps = 1e-4)]
#[scheduler(
    one_cycle,
    max_lr = 1e-3,
    total_steps = plan.estimated_stepping_batches,
    pct_start = 0.1
)]
pub(crate) struct Regions {
    #[hparam]
    num_classes: i64,
    #[hparam(default = 1.0)]
    weight: f64,
    #[layer(Normalize { dim: 1 })]
    #[precision(autocast = off)]
    normalize: Normalize,
    #[layer(sequential(linear(64, 32), layer_norm(32), gelu, dropout(0.1)))]
    feature_extractor: Sequential,
    #[layer(transformer_encoder_layer(
        d_model = 32,
        nhead = 4,
        dim_feedforward = 64,
        dropout = 0.1
    ))]
    #[precision(bf16)]
    transformer_block: TransformerEncoderLayer,
    #[layer(linear(32, num_classes, bias = false))]
    #[precision(fp32)]
    head: Linear,
}

/// x / max(‖x‖₂, 1e-12).
struct Normalize {
    dim: i64,
}

impl Visit for Normalize {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Normalize {
    fn forward(&self, x: &Tensor, _: &Context) -> Result<Tensor> {
        let norm = x.f_norm_scalaropt_dim(2, [self.dim], true)?;
        Ok(x.f_div(&norm.f_clamp_min(1e-12)?)?)
    }
}
