//! Generates the methods `validation_step`, `test_step` and `predict_step` of `LightningModule`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ExprPath;

use super::{
    batch,
    log::{self, Locals},
};
use crate::model::{Lightning, Metric, Model, Step};

pub(super) fn expand(model: &Model, lightning: &Lightning) -> TokenStream {
    let locals = Locals::new();
    let validation = lightning.validation.as_ref().map(|step| validation(model, step, &locals));
    let test = match &lightning.test {
        Some(path) => Some(test_step(&calls(path, &locals), &locals)),
        None => lightning.validation.as_ref().and_then(|step| test(model, step, &locals)),
    };
    let predict = match &lightning.predict {
        Some(path) => Some(own_predict(path, &locals)),
        None => lightning.validation.as_ref().and_then(|_| predict(model, &locals)),
    };
    quote! { #validation #test #predict }
}

/// Generates the call of the user's function `path` with the model, the batch and the step. The
/// batch is converted to the type that the function takes.
fn calls(path: &ExprPath, Locals { batch, step, .. }: &Locals) -> TokenStream {
    quote!(__amp::with_batch(#batch, |#batch| #path(self, #batch, #step)))
}

fn validation(model: &Model, step: &Step, locals: &Locals) -> TokenStream {
    let Locals { batch, step: argument, .. } = locals;
    let body = match step {
        Step::Function { path, .. } | Step::Manual(path) => calls(path, locals),
        Step::Generated { loss, log, metrics } => {
            let logged = log::step(model, locals, "val", loss, *log, metrics);
            quote! {
                #logged
                __amp::Ok(())
            }
        }
    };
    quote! {
        fn validation_step(
            &mut self,
            #batch: &__amp::AnyBatch,
            #argument: &mut __amp::Step<'_>,
        ) -> __amp::Result<()> {
            #body
        }
    }
}

/// Generates the test step, which computes what the validation step computes. Returns `None` if the
/// user has written the validation step.
fn test(model: &Model, step: &Step, locals: &Locals) -> Option<TokenStream> {
    let Step::Generated { loss, log, metrics } = step else { return None };
    let renamed = |metric: &Metric| Metric {
        name: match metric.name.strip_prefix("val_") {
            Some(name) => format!("test_{name}"),
            None => metric.name.clone(),
        },
        ..metric.clone()
    };
    let metrics: Vec<Metric> = metrics.iter().map(renamed).collect();
    let logged = log::step(model, locals, "test", loss, *log, &metrics);
    let body = quote! {
        #logged
        __amp::Ok(())
    };
    Some(test_step(&body, locals))
}

fn test_step(body: &TokenStream, Locals { batch, step, .. }: &Locals) -> TokenStream {
    quote! {
        fn test_step(
            &mut self,
            #batch: &__amp::AnyBatch,
            #step: &mut __amp::Step<'_>,
        ) -> __amp::Result<()> {
            #body
        }
    }
}

fn own_predict(path: &ExprPath, locals: &Locals) -> TokenStream {
    let (Locals { batch, step, output, .. }, call) = (locals, calls(path, locals));
    quote! {
        fn predict_step(
            &mut self,
            #batch: &__amp::AnyBatch,
            #step: &mut __amp::Step<'_>,
        ) -> __amp::Result<__amp::AnyBatch> {
            let #output = #call?;
            __amp::predictions(&#output)
        }
    }
}

fn predict(model: &Model, locals: &Locals) -> Option<TokenStream> {
    let predicted = batch::predicted(model, locals)?;
    let Locals { batch, step, output, .. } = locals;
    Some(quote! {
        fn predict_step(
            &mut self,
            #batch: &__amp::AnyBatch,
            #step: &mut __amp::Step<'_>,
        ) -> __amp::Result<__amp::AnyBatch> {
            #predicted
            __amp::predictions(&#output)
        }
    })
}
