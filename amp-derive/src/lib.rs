//! The derives of amp-core: an annotated struct becomes a model that trains.
//!
//! One way, without torch: `parse` reads the struct into a `spec`, `check` applies the rules
//! and makes the `model`, `expand` writes the code. Errors are collected in `diag`; beside
//! them `fallback` puts stubs, so that nothing follows from a mistake but its message.

mod check;
mod diag;
mod expand;
mod fallback;
mod model;
mod parse;
mod spec;
mod suggest;
mod symbol;
mod table;
mod tokens;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

use crate::{diag::Diagnostics, spec::Derive};

#[doc = include_str!("../docs/lightning_module.md")]
#[proc_macro_derive(
    LightningModule,
    attributes(
        forward,
        loss,
        metric,
        log,
        optimizer,
        scheduler,
        training_step,
        validation_step,
        configure_optimizers,
        on_train_start,
        on_train_epoch_start,
        on_before_optimizer_step,
        on_train_batch_end,
        on_train_epoch_end,
        on_validation_epoch_end,
        on_train_end,
        hparam,
        layer,
        state,
        transient,
        precision
    )
)]
pub fn lightning_module(input: TokenStream) -> TokenStream {
    derive(&parse_macro_input!(input as DeriveInput), Derive::LightningModule).into()
}

#[doc = include_str!("../docs/module.md")]
#[proc_macro_derive(
    Module,
    attributes(
        forward,
        loss,
        metric,
        log,
        optimizer,
        scheduler,
        training_step,
        validation_step,
        configure_optimizers,
        on_train_start,
        on_train_epoch_start,
        on_before_optimizer_step,
        on_train_batch_end,
        on_train_epoch_end,
        on_validation_epoch_end,
        on_train_end,
        hparam,
        layer,
        state,
        transient,
        precision
    )
)]
pub fn module(input: TokenStream) -> TokenStream {
    derive(&parse_macro_input!(input as DeriveInput), Derive::Module).into()
}

/// The whole pipeline, without a compiler around it.
fn derive(input: &DeriveInput, which: Derive) -> proc_macro2::TokenStream {
    let diag = Diagnostics::new();
    let spec = parse::parse(input, which, &diag);
    let model = spec.as_ref().and_then(|spec| check::check(spec, &diag));
    match diag.finish(model) {
        Ok((model, warnings)) => expand::expand(model, &warnings),
        Err(errors) => {
            let mut tokens = errors.into_compile_error();
            tokens.extend(fallback::expand(input, spec.as_ref(), which));
            tokens
        }
    }
}
