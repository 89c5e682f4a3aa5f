//! Precision regions, a forward closure, several metrics, a schedule by step.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[forward(|x| {
    let features = feature_extractor(&normalize(x)?)?;
    let attended = transformer_block(&features.f_unsqueeze(1)?)?;
    head(&attended.f_squeeze_dim(1)?)
})]
#[loss(with = |output, target| Ok(loss::cross_entropy(output, target)? * self.loss_weight))]
#[metric(accuracy)]
#[metric(top_k, k = 5, name = "top5", stage = val)]
#[metric(f1, num_classes = self.num_classes, stage = val)]
#[log(val_accuracy, prog_bar)]
#[optimizer(adamw, lr = 1e-3, betas = (0.9, 0.95), eps = 1e-4)]
#[scheduler(one_cycle, max_lr = 1e-3, total_steps = plan.estimated_stepping_batches, pct_start = 0.1)]
struct Regions {
    #[hparam]
    num_classes: i64,
    #[hparam(default = 1.0)]
    loss_weight: f64,
    #[layer(Normalize::new(1))]
    #[precision(autocast = off)]
    normalize: Normalize,
    #[layer(sequential(linear(512, 1024), layer_norm(1024), gelu, dropout(0.1)))]
    feature_extractor: Sequential,
    #[layer(transformer_encoder_layer(d_model = 1024, nhead = 8, dim_feedforward = 2048, dropout = 0.1))]
    #[precision(bf16)]
    transformer_block: TransformerEncoderLayer,
    #[layer(linear(1024, num_classes, bias = false))]
    #[precision(fp32)]
    head: Linear,
    #[state]
    batches_seen: u64,
}
