//! Wraps layers in a `Child`, which adds the field's name to the module path and runs the layer in
//! the field's precision region. This module wraps the layers that the closure of `#[forward]` uses
//! through `self` or calls with several inputs.

use std::collections::BTreeSet;

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use syn::{Expr, Type, ext::IdentExt};

use super::{key, layer_of_self, local, located_at, region};
use crate::{
    model::{Field, Model},
    symbol, tokens,
};

/// The type of the variable that stands for a field in the body of `#[forward]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum View {
    /// One `Child`, for a field that is a layer.
    Whole,
    /// A `Vec` of `Child` values, for a field that is a `Vec` of layers.
    List,
    /// An `Option` of a `Child`, for a field that is an `Option` of a layer.
    Optional,
}

/// The `Child` values that the body of a `#[forward]` needs.
pub(super) struct Children<'m> {
    model: &'m Model,
    used: BTreeSet<(String, View)>,
    /// The layers that are called with several inputs.
    several: BTreeSet<String>,
}

impl<'m> Children<'m> {
    pub(super) fn of(model: &'m Model) -> Self {
        Self { model, used: BTreeSet::new(), several: BTreeSet::new() }
    }

    /// Returns whether the body calls the layer by its name and with several inputs.
    pub(super) fn has_several_inputs(&self, field: &Field) -> bool {
        self.several.contains(&key(&field.ident))
    }

    /// Declares the `Child` values before the body, so that they live until the body ends.
    pub(super) fn declarations(&self) -> TokenStream {
        let declared = self.model.layers().flat_map(|(field, precision)| {
            let (name, region) = (key(&field.ident), region(precision));
            let views = [View::Whole, View::List, View::Optional].into_iter();
            views.filter(|view| self.used.contains(&(key(&field.ident), *view))).map(move |view| {
                let (child, layer) = (local(&variable(&name, view)), layer_of_self(field));
                let value = match view {
                    View::Whole if is_pointer(&field.ty) => {
                        let ident = &field.ident;
                        quote!(&__amp::nn::Child::new(#name, #region, &*self.#ident))
                    }
                    View::Whole => quote!(&__amp::nn::Child::new(#name, #region, #layer)),
                    View::List => quote!(&__amp::nn::Child::list(#name, #region, #layer)),
                    View::Optional => quote!(&__amp::nn::Child::optional(#name, #region, #layer)),
                };
                quote!(let #child = #value;)
            })
        });
        declared.collect()
    }

    /// Replaces the layers that the body uses by their `Child` values:
    ///
    /// - `self.head` by its `Child`, also in `&self.blocks`, `self.blocks[i]`, `self.blocks.iter()`
    ///   and `self.attention.attend(…, cx)`;
    /// - `block(x, mask)` by `block.forward_with((x, mask), cx)`;
    /// - `layer.forward(x, mask, cx)` by `layer.forward_with((x, mask), cx)`.
    pub(super) fn rewrite(&mut self, code: TokenStream) -> TokenStream {
        let code: Vec<TokenTree> = code.into_iter().collect();
        let (mut output, mut at) = (TokenStream::new(), 0);
        while at < code.len() {
            let (tokens, taken) = self
                .field_of_self(&code, at)
                .or_else(|| self.call_of_several(&code, at))
                .or_else(|| self.forward_of_several(&code, at))
                .unwrap_or_else(|| (self.inside(&code[at]).into(), 1));
            output.extend(tokens);
            at += taken;
        }
        output
    }

    fn inside(&mut self, token: &TokenTree) -> TokenTree {
        let TokenTree::Group(group) = token else { return token.clone() };
        let mut inner = Group::new(group.delimiter(), self.rewrite(group.stream()));
        inner.set_span(group.span());
        inner.into()
    }

    /// Reads `self.layer` at the position `at` in `code`. Returns the expression for the layer's
    /// `Child`, and the number of tokens that it replaces.
    fn field_of_self(&mut self, code: &[TokenTree], at: usize) -> Option<(TokenStream, usize)> {
        let [TokenTree::Ident(this), dot, TokenTree::Ident(name), ..] = &code[at..] else {
            return None;
        };
        let is_field = this == "self" && is_dot(dot) && !tokens::is_member(&code[..at]);
        let field = is_field.then(|| self.layer(name)).flatten()?;
        let behind = &code[at + 3..];
        if tokens::arguments(behind.first()).is_some() {
            // This calls a method `self.name(…)` that has the same name as a layer.
            return None;
        }
        let (method, inputs) = match behind {
            [dot, TokenTree::Ident(method), inputs @ ..] if is_dot(dot) => {
                (Some(method), tokens::arguments(inputs.first()))
            }
            _ => (None, None),
        };
        let takes_context = inputs.is_some_and(|inputs| inputs.last().is_some_and(is_context));
        let runs = takes_context
            || method
                .is_some_and(|method| method == symbol::FORWARD || method == symbol::FORWARD_WITH);
        let view = match (container(&field.ty), method) {
            _ if runs => View::Whole,
            (Some(view), _) => view,
            (None, None) => View::Whole,
            // A method that does not take the context does not run the layer, so the layer is not
            // replaced.
            (None, Some(_)) => return None,
        };
        Some((self.child(field, view, name.span()), 3))
    }

    /// Replaces `layer(x, mask)`.
    fn call_of_several(&mut self, code: &[TokenTree], at: usize) -> Option<(TokenStream, usize)> {
        let TokenTree::Ident(name) = &code[at] else { return None };
        let field = self.layer(name).filter(|_| !tokens::is_member(&code[..at]))?;
        let inputs = tokens::arguments(code.get(at + 1)).filter(|inputs| inputs.len() > 1)?;
        self.several.insert(key(&field.ident));
        let child = self.child(field, View::Whole, name.span());
        let run = self.run(&inputs, name.span());
        Some((quote!(#child #run), 2))
    }

    /// Replaces `.forward(x, mask, cx)` by `.forward_with((x, mask), cx)`.
    fn forward_of_several(
        &mut self,
        code: &[TokenTree],
        at: usize,
    ) -> Option<(TokenStream, usize)> {
        let [dot, TokenTree::Ident(method), group, ..] = &code[at..] else { return None };
        let of_self = matches!(at.checked_sub(1).map(|before| &code[before]),
            Some(TokenTree::Ident(receiver)) if receiver == "self");
        if !is_dot(dot) || method != symbol::FORWARD || of_self {
            return None;
        }
        let inputs = tokens::arguments(Some(group))?;
        let (last, inputs) = inputs.split_last().filter(|(_, inputs)| inputs.len() > 1)?;
        is_context(last).then(|| (self.run(inputs, method.span()), 3))
    }

    /// Generates `.forward_with((inputs), cx)`.
    fn run(&mut self, inputs: &[Expr], span: Span) -> TokenStream {
        let inputs = inputs.iter().map(|input| self.rewrite(quote!(#input)));
        let (inputs, cx) = (quote!(#(#inputs,)*), Ident::new(symbol::CX, Span::call_site()));
        quote_spanned!(located_at(span)=> .forward_with((#inputs), #cx))
    }

    fn layer(&self, name: &Ident) -> Option<&'m Field> {
        self.model.layers().map(|(field, _)| field).find(|field| field.ident == *name)
    }

    /// Generates the expression for a field's `Child`, with the span `span`.
    fn child(&mut self, field: &Field, view: View, span: Span) -> TokenStream {
        let name = key(&field.ident);
        let mut child = local(&variable(&name, view));
        child.set_span(child.span().located_at(span));
        self.used.insert((name, view));
        quote!((*#child))
    }
}

fn variable(name: &str, view: View) -> String {
    match view {
        View::Whole => format!("child_{name}"),
        View::List => format!("list_{name}"),
        View::Optional => format!("option_{name}"),
    }
}

/// Returns the [`View`] of a field whose type is a container of layers. Returns `None` if `ty` is
/// not a container.
fn container(ty: &Type) -> Option<View> {
    match last(ty)?.to_string().as_str() {
        "Vec" => Some(View::List),
        "Option" => Some(View::Optional),
        _ => None,
    }
}

fn is_pointer(ty: &Type) -> bool {
    last(ty).is_some_and(|last| last == "Box" || last == "Arc")
}

fn last(ty: &Type) -> Option<Ident> {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.unraw()),
        _ => None,
    }
}

pub(super) fn is_context(argument: &Expr) -> bool {
    matches!(argument, Expr::Path(path) if path.path.is_ident(symbol::CX))
}

fn is_dot(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == '.')
}
