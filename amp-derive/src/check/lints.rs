//! Lints over the checked model: code that runs, but not as meant in low precision.

use proc_macro2::Ident;

use super::keys;
use crate::{
    diag::Diagnostics,
    model::{Build, Forward, Kind, Loss, Model, Optimizers, Region, Source, Step},
};

pub(super) fn check(model: &Model, diag: &Diagnostics) {
    eps_is_representable_in_half_precision(model, diag);
    batch_norm_is_not_fed_low_precision(model, diag);
    logits_have_no_sigmoid(model, diag);
}

/// Rule (advice): Adam divides by √v + eps. Below 2⁻²⁴ ≈ 6e-8 f16 has no numbers, so a smaller
/// eps is lost under `16-true` (Lightning #20619).
fn eps_is_representable_in_half_precision(model: &Model, diag: &Diagnostics) {
    let Some(lightning) = &model.lightning else {
        return;
    };
    let Optimizers::Generated { optimizer, .. } = &lightning.optimizers else {
        return;
    };
    let eps = optimizer.keys.iter().find(|pair| pair.key == "eps");
    if let Some(eps) = eps.filter(|eps| keys::number(&eps.value).is_some_and(|eps| eps < 1e-7)) {
        let at = syn::spanned::Spanned::span(&eps.value);
        diag.warn(
            at,
            "EPS_UNDERFLOWS_IN_HALF_PRECISION",
            "float16 has no numbers this small, so under 16-true a larger eps is used; write \
             `eps = 1e-4` to have the same in every precision",
        );
    }
}

/// Rule (advice): batch norm takes its statistics from its input; behind a field in half
/// precision they are those of rounded values.
fn batch_norm_is_not_fed_low_precision(model: &Model, diag: &Diagnostics) {
    // With a forward of the user's own, the order of fields says nothing.
    if !matches!(model.forward, Forward::InOrder) {
        return;
    }
    let mut before: Option<(&Ident, Region)> = None;
    for field in &model.fields {
        let Kind::Layer { source, region } = &field.kind else {
            continue;
        };
        let norm = match source {
            Source::Built(build) => find(build, &|name| name.starts_with("batch_norm")),
            Source::Given => None,
        };
        if let (Some(norm), Some((low, _)), None) = (norm, before, region) {
            diag.warn(
                norm.span(),
                "BATCH_NORM_AFTER_LOW_PRECISION",
                format!(
                    "the statistics are taken of half-precision values, because `{low}` runs in \
                     half precision; add `#[precision(fp32)]` to `{}`",
                    field.ident
                ),
            );
        }
        before = match region {
            Some(low @ (Region::Fp16 | Region::Bf16)) => Some((&field.ident, *low)),
            Some(_) => None,
            None => before,
        };
    }
}

/// Rule: a loss of logits applies the sigmoid itself; a model that ends in one applies it twice
/// and learns slowly, without an error.
fn logits_have_no_sigmoid(model: &Model, diag: &Diagnostics) {
    let Some(lightning) = &model.lightning else {
        return;
    };
    let Step::Generated { loss: Loss::Known(loss), .. } = &lightning.training else {
        return;
    };
    if loss != "binary_cross_entropy_with_logits" || !matches!(model.forward, Forward::InOrder) {
        return;
    }
    let last = model.layers().last().map(|(field, _)| &field.kind);
    if let Some(Kind::Layer { source: Source::Built(build), .. }) = last
        && let Some(sigmoid) = last_of(build).filter(|name| *name == "sigmoid")
    {
        diag.error(sigmoid, format!("`{loss}` applies the sigmoid itself: take this one away"));
    }
}

/// The first layer of the table in `build` whose name is accepted.
fn find<'a>(build: &'a Build, accepts: &dyn Fn(&str) -> bool) -> Option<&'a Ident> {
    match build {
        Build::Rust(_) => None,
        Build::Layer { row, at, .. } => accepts(row.entry.name).then_some(at),
        Build::Sequential { layers, .. } => layers.iter().find_map(|layer| find(layer, accepts)),
        Build::Repeat { layer, .. } | Build::Optional { layer, .. } => find(layer, accepts),
    }
}

/// The name of the layer that runs last in `build`.
fn last_of(build: &Build) -> Option<&Ident> {
    match build {
        Build::Rust(_) => None,
        Build::Layer { at, .. } => Some(at),
        Build::Sequential { layers, .. } => layers.last().and_then(last_of),
        Build::Repeat { layer, .. } | Build::Optional { layer, .. } => last_of(layer),
    }
}
