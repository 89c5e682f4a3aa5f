//! Generates the code that builds a layer.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;

use super::{local, located_at, tensor};
use crate::{
    model::{Build, Pair},
    table::Form,
};

/// Generates an expression whose value is the layer. The expression may contain `?`, because it is
/// used in a function that returns `Result`.
pub(super) fn expand(build: &Build) -> TokenStream {
    match build {
        Build::Rust(expr) => quote!(#expr),
        Build::Layer { row, at, values, options, redrawn } => {
            let ty = Ident::new(row.entry.ty, at.span());
            let layer = match row.form {
                Form::Unit => quote!(__amp::nn::#ty),
                Form::Plain => quote!(__amp::nn::#ty::new(#(#values),*)?),
                Form::Config => {
                    let every = values.is_empty() && options.len() == row.entry.options.len();
                    let config = config(&ty, values, options, every);
                    quote!(__amp::nn::#ty::new(#config)?)
                }
            };
            if redrawn.is_empty() {
                return layer;
            }
            let name = row.entry.name;
            let draws = redrawn.iter().map(|(parameter, drawn)| {
                let (parameter, draw) = (parameter.to_string(), tensor::draw(drawn));
                quote!((#parameter, #draw))
            });
            quote!(__amp::nn::init::redrawn(#name, #layer, &[#(#draws),*])?)
        }
        Build::Sequential(layers) => {
            // The generated code gets the span of the layer. If the layer's type is not a `Module`,
            // rustc then underlines the layer.
            let boxed = |layer: &Build| {
                let value = expand(layer);
                let span = match layer {
                    Build::Rust(expr) => located_at(expr.span()),
                    _ => Span::call_site(),
                };
                quote_spanned!(span=> __amp::Box::new(#value))
            };
            let mut layers = layers.iter().map(boxed);
            // Only the first element is converted to `Box<dyn Module>` explicitly. rustc infers the
            // type of the other elements from it.
            let first = layers.next().map(|first| quote!(#first as __amp::Box<dyn __amp::Module>));
            let layers = first.into_iter().chain(layers);
            quote!(__amp::nn::Sequential::new(__amp::From::from([#(#layers),*])))
        }
        Build::Repeat { count, index, layer } => {
            let (layers, layer) = (local("layers"), expand(layer));
            quote!({
                let mut #layers = __amp::Vec::new();
                for #index in 0..#count {
                    #layers.push(#layer);
                }
                #layers
            })
        }
        Build::Checkpoint { enabled, layer } => {
            let layer = expand(layer);
            let enabled = enabled.as_ref().map_or_else(|| quote!(true), |when| quote!(#when));
            quote!(__amp::nn::Checkpoint::new(#layer, #enabled))
        }
        Build::Optional { condition, layer } => {
            let layer = expand(layer);
            quote!(if #condition { __amp::Some(#layer) } else { __amp::None })
        }
    }
}

/// Generates the options of a layer. If `every` is true, the user gave all options, so the
/// generated struct needs no default for other fields.
fn config(ty: &Ident, values: &[syn::Expr], options: &[Pair], every: bool) -> TokenStream {
    let config = format_ident!("{ty}Config");
    let new = quote!(__amp::nn::#config::new(#(#values),*));
    if options.is_empty() {
        return new;
    }
    let options = options.iter().map(|Pair { key, value }| quote!(#key: #value));
    match every {
        true => quote!(__amp::nn::#config { #(#options,)* }),
        false => quote!(__amp::nn::#config { #(#options,)* ..#new }),
    }
}
