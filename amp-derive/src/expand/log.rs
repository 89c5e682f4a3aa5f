//! What a generated step logs.

use proc_macro2::{Ident, TokenStream};
use quote::quote;

use super::local;
use crate::model::{LogOptions, Loss, Metric, MetricValue, Pair};

/// The locals of a generated step.
pub(super) struct Locals {
    pub(super) batch: Ident,
    pub(super) step: Ident,
    pub(super) output: Ident,
    pub(super) loss: Ident,
}

impl Locals {
    pub(super) fn new() -> Self {
        Self {
            batch: local("batch"),
            step: local("step"),
            output: local("output"),
            loss: local("loss"),
        }
    }
}

/// Runs the model and computes and logs the loss and the metrics.
pub(super) fn step(
    locals: &Locals,
    stage: &str,
    loss: &Loss,
    log: LogOptions,
    metrics: &[Metric],
) -> TokenStream {
    let Locals { batch, step, output, loss: value } = locals;
    let computed = compute(loss, locals);
    let (name, options) = (format!("{stage}_loss"), options(log));
    let metrics = metrics.iter().map(|metric| self::metric(metric, locals));
    quote! {
        let #batch = <__amp::Batch as __amp::BatchType>::from_any(#batch)?;
        let #output = __amp::Module::forward(self, &#batch.input, #step.context())?;
        #computed
        #step.log(#name, &#value, #batch.len(), #options)?;
        #(#metrics)*
    }
}

fn compute(loss: &Loss, locals: &Locals) -> TokenStream {
    let Locals { batch, output, loss: value, .. } = locals;
    match loss {
        Loss::Known(function) => {
            quote! { let #value = __amp::loss::#function(&#output, &#batch.target)?; }
        }
        Loss::Function(function) => {
            quote! { let #value = (#function)(&#output, &#batch.target)?; }
        }
        Loss::Closure(closure) => {
            // With types, since a closure that is called at once has none to go by.
            let criterion = local("criterion");
            let arguments = closure.inputs.iter().map(|pat| match pat {
                typed @ syn::Pat::Type(_) => quote!(#typed),
                pat => quote!(#pat: &__amp::Tensor),
            });
            let body = &closure.body;
            quote! {
                let #criterion = |#(#arguments),*| -> __amp::Result<__amp::Tensor> { #body };
                let #value = #criterion(&#output, &#batch.target)?;
            }
        }
    }
}

fn metric(metric: &Metric, locals: &Locals) -> TokenStream {
    let Locals { batch, step, output, .. } = locals;
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
    quote! { #step.metric(#name, &#value, &#output, &#batch.target, #options)?; }
}

fn options(LogOptions { on_step, on_epoch, prog_bar }: LogOptions) -> TokenStream {
    quote! {
        __amp::LogOptions { on_step: #on_step, on_epoch: #on_epoch, prog_bar: #prog_bar }
    }
}
