//! rustc reports every mistake in one run, and no error that only follows from another one.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cros_entropy)]
#[metric(acuracy)]
#[optimizer(adamw, lr = 1e-3, momentum = 0.9)]
#[scheduler(cosine_annealing, interval = epoc)]
#[log(train_acc, on_stp)]
struct Net {
    #[hparam(defualt = 64)]
    width: i64,
    #[layer(liner(width, 10))]
    #[precision(float16)]
    model: Linear,
    extra: u64,
}

fn main() {
    let net = Net::builder().width(32).build();
    let _ = net.map(|net| net.hyperparameters());
}
