//! Generates the code that creates a `#[parameter]` or a `#[buffer]` of the module.

use std::str::FromStr;

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;

use super::{key, located_at};
use crate::model::{Drawn, Initial, Role};

/// Generates an expression of type `Tensor`. It may contain `?`, because it is used in a function
/// that returns `Result`.
pub(super) fn expand(ident: &Ident, role: Role, initial: &Initial) -> TokenStream {
    let role = self::role(role);
    match initial {
        Initial::Drawn { drawn, shape } => {
            let draw = draw(drawn);
            quote!(#draw.tensor(&#shape, #role)?)
        }
        Initial::Rust(value) => {
            let name = key(ident);
            // The generated call gets the span of the value. If the value is not a tensor, rustc
            // then underlines the value.
            quote_spanned!(located_at(value.span())=> __amp::nn::own_tensor(#name, #value, #role)?)
        }
    }
}

/// Generates the expression, of amp-core's type `Init`, for an initializer of the table.
pub(super) fn draw(Drawn { row, values, options }: &Drawn) -> TokenStream {
    let (entry, variant) = (&row.entry, format_ident!("{}", row.entry.ty));
    let required = entry.required.iter().zip(values).map(|(key, value)| {
        let key = format_ident!("{}", key.name);
        quote!(#key: #value)
    });
    let options = entry.options.iter().zip(row.defaults).map(|(key, default)| {
        let name = format_ident!("{}", key.name);
        let given = options.iter().find(|pair| pair.key == key.name).map(|pair| &pair.value);
        // The table's text for a default is a literal or a path, so parsing it never fails.
        let default = TokenStream::from_str(default).unwrap_or_default();
        let value = given.map_or(default, |value| quote!(#value));
        quote!(#name: #value)
    });
    match entry.keys().next() {
        None => quote!(__amp::nn::Init::#variant),
        Some(_) => quote!(__amp::nn::Init::#variant { #(#required,)* #(#options,)* }),
    }
}

pub(super) fn role(role: Role) -> TokenStream {
    match role {
        Role::Parameter => quote!(__amp::nn::Role::Parameter),
        Role::Buffer => quote!(__amp::nn::Role::Buffer),
    }
}
