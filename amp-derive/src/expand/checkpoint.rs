//! Generates the code that saves and loads the struct's `#[state]` fields.

use proc_macro2::{Ident, TokenStream};
use quote::{quote, quote_spanned};
use syn::{Type, ext::IdentExt, spanned::Spanned};

use super::local;
use crate::model::{Field, Kind, Model};

/// Generates the functions that save and load the struct's state. Returns `None` if the struct has
/// no state.
pub(super) fn expand(model: &Model) -> Option<TokenStream> {
    let fields: Vec<&Field> = model
        .fields
        .iter()
        .filter(|field| matches!(field.kind, Kind::State { saved: true, .. }))
        .collect();
    if fields.is_empty() {
        return None;
    }
    let state = local("state");
    let save = fields.iter().map(|Field { ident, ty, .. }| {
        let name = ident.unraw().to_string();
        let value = value(ty);
        let put = quote_spanned!(ty.span()=> __amp::State::put(#state, #name, #value)?;);
        quote! {{
            let #value = &self.#ident;
            #put
        }}
    });
    let load = fields.iter().map(|Field { ident, ty, .. }| {
        let name = ident.unraw().to_string();
        let value = value(ty);
        let get = quote_spanned!(ty.span()=> __amp::State::get(#state, #name)?);
        quote! {{
            let #value = #get;
            self.#ident = #value;
        }}
    });
    Some(quote! {
        fn on_save_checkpoint(&self, #state: &mut __amp::State) -> __amp::Result<()> {
            #(#save)*
            __amp::Ok(())
        }
        fn on_load_checkpoint(&mut self, #state: &__amp::State) -> __amp::Result<()> {
            #(#load)*
            __amp::Ok(())
        }
    })
}

/// Returns a variable with the span of `ty`. If the type cannot be saved, rustc then underlines
/// `ty`. `self` must not get this span: if `ty` was passed to a `macro_rules!` macro, the span
/// belongs to the macro's caller, and rustc would not find the method's `self`.
fn value(ty: &Type) -> Ident {
    Ident::new("__value", ty.span())
}
