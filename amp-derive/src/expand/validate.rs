//! `LightningModule::validation_step`, `test_step` and `predict_step`.

use proc_macro2::TokenStream;
use quote::quote;

use super::log::{self, Locals};
use crate::model::{Metric, Step};

pub(super) fn expand(step: &Step) -> TokenStream {
    let locals = Locals::new();
    let Locals { batch, step: argument, .. } = &locals;
    let body = match step {
        Step::Function { path, .. } | Step::Manual(path) => {
            quote!(__amp::with_batch(#batch, |#batch| #path(self, #batch, #argument)))
        }
        Step::Generated { loss, log, metrics } => {
            let logged = log::step(&locals, "val", loss, *log, metrics);
            quote! {
                #logged
                __amp::Ok(())
            }
        }
    };
    let test = test(step, &locals);
    let predict = predict(&locals);
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

/// The generated validation step under the names of the test; none beside a function of the user's.
fn test(step: &Step, locals: &Locals) -> Option<TokenStream> {
    let Step::Generated { loss, log, metrics } = step else { return None };
    let renamed = |metric: &Metric| Metric {
        name: match metric.name.strip_prefix("val_") {
            Some(name) => format!("test_{name}"),
            None => metric.name.clone(),
        },
        ..metric.clone()
    };
    let metrics: Vec<Metric> = metrics.iter().map(renamed).collect();
    let logged = log::step(locals, "test", loss, *log, &metrics);
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

fn predict(Locals { batch, step, output, .. }: &Locals) -> TokenStream {
    quote! {
        fn predict_step(
            &mut self,
            #batch: &__amp::AnyBatch,
            #step: &mut __amp::Step<'_>,
        ) -> __amp::Result<__amp::AnyBatch> {
            let #output =
                __amp::Module::forward(self, #batch.required("input")?, #step.context())?;
            __amp::predictions(&#output)
        }
    }
}
