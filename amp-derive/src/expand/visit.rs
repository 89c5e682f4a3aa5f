//! `Module::visit`: layers in order of declaration, under their fields' names.

use proc_macro2::TokenStream;
use quote::quote;

use super::{key, local, region};
use crate::model::Model;

pub(super) fn expand(model: &Model) -> TokenStream {
    let visitor = local("visitor");
    let children = model.layers().map(|(field, precision)| {
        let (ident, name, region) = (&field.ident, key(&field.ident), region(precision));
        quote! { __amp::visit_child(#visitor, #name, #region, &self.#ident); }
    });
    quote! {
        fn visit(&self, #visitor: &mut dyn __amp::Visitor) {
            #(#children)*
        }
    }
}
