use amp_core::prelude::*;

/// A classifier that decides to which of two rings a point belongs. The two rings have the same
/// number of points, so the head needs no bias.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(accuracy, name = acc)]
#[optimizer(adamw, lr = self.learning_rate, eps = 1e-3)]
pub struct RingNet {
    #[hparam(default = 32)]
    hidden_size: i64,
    #[hparam(default = 1e-2)]
    learning_rate: f64,
    #[layer(sequential(linear(2, hidden_size), tanh, linear(hidden_size, hidden_size), tanh))]
    body: Sequential,
    #[layer(linear(hidden_size, 2, bias = false))]
    head: Linear,
}
