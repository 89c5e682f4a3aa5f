//! Models of a crate that depends on amp-core under the name `engine` and denies all lints.

#![deny(warnings, missing_docs, unsafe_code, unreachable_pub, unused)]
#![deny(elided_lifetimes_in_paths, missing_copy_implementations, missing_debug_implementations)]
#![deny(single_use_lifetimes, trivial_casts, trivial_numeric_casts, unused_qualifications)]
#![deny(unused_results, let_underscore_drop, variant_size_differences, unused_lifetimes)]
#![deny(clippy::all, clippy::pedantic, clippy::nursery, clippy::unwrap_used, clippy::panic)]
#![deny(clippy::unimplemented, clippy::unreachable, clippy::todo, clippy::absolute_paths)]
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::shadow_unrelated)]
#![deny(clippy::shadow_reuse, clippy::shadow_same, clippy::as_conversions)]

use engine::prelude::*;

/// A struct that uses every attribute of the derive macros.
#[derive(LightningModule)]
#[allow(missing_debug_implementations, reason = "a Sequential has none")]
#[forward(|x| {
    let inside = many(&body(x)?)?;
    head(&maybe(&inside)?)
})]
#[loss(with = |output, target| loss::cross_entropy(output, target))]
#[metric(accuracy, name = acc)]
#[metric(top_k, k = 2)]
#[optimizer(adamw, lr = self.rate, group(params = ["*.bias"], weight_decay = 0.0))]
#[scheduler(one_cycle, max_lr = self.rate, total_steps = plan.estimated_stepping_batches)]
#[log(train_loss(on_epoch, prog_bar))]
#[on_train_epoch_end(Self::count)]
pub struct Whole<B> {
    #[hparam]
    classes: i64,
    /// The number of hidden features.
    #[hparam(default = 8)]
    width: i64,
    #[hparam(default = 1e-2)]
    rate: f64,
    #[layer(sequential(linear(2, width, bias = false), layer_norm(width), relu))]
    body: Sequential,
    #[layer(repeat(2, |_| linear(width, width)))]
    many: Vec<Linear>,
    #[layer]
    maybe: B,
    #[layer(checkpoint(linear(width, classes)))]
    #[precision(fp32)]
    head: Checkpoint<Linear>,
    #[state]
    epochs: u64,
    #[state(vec![0.0])]
    losses: Vec<f64>,
    #[transient]
    last: Option<f64>,
}

impl<B> Whole<B> {
    fn count(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        self.epochs = self.epochs.saturating_add(1);
        self.losses.push(1.0);
        hook.log("one", &Tensor::from(1.0), LogOptions::ON_EPOCH)
    }

    /// Returns the number of epochs so far, and the value of the `#[transient]` field `last`.
    #[must_use]
    pub const fn seen(&self) -> (u64, Option<f64>) {
        (self.epochs, self.last)
    }
}

impl<const N: usize> Residual<N> {
    /// Returns the widths from which the struct was built.
    #[must_use]
    pub const fn widths(&self) -> [i64; N] {
        self.widths
    }
}

/// x + f(x).
#[derive(Module, Debug)]
#[forward(|x| Ok(x.f_add(&inner(x)?)?))]
pub struct Residual<const N: usize> {
    #[hparam]
    width: i64,
    #[transient([width; N])]
    widths: [i64; N],
    #[layer(linear(width, width))]
    inner: Linear,
}
