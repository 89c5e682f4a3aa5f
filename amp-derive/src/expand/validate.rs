//! Generates the methods `validation_step`, `test_step` and `predict_step` of `LightningModule`.

use proc_macro2::TokenStream;
use quote::quote;

use super::{
    batch,
    log::{self, Locals},
};
use crate::model::{Metric, Model, Step};

pub(super) fn expand(model: &Model, step: &Step) -> TokenStream {
    let locals = Locals::new();
    let Locals { batch, step: argument, .. } = &locals;
    let body = match step {
        Step::Function { path, .. } | Step::Manual(path) => {
            quote!(__amp::with_batch(#batch, |#batch| #path(self, #batch, #argument)))
        }
        Step::Generated { loss, log, metrics } => {
            let logged = log::step(model, &locals, "val", loss, *log, metrics);
            quote! {
                #logged
                __amp::Ok(())
            }
        }
    };
    let test = test(model, step, &locals);
    let predict = predict(model, &locals);
    quote! {
        fn validation_step(
            &mut self,
            #batch: &__amp::AnyBatch,
            #argument: &mut __amp::Step<'_>,
        ) -> __amp::Result<()> {
            #body
        }
        #test
        #predict
    }
}

/// Generates the test step with the code of the validation step. Returns `None` if the user has
/// written the validation step.
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
    let Locals { batch, step: argument, .. } = locals;
    Some(quote! {
        fn test_step(
            &mut self,
            #batch: &__amp::AnyBatch,
            #argument: &mut __amp::Step<'_>,
        ) -> __amp::Result<()> {
            #logged
            __amp::Ok(())
        }
    })
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
