//! `Visit::visit`: layers in order of declaration, under their fields' names.

use proc_macro2::TokenStream;
use quote::quote;

use super::{key, layer_of_self, local, region};
use crate::model::Model;

pub(super) fn expand(model: &Model) -> TokenStream {
    let visitor = local("visitor");
    let children = model.layers().map(|(field, precision)| {
        let (name, region, layer) = (key(&field.ident), region(precision), layer_of_self(field));
        quote! { __amp::visit_child(#visitor, #name, #region, #layer); }
    });
    quote! {
        fn visit(&self, #visitor: &mut dyn __amp::Visitor) {
            #(#children)*
        }
    }
}
