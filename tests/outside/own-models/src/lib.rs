//! Two models and two data sets that are defined in this project. `cargo amp` trains the models and
//! compares their precisions.

pub mod data;
mod next_symbol;
mod ring_net;

pub use next_symbol::NextSymbol;
pub use ring_net::RingNet;

use amp_verify::{
    DataSet, Registry,
    bench::{Devices, Workload},
    model, project,
};
use serde_json::json;

/// The number of different symbols in the workload for a GPU.
const SYMBOLS: i64 = 8192;

/// Returns the models and data sets of this project.
pub fn registry() -> Registry {
    Registry::new(project!())
        .data_set(
            DataSet::new("rings", data::rings::load)
                .about("2,000 points of two noisy rings in the plane"),
        )
        .data_set(
            DataSet::new("sentences", data::sentences::load)
                .about("640 sentences of a made-up grammar over 12 symbols"),
        )
        .model(
            model!(RingNet)
                .about("a small MLP that decides whether a point is in the inner or the outer ring")
                .data("rings")
                .epochs(6)
                .batch_size(32)
                .margin(0.03)
                .learns_by(0.15),
        )
        .model(
            model!(NextSymbol)
                .about("causal attention that predicts the next symbol of a sentence")
                .data("sentences")
                .epochs(4)
                .batch_size(32)
                .judged_by_loss()
                .learns_by(0.5),
        )
        .workload(
            // With this size, the workload makes full use of a GPU. The workload is measured only
            // if the command names it.
            Workload::new("next-symbol", "NextSymbol")
                .batch(64)
                .tokens(16, 512, SYMBOLS)
                .hyperparameters(json!({ "symbols": SYMBOLS, "width": 256 }))
                .with_compiler_modes()
                .on(Devices::NONE),
        )
}
