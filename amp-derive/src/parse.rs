//! Converts an annotated struct into a [`Spec`]. This module checks only the syntax. It keeps all
//! spans for later error messages.

use proc_macro2::Ident;
use quote::ToTokens;
use syn::{
    Attribute, Data, DeriveInput, Expr, Fields, Meta, MetaList, Token,
    ext::IdentExt,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
};

use crate::{
    diag::Diagnostics,
    spec::{Attr, Derive, Field, Spec},
    symbol, tokens,
};

/// Reads the attributes of this derive on the struct.
pub(crate) fn attributes(input: &DeriveInput, diag: &Diagnostics) -> Vec<Attr> {
    own_attributes(&input.attrs, diag)
}

/// Reads the fields of the struct `input`, whose attributes are `attrs`. If `input` is not a struct
/// with named fields, reports an error and returns `None`.
pub(crate) fn parse(
    input: &DeriveInput,
    attrs: Vec<Attr>,
    derive: Derive,
    diag: &Diagnostics,
) -> Option<Spec> {
    let fields = named_fields(input, derive, diag)?;
    Some(Spec {
        derive,
        ident: input.ident.clone(),
        builder: builder_name(input),
        vis: input.vis.clone(),
        generics: input.generics.clone(),
        allows: input
            .attrs
            .iter()
            .filter(|attr| attr.path().is_ident("allow") || attr.path().is_ident("expect"))
            .cloned()
            .collect(),
        attrs,
        fields,
    })
}

/// Chooses a name for the builder of `input` that the user's code does not use.
pub(crate) fn builder_name(input: &DeriveInput) -> Ident {
    let name = format!("__{}Builder", input.ident.unraw());
    tokens::free(&name, input.to_token_stream(), input.ident.span())
}

/// Checks the rule: the derive macros accept only structs with named fields, because parameters are
/// named after the fields.
fn named_fields(input: &DeriveInput, derive: Derive, diag: &Diagnostics) -> Option<Vec<Field>> {
    let name = derive.name();
    match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => {
                Some(fields.named.iter().filter_map(|f| field(f, diag)).collect())
            }
            Fields::Unnamed(fields) => {
                diag.error(
                    &fields.unnamed,
                    "name the fields, as in `{ model: Linear }`: parameters are named after them, \
                     `model.weight`",
                );
                None
            }
            // A struct without fields has no layers. The rule `has_a_layer` reports this.
            Fields::Unit => Some(Vec::new()),
        },
        Data::Enum(data) => {
            diag.error(
                data.enum_token,
                format!("{name} is derived for structs; put the variants' layers in a struct with `Option` fields"),
            );
            None
        }
        Data::Union(data) => {
            diag.error(data.union_token, format!("{name} is derived for structs, not for unions"));
            None
        }
    }
}

fn field(field: &syn::Field, diag: &Diagnostics) -> Option<Field> {
    let known = [symbol::ON_STRUCT, symbol::ON_FIELD, &["doc"]].concat();
    let is_foreign = |attr: &&Attribute| !known.iter().any(|name| attr.path().is_ident(name));
    Some(Field {
        ident: field.ident.clone()?,
        ty: field.ty.clone(),
        docs: field.attrs.iter().filter(|attr| attr.path().is_ident("doc")).cloned().collect(),
        attrs: own_attributes(&field.attrs, diag),
        foreign: field.attrs.iter().filter(is_foreign).map(|attr| attr.path().clone()).collect(),
    })
}

pub(crate) fn own_attributes(attrs: &[Attribute], diag: &Diagnostics) -> Vec<Attr> {
    let known = [symbol::ON_STRUCT, symbol::ON_FIELD].concat();
    let is_own = |attr: &&Attribute| known.iter().any(|name| attr.path().is_ident(name));
    attrs.iter().filter(is_own).map(|attr| attribute(attr, diag)).collect()
}

/// Parses the arguments of an attribute as a comma-separated list of Rust expressions. An argument
/// `key = value` is a Rust assignment. All attributes have this grammar, which rust-analyzer
/// understands too.
fn attribute(attr: &Attribute, diag: &Diagnostics) -> Attr {
    let path = attr.path().clone();
    let args = match &attr.meta {
        Meta::Path(_) => Some(Vec::new()),
        Meta::List(list) => match with_raw_words(list).parse_args_with(arguments) {
            Ok(args) => Some(args),
            Err(error) => {
                diag.push(error);
                None
            }
        },
        Meta::NameValue(pair) => {
            let name = path.get_ident().map(|ident| ident.unraw().to_string()).unwrap_or_default();
            diag.error(pair, format!("write the argument in parentheses: `#[{name}(…)]`"));
            None
        }
    };
    Attr { path, args }
}

fn with_raw_words(list: &MetaList) -> MetaList {
    MetaList { tokens: tokens::with_raw_words(list.tokens.clone()), ..list.clone() }
}

fn arguments(input: ParseStream<'_>) -> syn::Result<Vec<Expr>> {
    Punctuated::<Expr, Token![,]>::parse_terminated_with(input, Expr::parse)
        .map(|args| args.into_iter().collect())
}
