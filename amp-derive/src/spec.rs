//! An annotated struct with its attributes and fields. The rules have not been checked yet.

use proc_macro2::Ident;
use syn::{Attribute, Expr, ExprPath, Generics, Path, Type, Visibility};

/// The derive macro that the user has applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Derive {
    Module,
    LightningModule,
}

impl Derive {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Module => "Module",
            Self::LightningModule => "LightningModule",
        }
    }
}

/// An annotated struct that has named fields.
pub(crate) struct Spec {
    pub(crate) derive: Derive,
    pub(crate) ident: Ident,
    /// The name of the generated struct that builds the model.
    pub(crate) builder: Ident,
    pub(crate) vis: Visibility,
    pub(crate) generics: Generics,
    /// `#[allow]` and `#[expect]` attributes of the struct, which also apply to the warnings of the
    /// derive macro.
    pub(crate) allows: Vec<Attribute>,
    pub(crate) attrs: Vec<Attr>,
    pub(crate) fields: Vec<Field>,
}

pub(crate) struct Field {
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
    pub(crate) docs: Vec<Attribute>,
    /// The attributes that belong to this derive.
    pub(crate) attrs: Vec<Attr>,
    /// The paths of all attributes that do not belong to this derive macro. One of them may be a
    /// misspelt attribute of this derive macro.
    pub(crate) foreign: Vec<Path>,
}

/// One attribute of this derive: `#[path(args, …)]`.
pub(crate) struct Attr {
    pub(crate) path: Path,
    /// The arguments of the attribute. The list is empty for an attribute without arguments. `None`
    /// means that an error was already reported.
    pub(crate) args: Option<Vec<Expr>>,
}

impl Attr {
    pub(crate) fn is(&self, name: &str) -> bool {
        self.path.is_ident(name)
    }
}

/// Returns those of the attributes that have the name `name`.
pub(crate) fn named<'a>(attrs: &'a [Attr], name: &'a str) -> impl Iterator<Item = &'a Attr> {
    attrs.iter().filter(move |attr| attr.is(name))
}

/// Returns whether one of the attributes has the name `name`.
pub(crate) fn has(attrs: &[Attr], name: &str) -> bool {
    named(attrs, name).next().is_some()
}

/// The form of an argument of an attribute or of a layer.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// `word`
    Word(&'a Ident),
    /// `key = value`
    Pair(&'a Ident, &'a Expr),
    /// Any other expression.
    Other(&'a Expr),
}

impl<'a> From<&'a Expr> for Arg<'a> {
    fn from(expr: &'a Expr) -> Self {
        match (word(expr), expr) {
            (Some(word), _) => Self::Word(word),
            (None, Expr::Assign(assign)) => match word(&assign.left) {
                Some(key) => Self::Pair(key, &assign.right),
                None => Self::Other(expr),
            },
            _ => Self::Other(expr),
        }
    }
}

/// Returns the identifier if `expr` consists of one identifier.
pub(crate) fn word(expr: &Expr) -> Option<&Ident> {
    match expr {
        Expr::Path(ExprPath { attrs, qself: None, path }) if attrs.is_empty() => path.get_ident(),
        _ => None,
    }
}
