//! Checks for code that compiles but trains poorly.

use proc_macro2::Ident;
use syn::Expr;

use crate::{
    diag::Diagnostics,
    model::{Build, Forward, Kind, Model, Region, Source},
    spec::{Attr, Field, Spec, has, named, word},
    symbol,
};

/// Adds warnings for a struct in which no errors were found.
pub(super) fn advise(model: &Model, diag: &Diagnostics) {
    batch_norm_is_not_fed_low_precision(model, diag);
}

/// Warns about a batch norm without a precision region after a layer with `#[precision(fp16)]` or
/// `#[precision(bf16)]`, directly or with layers without a region between the two. The batch norm's
/// input is then rounded, and so are the mean and variance that the batch norm computes from it.
fn batch_norm_is_not_fed_low_precision(model: &Model, diag: &Diagnostics) {
    // With `#[forward]`, the order of the fields is not the order in which the layers run, so
    // nothing is checked.
    if !matches!(model.forward, Forward::InOrder) {
        return;
    }
    let mut low: Option<&Ident> = None;
    for field in &model.fields {
        let Kind::Layer { source, region } = &field.kind else {
            continue;
        };
        let norm = match source {
            Source::Built(build) => find(build, &|name| name.starts_with("batch_norm")),
            Source::Argument => None,
        };
        if let (Some(norm), Some(low), None) = (norm, low, region) {
            diag.warn(
                norm.span(),
                "BATCH_NORM_AFTER_LOW_PRECISION",
                format!(
                    "the statistics are computed from half-precision values, because `{low}` runs in \
                     half precision; add `#[precision(fp32)]` to `{}`",
                    field.ident
                ),
            );
        }
        low = match region {
            Some(Region::Fp16 | Region::Bf16) => Some(&field.ident),
            Some(_) => None,
            None => low,
        };
    }
}

/// Reports an error if a model ends in a sigmoid or a softmax, and its loss or one of its metrics
/// expects logits. A loss of logits applies the function itself. With two of them the model would
/// run, but learn slowly. A metric of logits compares them with 0, so that each probability would
/// count as a positive label.
pub(super) fn outputs_are_logits(spec: &Spec, diag: &Diagnostics) {
    // With `#[forward]`, the last field is not necessarily the layer that runs last, so nothing is
    // checked.
    if has(&spec.attrs, symbol::FORWARD) {
        return;
    }
    let args = |attr: &'_ Attr| attr.args.as_ref().and_then(|args| args.first().cloned());
    let layer = |field: &Field| named(&field.attrs, symbol::LAYER).next().and_then(args);
    let last = spec.fields.iter().rfind(|field| has(&field.attrs, symbol::LAYER));
    let Some(last) = last.and_then(layer) else { return };
    let Some(last) = last_of(&last) else { return };
    let names = |symbol| {
        named(&spec.attrs, symbol).filter_map(args).filter_map(|name| Some(word(&name)?.clone()))
    };
    let applied = |loss: &Ident| match loss.to_string().as_str() {
        "binary_cross_entropy_with_logits" | "focal" => "sigmoid",
        "cross_entropy" => "softmax",
        _ => "",
    };
    if let Some(loss) = names(symbol::LOSS).find(|loss| last == applied(loss)) {
        diag.error(last, format!("`{loss}` applies the {last} itself: remove this {last}"));
    } else if let Some(metric) =
        names(symbol::METRIC).find(|metric| last == "sigmoid" && compares(metric))
    {
        diag.error(
            last,
            format!(
                "`{metric}` takes logits and compares them with 0, so that every output of this \
                 sigmoid counts as positive: remove the sigmoid, and apply it in the loss"
            ),
        );
    }
}

/// Returns whether a metric compares logits with 0. The curves (ROC, precision and recall) do not:
/// they only sort the outputs.
fn compares(metric: &Ident) -> bool {
    let name = metric.to_string();
    let is_of_labels = name.starts_with("binary_") || name.starts_with("multilabel_");
    is_of_labels && !name.ends_with("_auroc") && !name.ends_with("_average_precision")
}

/// Returns the first layer in `build` whose name satisfies `accepts`.
fn find<'a>(build: &'a Build, accepts: &dyn Fn(&str) -> bool) -> Option<&'a Ident> {
    match build {
        Build::Rust(_) => None,
        Build::Layer { row, at, .. } => accepts(row.entry.name).then_some(at),
        Build::Sequential(layers) => layers.iter().find_map(|layer| find(layer, accepts)),
        Build::Repeat { layer, .. }
        | Build::Optional { layer, .. }
        | Build::Checkpoint { layer, .. } => find(layer, accepts),
    }
}

/// Returns the name of the layer that runs last in the expression `layer`.
fn last_of(layer: &Expr) -> Option<&Ident> {
    match layer {
        Expr::Call(call) => match word(&call.func)? {
            name if name == symbol::SEQUENTIAL => call.args.last().and_then(last_of),
            name => Some(name),
        },
        _ => word(layer),
    }
}
