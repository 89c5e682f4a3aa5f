//! Generates `Visit::visit`, which visits layers and tensors in order of declaration, under their
//! fields' names.

use proc_macro2::TokenStream;
use quote::quote;

use super::{key, layer_of_self, local, region, tensor};
use crate::model::{Kind, Model};

pub(super) fn expand(model: &Model) -> TokenStream {
    let visitor = local("visitor");
    let children = model.fields.iter().filter_map(|field| {
        let (name, ident) = (key(&field.ident), &field.ident);
        match &field.kind {
            Kind::Layer { region: precision, .. } => {
                let (region, layer) = (region(*precision), layer_of_self(field));
                Some(quote! { __amp::visit_child(#visitor, #name, #region, #layer); })
            }
            Kind::Tensor { role, .. } => {
                let role = tensor::role(*role);
                Some(quote! { __amp::Visitor::tensor(#visitor, #name, &self.#ident, #role); })
            }
            Kind::Hparam { .. } | Kind::State { .. } => None,
        }
    });
    quote! {
        fn visit(&self, #visitor: &mut dyn __amp::Visitor) {
            #(#children)*
        }
    }
}
