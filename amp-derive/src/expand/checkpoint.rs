//! What a checkpoint holds of the struct's own state.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{ext::IdentExt, spanned::Spanned};

use super::{local, located_at};
use crate::model::{Field, Kind, Model};

/// Both directions, or nothing where nothing is to be saved.
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
        // A type that cannot be saved is underlined where it stands.
        let span = located_at(ty.span());
        quote_spanned!(span=> __amp::State::put(#state, #name, &self.#ident)?;)
    });
    let load = fields.iter().map(|Field { ident, ty, .. }| {
        let name = ident.unraw().to_string();
        let span = located_at(ty.span());
        quote_spanned!(span=> self.#ident = __amp::State::get(#state, #name)?;)
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
