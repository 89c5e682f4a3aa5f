//! A model, its data set, and the registry (the list of models) through which `cargo amp` finds the
//! model and the data set.

pub mod data;

use amp_core::prelude::*;
use amp_verify::{DataSet, Registry, model, project};

/// A small network with two hidden layers, which predicts on which of two spirals a point lies.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(accuracy, name = acc)]
#[log(train_loss(on_epoch))]
#[optimizer(adamw, lr = self.learning_rate)]
pub struct SpiralNet {
    #[hparam(default = 64)]
    hidden_size: i64,
    #[hparam(default = 1e-2)]
    learning_rate: f64,
    #[layer(sequential(linear(2, hidden_size), relu, linear(hidden_size, hidden_size), relu))]
    body: Sequential,
    #[layer(linear(hidden_size, 2))]
    head: Linear,
}

/// Returns the models and data sets for `cargo amp`. Add yours here.
pub fn registry() -> Registry {
    Registry::new(project!())
        .data_set(DataSet::new("spirals", data::spirals).about("two spirals, 2,000 points"))
        .model(
            model!(SpiralNet)
                .about("a network with two hidden layers")
                .data("spirals")
                .epochs(10)
                .batch_size(64)
                .margin(0.02),
        )
}
