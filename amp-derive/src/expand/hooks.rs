//! Generates the hooks of the training loop. Each hook calls a function that the user has written.

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;

use super::local;
use crate::{model::OwnHook, table::HookArgument};

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

fn argument(given: HookArgument) -> (Ident, TokenStream) {
    match given {
        HookArgument::Gradients => (local("gradients"), quote!(&__amp::Gradients<__amp::Unscaled>)),
        HookArgument::Loss => (local("loss"), quote!(&__amp::Tensor)),
        HookArgument::Outcome => (local("outcome"), quote!(__amp::Option<&__amp::StepOutcome>)),
        HookArgument::Hook => (local("hook"), quote!(&mut __amp::Hook<'_>)),
    }
}
