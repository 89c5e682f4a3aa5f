//! The derive macros of amp-core, which turn an annotated struct into a model, a layer or a type of
//! batch.
//!
//! The modules work one after the other, and no module needs torch. `fragments` removes the traces
//! of a surrounding `macro_rules!` macro. `parse` reads the struct into a `spec`. `check` applies
//! the rules and makes the `model`. `expand` generates the code. All modules report their errors to
//! `diag`. If there are errors, `fallback` emits empty implementations, so that rustc does not also
//! report missing implementations.

mod batch;
mod check;
mod diag;
mod expand;
mod fallback;
mod fragments;
mod manifest;
mod model;
mod parse;
mod spec;
mod suggest;
mod symbol;
mod table;
mod tokens;

use proc_macro::TokenStream;
use syn::DeriveInput;

use crate::{diag::Diagnostics, manifest::Manifest, spec::Derive};

#[doc = include_str!("../docs/lightning_module.md")]
#[proc_macro_derive(
    LightningModule,
    attributes(
        amp,
        forward,
        batch,
        loss,
        metric,
        log,
        optimizer,
        scheduler,
        training_step,
        validation_step,
        test_step,
        predict_step,
        manual_step,
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
        parameter,
        buffer,
        state,
        transient,
        precision
    )
)]
pub fn lightning_module(input: TokenStream) -> TokenStream {
    derive(input.into(), Derive::LightningModule, manifest::read).into()
}

#[doc = include_str!("../docs/module.md")]
#[proc_macro_derive(
    Module,
    attributes(
        amp,
        forward,
        batch,
        loss,
        metric,
        log,
        optimizer,
        scheduler,
        training_step,
        validation_step,
        test_step,
        predict_step,
        manual_step,
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
        parameter,
        buffer,
        state,
        transient,
        precision
    )
)]
pub fn module(input: TokenStream) -> TokenStream {
    derive(input.into(), Derive::Module, manifest::read).into()
}

#[doc = include_str!("../docs/batch.md")]
#[proc_macro_derive(Batch, attributes(amp, batch))]
pub fn batch(input: TokenStream) -> TokenStream {
    batch::derive(input.into(), manifest::read).into()
}

/// Expands a derive macro. Input and output are tokens of the crate proc_macro2, so that tests can
/// call this function outside rustc.
fn derive(
    input: proc_macro2::TokenStream,
    which: Derive,
    manifest: fn() -> Manifest,
) -> proc_macro2::TokenStream {
    let input: DeriveInput = match syn::parse2(fragments::written_out(input)) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let diag = Diagnostics::new();
    check::amp_core::alias_is_free(&input, &diag);
    let attrs = parse::attributes(&input, &diag);
    let amp_core = check::amp_core::path(&attrs, manifest, &diag);
    let spec = parse::parse(&input, attrs, which, &diag);
    let model = spec.as_ref().and_then(|spec| check::check(spec, &diag));
    match diag.finish(model.zip(amp_core.clone())) {
        Ok(((model, amp_core), warnings)) => expand::expand(model, &amp_core, &warnings),
        Err(errors) => {
            let mut tokens = errors.into_compile_error();
            if let Some(amp_core) = amp_core {
                tokens.extend(fallback::expand(&input, spec.as_ref(), which, &amp_core));
            }
            tokens
        }
    }
}
