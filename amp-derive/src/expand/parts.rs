//! Rewrites the expressions of a `#[forward]` that use a layer inside another layer. If `block` is
//! a `Child` (a layer with its module path and precision), `block.head` in `block.head.forward(x,
//! cx)` becomes a `Child` of `block`. The layer `head` then has the module path `block.head`, and
//! `#[precision]` of both fields applies.

use quote::{quote, quote_spanned};
use syn::{
    Expr, Member, Stmt,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

use super::{children::is_context, key, local, located_at};

/// Rewrites `statements`. Returns whether one of the statements uses a layer inside a layer.
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
    /// Rewrites `base.name` to a `Child` of `base`, and `base.name[at]` to the `Child` of an
    /// element of a list. Returns `None` for any other expression, and for fields of `self`, which
    /// are `Child` values already.
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
