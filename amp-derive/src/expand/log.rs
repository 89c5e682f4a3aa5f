//! What a generated step logs.

use proc_macro2::{Ident, TokenStream};
use quote::quote;

use super::{batch, local};
use crate::model::{BatchOf, Body, LogOptions, Loss, Metric, MetricValue, Model, Pair, Part};

/// The locals of a generated step.
pub(super) struct Locals {
    pub(super) batch: Ident,
    pub(super) step: Ident,
    pub(super) output: Ident,
    pub(super) loss: Ident,
    /// The batch as the type that the model names.
    pub(super) examples: Ident,
}

impl Locals {
    pub(super) fn new() -> Self {
        Self {
            batch: local("batch"),
            step: local("step"),
            output: local("output"),
            loss: local("loss"),
            examples: local("examples"),
        }
    }
}

/// Runs the model and computes and logs the loss and the metrics.
pub(super) fn step(
    model: &Model,
    locals: &Locals,
    stage: &str,
    loss: &Loss,
    log: LogOptions,
    metrics: &[Metric],
) -> TokenStream {
    let Locals { batch, step, output, loss: value, .. } = locals;
    let (taken, forward) = (batch::taken(model, locals), batch::forward(model, locals));
    let computed = compute(model, loss, locals);
    let (name, options) = (format!("{stage}_loss"), options(log));
    let metrics = metrics.iter().map(|metric| self::metric(model, metric, locals));
    quote! {
        #taken
        let #output = #forward;
        #computed
        #step.log(#name, &#value, #batch.len(), #options)?;
        #(#metrics)*
    }
}

fn compute(model: &Model, loss: &Loss, locals: &Locals) -> TokenStream {
    let Locals { output, loss: value, .. } = locals;
    let target = batch::target(model, locals);
    match loss {
        Loss::Known(function) => {
            quote! { let #value = __amp::loss::#function(&#output, #target)?; }
        }
        Loss::Function(function) => {
            quote! { let #value = (#function)(&#output, #target)?; }
        }
        Loss::Closure(closure) => {
            // With types, since a closure that is called at once has none to go by.
            let criterion = local("criterion");
            let types = given(model);
            let arguments = closure.inputs.iter().zip(types).map(|(pat, ty)| match pat {
                typed @ syn::Pat::Type(_) => quote!(#typed),
                pat => quote!(#pat: &#ty),
            });
            let body = &closure.body;
            quote! {
                let #criterion = |#(#arguments),*| -> __amp::Result<__amp::Tensor> { #body };
                let #value = #criterion(&#output, #target)?;
            }
        }
    }
}

/// The types of output and target, behind references, where a loss leaves them out.
fn given(model: &Model) -> [TokenStream; 2] {
    let tensor = || quote!(__amp::Tensor);
    let output = match model.forward.of_any_inputs() {
        Some(Body { output: Some((_, output)), .. }) => quote!(#output),
        _ => tensor(),
    };
    let target = match &model.batch {
        Some(BatchOf { ty, target: Part::Whole, .. }) => quote!(#ty),
        _ => tensor(),
    };
    [output, target]
}

fn metric(model: &Model, metric: &Metric, locals: &Locals) -> TokenStream {
    let step = &locals.step;
    let (name, options) = (&metric.name, options(metric.log));
    let value = match &metric.value {
        MetricValue::Rust(expr) => quote!(#expr),
        MetricValue::Known { row, at, keys } => {
            let ty = Ident::new(row.ty, at.span());
            let keys = keys.iter().map(|Pair { key, value }| quote!(#key: #value));
            match row.required.is_empty() {
                true => quote!(__amp::metric::#ty),
                false => quote!(__amp::metric::#ty { #(#keys),* }),
            }
        }
    };
    let output = batch::measured(metric.of.output.as_ref(), locals);
    let target = match &metric.of.target {
        Some(part) => batch::part(part, locals),
        None => batch::target(model, locals),
    };
    quote! { #step.metric(#name, &#value, #output, #target, #options)?; }
}

fn options(LogOptions { on_step, on_epoch, prog_bar }: LogOptions) -> TokenStream {
    quote! {
        __amp::LogOptions { on_step: #on_step, on_epoch: #on_epoch, prog_bar: #prog_bar }
    }
}
