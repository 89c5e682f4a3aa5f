//! `LightningModule::training_step`.

use proc_macro2::TokenStream;
use quote::quote;

use super::log::{self, Locals};
use crate::model::Step;

pub(super) fn expand(step: &Step) -> TokenStream {
    let locals = Locals::new();
    let Locals { batch, step: argument, loss: value, .. } = &locals;
    let body = match step {
        Step::Function(function) => {
            quote!(__amp::with_batch(#batch, |#batch| #function(self, #batch, #argument)))
        }
        Step::Generated { loss, log, metrics } => {
            let logged = log::step(&locals, "train", loss, *log, metrics);
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
    }
}
