//! How a tensor of the module's own is made.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;

use super::{key, located_at};
use crate::model::{Initial, Role};

/// An expression of a tensor, in a function that returns `Result`.
pub(super) fn expand(ident: &Ident, role: Role, initial: &Initial) -> TokenStream {
    let role = self::role(role);
    match initial {
        Initial::Drawn { row, arguments, shape } => {
            let variant = format_ident!("{}", row.variant);
            let draw = match arguments.as_slice() {
                [] => quote!(__amp::nn::Init::#variant),
                arguments => {
                    let keys = row.arguments.iter().map(|name| format_ident!("{name}"));
                    quote!(__amp::nn::Init::#variant { #(#keys: #arguments),* })
                }
            };
            quote!(#draw.tensor(&#shape, #role)?)
        }
        Initial::Rust(value) => {
            let name = key(ident);
            // Located at the value, so that rustc says there that it is no tensor.
            quote_spanned!(located_at(value.span())=> __amp::nn::own_tensor(#name, #value, #role)?)
        }
    }
}

pub(super) fn role(role: Role) -> TokenStream {
    match role {
        Role::Parameter => quote!(__amp::nn::Role::Parameter),
        Role::Buffer => quote!(__amp::nn::Role::Buffer),
    }
}
