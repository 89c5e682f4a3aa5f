//! Generates `LightningModule::training_step`. For a model with a manual step, generates
//! `manual_step` instead.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ExprPath;

use super::log::{self, Locals};
use crate::model::{Model, Step};

pub(super) fn expand(model: &Model, step: &Step) -> TokenStream {
    let locals = Locals::new();
    let Locals { batch, step: argument, loss: value, .. } = &locals;
    let (counts, reductions);
    let body = match step {
        Step::Manual(path) => return manual(path, &locals),
        Step::Function { path, own, .. } => {
            counts = log::step_counts(model, own);
            reductions = None;
            quote!(__amp::with_batch(#batch, |#batch| #path(self, #batch, #argument)))
        }
        Step::Generated { loss, log, metrics } => {
            let logged = log::step(model, &locals, "train", loss, *log, metrics);
            counts = log::loss_counts(model, loss);
            reductions = log::reductions(metrics);
            quote! {
                #logged
                __amp::Ok(#value)
            }
        }
    };
    quote! {
        fn training_step(
            &mut self,
            #batch: &__amp::AnyBatch,
            #argument: &mut __amp::Step<'_>,
        ) -> __amp::Result<__amp::Tensor> {
            #body
        }
        #counts
        #reductions
    }
}

fn manual(path: &ExprPath, Locals { batch, step, .. }: &Locals) -> TokenStream {
    quote! {
        fn optimizes_manually(&self) -> __amp::bool {
            true
        }
        fn manual_step(
            &mut self,
            #batch: &__amp::AnyBatch,
            #step: &mut __amp::ManualStep<'_>,
        ) -> __amp::Result<()> {
            __amp::with_batch(#batch, |#batch| #path(self, #batch, #step))
        }
    }
}
