//! `Module::forward`: the layers in order, or the user's closure with layers as functions.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote};
use syn::{Expr, Stmt};

use super::{key, layer_of_self, local, region};
use crate::{
    model::{Field, Forward, Model, Region},
    symbol, tokens,
};

pub(super) fn expand(model: &Model) -> TokenStream {
    match &model.forward {
        Forward::InOrder => in_order(model),
        Forward::Function(function) => {
            let (input, cx) = (local("input"), local("cx"));
            let body = quote!(#function(self, #input, #cx));
            signature(&input, &quote!(&__amp::Tensor), &cx, &body)
        }
        Forward::Body { input, ty, body } => {
            let ty = ty.as_ref().map_or_else(|| quote!(&__amp::Tensor), ToTokens::to_token_stream);
            closure(model, input, &ty, body)
        }
    }
}

fn in_order(model: &Model) -> TokenStream {
    let (input, output, cx) = (local("input"), local("output"), local("cx"));
    let mut value = quote!(#input);
    let mut calls = Vec::new();
    for (field, region) in model.layers() {
        calls.push(call(field, region, &cx, &value));
        value = quote!(&#output);
    }
    let last = calls.pop();
    let body = quote! {
        #(let #output = #calls?;)*
        #last
    };
    signature(&input, &quote!(&__amp::Tensor), &cx, &body)
}

fn closure(model: &Model, input: &Ident, ty: &TokenStream, body: &Expr) -> TokenStream {
    let tokens = body.to_token_stream();
    // The user's code may name it, so it has the user's hygiene.
    let cx = Ident::new(symbol::CX, Span::call_site());
    let argument = local("input");
    let called: Vec<_> = model
        .layers()
        .filter(|(field, _)| tokens::mentions(tokens.clone(), &field.ident))
        .collect();
    let uses_cx = !called.is_empty() || tokens::mentions(tokens, &cx);
    let cx = if uses_cx { cx } else { local("cx") };
    let layers = called.into_iter().map(|(field, region)| {
        let (ident, call) = (&field.ident, call(field, region, &cx, &quote!(#argument)));
        quote! { let #ident = |#argument: &__amp::Tensor| #call; }
    });
    let statements = statements(body);
    let body = quote! {
        #(#layers)*
        #(#statements)*
    };
    signature(input, ty, &cx, &body)
}

/// A block's statements become the function's.
fn statements(body: &Expr) -> Vec<Stmt> {
    match body {
        Expr::Block(block) if block.label.is_none() && block.attrs.is_empty() => {
            block.block.stmts.clone()
        }
        _ => vec![Stmt::Expr(body.clone(), None)],
    }
}

fn call(field: &Field, precision: Option<Region>, cx: &Ident, input: &TokenStream) -> TokenStream {
    let (name, region, layer) = (key(&field.ident), region(precision), layer_of_self(field));
    quote!(#cx.call(#name, #region, #layer, #input))
}

fn signature(input: &Ident, ty: &TokenStream, cx: &Ident, body: &TokenStream) -> TokenStream {
    quote! {
        fn forward(&self, #input: #ty, #cx: &__amp::Context) -> __amp::Result<__amp::Tensor> {
            #body
        }
    }
}
