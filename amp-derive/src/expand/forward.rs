//! Generates `Module::forward` or `Forward::forward_with`. The generated function runs the layers
//! in order, or the user's closure. Every layer adds its name to the module path and runs in its
//! own precision.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{Expr, Lifetime, Stmt, Type, spanned::Spanned, visit_mut::VisitMut};

use super::{
    children::Children, impl_for, key, layer_of_self, local, located_at, output, parts, region,
};
use crate::{
    model::{Body, Field, Forward, Input, Model, Region},
    symbol, tokens,
};

pub(super) fn expand(model: &Model) -> TokenStream {
    let forward = match &model.forward {
        Forward::InOrder => in_order(model),
        Forward::Function(function) => {
            let (input, cx) = (local("input"), local("cx"));
            let body = quote!(#function(self, #input, #cx));
            signature(&quote!(#input: &__amp::Tensor), &cx, &tensor(), &body)
        }
        Forward::Body(body) => {
            let (cx, statements) = closure(model, body);
            let output = body.output.as_ref().map_or_else(tensor, |(output, _)| quote!(#output));
            signature(&inputs(body), &cx, &output, &statements)
        }
    };
    match model.forward.of_any_inputs() {
        Some(body) => of_any_inputs(model, body, &forward),
        None => impl_for(model, &quote!(__amp::Module), &forward),
    }
}

/// Generates a method `forward` on the struct, and an implementation of the trait `Forward` that
/// calls this method.
fn of_any_inputs(model: &Model, body: &Body, forward: &TokenStream) -> TokenStream {
    let (ident, vis) = (&model.ident, &model.vis);
    let (impl_generics, ty_generics, where_clause) = model.generics.split_for_impl();
    let types = body.inputs.iter().map(|input| {
        let mut ty = ty(input);
        Static.visit_type_mut(&mut ty);
        ty
    });
    // The generated code gets the span of the input. If the input's type is not supported, rustc
    // then underlines the input.
    let span = body
        .inputs
        .iter()
        .find_map(|input| input.ty.as_ref())
        .map_or_else(Span::call_site, |ty| located_at(ty.span()));
    let types = quote_spanned!(span=> (#(#types,)*));
    let output =
        body.output.as_ref().map_or_else(|| quote!(__amp::Tensor), |(_, output)| quote!(#output));
    let names: Vec<Ident> =
        (0..body.inputs.len()).map(|at| local(&format!("input_{at}"))).collect();
    let (given, cx) = (local("inputs"), local("cx"));
    let items = quote! {
        type Input = #types;
        type Output = #output;

        fn forward_with(
            &self,
            #given: <Self::Input as __amp::nn::Arguments>::At<'_>,
            #cx: &__amp::Context,
        ) -> __amp::Result<Self::Output> {
            let (#(#names,)*) = #given;
            Self::forward(self, #(#names,)* #cx)
        }
    };
    let impl_forward = impl_for(model, &quote!(__amp::nn::Forward), &items);
    quote! {
        #[automatically_derived]
        impl #impl_generics #ident #ty_generics #where_clause {
            /// Runs the module.
            ///
            /// # Errors
            /// When a layer fails or libtorch refuses an operation.
            #[allow(clippy::too_many_arguments)]
            #vis #forward
        }

        #impl_forward
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
    let mut last = calls.pop();
    if let Some(field) = output::of_layers(model) {
        let (name, layer) = (key(&field.ident), layer_of_self(field));
        // The tensor that is passed to the last layer.
        let value = if calls.is_empty() { quote!(#input) } else { quote!(&#output) };
        last = Some(quote!(#cx.call_output(self, #name, #layer, #value)));
    }
    let body = quote! {
        #(let #output = #calls?;)*
        #last
    };
    signature(&quote!(#input: &__amp::Tensor), &cx, &tensor(), &body)
}

/// Returns the name of the context variable, and the statements of the generated `forward`.
fn closure(model: &Model, Body { body, .. }: &Body) -> (Ident, TokenStream) {
    // The user's code may mention `cx`, so this variable must have the hygiene of the user's code.
    let cx = Ident::new(symbol::CX, Span::call_site());
    let mut children = Children::of(model);
    let mut statements = statements(body);
    let parts = parts::rewrite(&mut statements)
        .then(|| quote! { use __amp::nn::{PartOfAny as _, PartOfChild as _}; });
    let output_layer = output::mark(model, &mut statements);
    let statements = statements.into_iter().map(|statement| statement.into_token_stream());
    let statements = children.rewrite(statements.collect());
    let argument = local("input");
    let called: Vec<_> = model
        .layers()
        .filter(|(field, _)| {
            // A layer that the body calls with one input becomes a closure with the layer's name.
            // The calls of a layer with several inputs were already replaced. If its name still
            // occurs, the name is a variable of the user and needs no closure.
            !children.has_several_inputs(field)
                && tokens::mentions(statements.clone(), &field.ident)
        })
        .collect();
    let uses_cx = !called.is_empty() || tokens::mentions(statements.clone(), &cx);
    let cx = if uses_cx { cx } else { local("cx") };
    let layers = called.into_iter().map(|(field, region)| {
        let (ident, call) = (&field.ident, call(field, region, &cx, &quote!(#argument)));
        quote! { let #ident = |#argument: &__amp::Tensor| #call; }
    });
    let children = children.declarations();
    let body = quote! {
        #parts
        #children
        #(#layers)*
        #output_layer
        #statements
    };
    (cx, body)
}

/// Returns the statements of the generated function. If the body is a block, these are the block's
/// statements. Otherwise the body is the only statement.
pub(super) fn statements(body: &Expr) -> Vec<Stmt> {
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

fn inputs(body: &Body) -> TokenStream {
    let inputs = body.inputs.iter().map(|input| {
        let (ident, ty) = (&input.ident, ty(input));
        quote!(#ident: #ty)
    });
    quote!(#(#inputs),*)
}

fn ty(input: &Input) -> Type {
    input.ty.clone().unwrap_or_else(|| syn::parse_quote!(&__amp::Tensor))
}

fn tensor() -> TokenStream {
    quote!(__amp::Result<__amp::Tensor>)
}

fn signature(
    inputs: &TokenStream,
    cx: &Ident,
    output: &TokenStream,
    body: &TokenStream,
) -> TokenStream {
    quote! {
        fn forward(&self, #inputs, #cx: &__amp::Context) -> #output {
            #body
        }
    }
}

/// Replaces every lifetime that the user left out by `'static`, because the associated type
/// `Forward::Input` cannot leave lifetimes out.
struct Static;

impl Static {
    fn lifetime() -> Lifetime {
        Lifetime { apostrophe: Span::call_site(), ident: format_ident!("static") }
    }
}

impl VisitMut for Static {
    fn visit_type_reference_mut(&mut self, ty: &mut syn::TypeReference) {
        ty.lifetime = Some(Self::lifetime());
        self.visit_type_mut(&mut ty.elem);
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident == "_" {
            *lifetime = Self::lifetime();
        }
    }
}
