//! The first model of the Lightning notebook that `fixtures/GUIDE.md` follows.

use amp_core::prelude::*;

/// Linear, batch norm, ReLU and dropout, three times.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(accuracy, name = acc)]
#[log(train_loss(on_step, on_epoch), val_loss(prog_bar), val_acc(prog_bar))]
#[optimizer(adamw, lr = self.learning_rate, weight_decay = 1e-4)]
#[scheduler(cosine_annealing, t_max = 50, interval = epoch)]
pub(crate) struct MixedPrecisionDemo {
    /// The number of features of an example.
    #[hparam(default = 512)]
    input_size: i64,
    /// Width of the first two hidden layers.
    #[hparam(default = 1024)]
    hidden_size: i64,
    #[hparam(default = 10)]
    num_classes: i64,
    #[hparam(default = 1e-3)]
    learning_rate: f64,
    #[layer(sequential(
        linear(input_size, hidden_size),
        batch_norm1d(hidden_size),
        relu,
        dropout(0.2),
        linear(hidden_size, hidden_size),
        batch_norm1d(hidden_size),
        relu,
        dropout(0.2),
        linear(hidden_size, hidden_size / 2),
        batch_norm1d(hidden_size / 2),
        relu,
        dropout(0.2),
        linear(hidden_size / 2, num_classes),
    ))]
    model: Sequential,
}
