//! Rules about tensors of a module: `#[parameter(shape = [m, n], init = normal(0.0, 0.02))]`.

use quote::ToTokens;
use syn::{Expr, ExprCall};

use super::{keys, layers};
use crate::{
    diag::Diagnostics,
    model::{Drawn, Initial},
    spec::{Attr, word},
    suggest::{closest, quoted},
    symbol,
    table::{self, DRAWS},
};

/// Returns the initial values of a tensor, or `None` if an error was reported.
pub(super) fn initial(attr: &Attr, diag: &Diagnostics) -> Option<Initial> {
    let owner = attr.path.to_token_stream().to_string();
    let args = attr.args.as_deref()?;
    let mut pairs = keys::pairs(&owner, args, &[symbol::SHAPE, symbol::INIT], diag)?;
    let shape = keys::take(&mut pairs, symbol::SHAPE);
    let Some(init) = keys::take(&mut pairs, symbol::INIT) else {
        diag.error(
            &attr.path,
            format!(
                "`#[{owner}]` needs initial values, as in `#[{owner}(shape = [64, 10], init = \
                 zeros)]`"
            ),
        );
        return None;
    };
    let Some(drawn) = drawn(&init.value, diag)? else {
        if let Some(shape) = shape {
            diag.error(&shape.key, "the expression of `init` has a shape already: remove `shape`");
            return None;
        }
        return Some(Initial::Rust(init.value));
    };
    let Some(shape) = shape else {
        diag.error(&init.key, "`init` needs the tensor's shape, as in `shape = [64, 10]`");
        return None;
    };
    Some(Initial::Drawn { drawn, shape: shape.value })
}

/// Reads an initializer such as `zeros` or `normal(0.0, 0.02)`. Checks the rule: its name is in the
/// table of initializers. Returns `Some(None)` for any expression other than a name or a call of
/// a name, and `None` if an error was reported.
pub(super) fn drawn(expr: &Expr, diag: &Diagnostics) -> Option<Option<Drawn>> {
    let (name, arguments) = match expr {
        Expr::Call(ExprCall { func, args, .. }) => match word(func) {
            Some(name) => (name, args.iter().cloned().collect()),
            None => return Some(None),
        },
        _ => match word(expr) {
            Some(name) => (name, Vec::new()),
            None => return Some(None),
        },
    };
    let text = name.to_string();
    let Some(row) = table::find(DRAWS, &text) else {
        let names = table::names(DRAWS);
        let instead = match closest(&text, &names) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!(
                "call a function of your own by its path, `self::{text}(…)`; the known initializers are {}",
                quoted(&names)
            ),
        };
        diag.error(name, format!("unknown init `{text}`: {instead}"));
        return None;
    };
    let (values, options) = layers::arguments(name, &row.entry, &arguments, diag)?;
    Some(Some(Drawn { row, values, options }))
}
