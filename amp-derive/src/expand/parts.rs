//! Rewrites the use of layers inside layers in a `#[forward]`. In `block.head.forward(x, cx)`,
//! `block.head` becomes a child of `block` if `block` is a child itself. The layer then runs under
//! the paths and regions of both.

use quote::{quote, quote_spanned};
use syn::{
    Expr, Member, Stmt,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

use super::{children::is_context, key, local, located_at};

/// Rewrites statements. Returns whether any of them uses a layer inside a layer.
pub(super) fn rewrite(statements: &mut [Stmt]) -> bool {
    let mut parts = Parts { found: false };
    for statement in statements {
        parts.visit_stmt_mut(statement);
    }
    parts.found
}

struct Parts {
    found: bool,
}

impl Parts {
    /// Returns `base.name` as a child of `base`, or `base.name[at]` as an element of a list of
    /// children. Returns `None` for any other expression, and for fields of `self`, which are
    /// children already.
    fn part(&mut self, layer: &Expr) -> Option<Expr> {
        let (field, at) = match layer {
            Expr::Field(field) => (field, None),
            Expr::Index(list) => match &*list.expr {
                Expr::Field(field) => (field, Some(&*list.index)),
                _ => return None,
            },
            _ => return None,
        };
        let Member::Named(name) = &field.member else { return None };
        if is_self(&field.base) {
            return None;
        }
        self.found = true;
        let base = self.part(&field.base);
        let base = base.as_ref().unwrap_or(&field.base);
        let (of, key) = (local("part"), key(name));
        let method = match at {
            None => quote!(part(#key, |#of| &#of.#name)),
            Some(at) => quote!(part_nth(#key, |#of| &#of.#name, #at)),
        };
        let part = quote_spanned!(located_at(field.span())=> (&__amp::nn::Within(&#base)).#method);
        Some(syn::parse2(part).expect("an expression"))
    }
}

impl VisitMut for Parts {
    fn visit_expr_method_call_mut(&mut self, call: &mut syn::ExprMethodCall) {
        visit_mut::visit_expr_method_call_mut(self, call);
        if !call.args.last().is_some_and(is_context) {
            return;
        }
        if let Some(part) = self.part(&call.receiver) {
            *call.receiver = part;
        }
    }
}

fn is_self(expression: &Expr) -> bool {
    matches!(expression, Expr::Path(path) if path.path.is_ident("self"))
}
