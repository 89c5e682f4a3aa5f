//! `LightningModule::validation_step`.

use proc_macro2::TokenStream;
use quote::quote;

use super::log::{self, Locals};
use crate::model::Step;

pub(super) fn expand(step: &Step) -> TokenStream {
    let locals = Locals::new();
    let Locals { batch, step: argument, .. } = &locals;
    let body = match step {
        Step::Function(function) => quote!(#function(self, #batch, #argument)),
        Step::Generated { loss, log, metrics } => {
            let logged = log::step(&locals, "val", loss, *log, metrics);
            quote! {
                #logged
                __amp::Ok(())
            }
        }
    };
    quote! {
        fn validation_step(
            &mut self,
            #batch: &__amp::Batch,
            #argument: &mut __amp::Step<'_>,
        ) -> __amp::Result<()> {
            #body
        }
    }
}
