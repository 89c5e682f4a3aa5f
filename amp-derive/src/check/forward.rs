//! Rules about `#[forward]`.

use proc_macro2::{Ident, TokenStream};
use quote::ToTokens;
use syn::{Expr, ExprBlock, ExprClosure, Pat, Stmt, Type};

use super::only;
use crate::{
    diag::Diagnostics,
    model::Forward,
    spec::{Field, Spec, has},
    suggest::closest,
    symbol, tokens,
};

/// What `forward` runs; `None` if it was refused.
pub(super) fn check(spec: &Spec, diag: &Diagnostics) -> Option<Forward> {
    let Some(attr) = only(&spec.attrs, symbol::FORWARD, diag) else {
        return Some(Forward::InOrder);
    };
    match attr.args.as_deref()? {
        [Expr::Path(path)] => Some(Forward::Function(path.clone())),
        [Expr::Closure(closure)] => {
            let (input, ty) = takes_one_input(closure, diag)?;
            input_is_no_layer(spec, &input, diag)?;
            runs_every_layer(spec, &input, &closure.body, diag);
            Some(Forward::Body { input, ty, body: unwrapped(&closure.body) })
        }
        _ => {
            diag.error(
                &attr.path,
                "`#[forward(…)]` takes a closure, as in `#[forward(|x| head(&body(x)?))]`, or the \
                 path of a function `fn(&Self, &Tensor, &Context) -> Result<Tensor>`",
            );
            None
        }
    }
}

/// Rule: the closure has one argument with a name, which becomes `forward`'s.
fn takes_one_input(closure: &ExprClosure, diag: &Diagnostics) -> Option<(Ident, Option<Type>)> {
    let argument = match closure.inputs.first() {
        Some(only) if closure.inputs.len() == 1 => match only {
            Pat::Type(typed) => Some((&*typed.pat, Some((*typed.ty).clone()))),
            pat => Some((pat, None)),
        },
        _ => None,
    };
    if let Some((Pat::Ident(pat), ty)) = argument
        && pat.by_ref.is_none()
        && pat.mutability.is_none()
        && pat.subpat.is_none()
    {
        return Some((pat.ident.clone(), ty));
    }
    let (at, got) = (&closure.inputs, closure.inputs.len());
    let message = "`forward` has one input, with a name: `|x| …`";
    match got {
        0 => diag.error(closure.or1_token, message),
        _ => diag.error(at, message),
    }
    None
}

/// Rule: the input's name is not that of a layer or of the context, which it would hide.
fn input_is_no_layer(spec: &Spec, input: &Ident, diag: &Diagnostics) -> Option<()> {
    let hidden = match input {
        cx if cx == symbol::CX => "the context",
        name if layers(spec).any(|layer| layer.ident == *name) => "the layer of this name",
        _ => return Some(()),
    };
    diag.error(input, format!("`{input}` hides {hidden}: call the input `x`"));
    None
}

/// Rule: a layer that `forward` never mentions has parameters that are never trained. A body
/// that hands `self` on may run it elsewhere.
fn runs_every_layer(spec: &Spec, input: &Ident, body: &Expr, diag: &Diagnostics) {
    let body: TokenStream = body.to_token_stream();
    let fields: Vec<&Ident> = spec.fields.iter().map(|field| &field.ident).collect();
    if tokens::hands_self_on(body.clone(), &fields) {
        return;
    }
    for layer in layers(spec).filter(|layer| !tokens::contains(body.clone(), &layer.ident)) {
        let name = &layer.ident;
        let text = name.to_string();
        let is_meant = |called: &Ident| closest(&called.to_string(), &[&text]).is_some();
        let misspelt = tokens::called(body.clone()).into_iter().find(is_meant);
        match misspelt.filter(|called| fields.iter().all(|field| *field != called)) {
            Some(called) => {
                diag.error(&called, format!("unknown layer `{called}`: did you mean `{name}`?"));
            }
            None => diag.error(
                name,
                format!(
                    "`forward` never runs `{name}`: call it, as in `{name}({input})?`, or take \
                     the field away"
                ),
            ),
        }
    }
}

fn layers(spec: &Spec) -> impl Iterator<Item = &Field> {
    spec.fields.iter().filter(|field| has(&field.attrs, symbol::LAYER))
}

/// The expression of a block that has nothing else.
fn unwrapped(body: &Expr) -> Expr {
    match body {
        Expr::Block(ExprBlock { attrs, label: None, block }) if attrs.is_empty() => {
            match block.stmts.as_slice() {
                [Stmt::Expr(only, None)] => only.clone(),
                _ => body.clone(),
            }
        }
        _ => body.clone(),
    }
}
