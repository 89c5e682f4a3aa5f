//! The hooks of the training loop, each of which calls a function of the user's.

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;

use super::local;
use crate::{model::OwnHook, table::ModuleOutput};

pub(super) fn expand(OwnHook { hook, path, .. }: &OwnHook) -> TokenStream {
    let name = Ident::new(hook.name, Span::call_site());
    let (names, types): (Vec<Ident>, Vec<TokenStream>) =
        hook.takes.iter().map(|given| argument(*given)).unzip();
    quote! {
        fn #name(&mut self, #(#names: #types),*) -> __amp::Result<()> {
            #path(self, #(#names),*)
        }
    }
}

fn argument(given: ModuleOutput) -> (Ident, TokenStream) {
    match given {
        ModuleOutput::Gradients => (local("gradients"), quote!(&__amp::Gradients<__amp::Unscaled>)),
        ModuleOutput::Loss => (local("loss"), quote!(&__amp::Tensor)),
        ModuleOutput::Outcome => (local("outcome"), quote!(__amp::Option<&__amp::StepOutcome>)),
        ModuleOutput::Hook => (local("hook"), quote!(&mut __amp::Hook<'_>)),
    }
}
