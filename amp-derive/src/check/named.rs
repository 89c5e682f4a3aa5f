//! Reads the first argument of an attribute: a name from a table, a type, or a value.

use proc_macro2::Ident;
use syn::{Expr, ExprPath, ext::IdentExt};

use crate::{
    diag::Diagnostics,
    spec::{Arg, Attr},
    suggest, symbol,
};

/// The first argument of an attribute, which names an optimizer or a scheduler, and the arguments
/// after it.
pub(super) enum Named<'a> {
    /// The name of an entry in a table.
    Known { at: &'a Ident, args: &'a [Expr] },
    /// A struct that the user has written.
    Own { ty: &'a ExprPath, args: &'a [Expr] },
    /// `value = …`
    Value { value: &'a Expr, args: &'a [Expr] },
}

impl<'a> Named<'a> {
    /// Returns the arguments that follow the first one.
    pub(super) fn args(&self) -> &'a [Expr] {
        let (Self::Known { args, .. } | Self::Own { args, .. } | Self::Value { args, .. }) = self;
        args
    }
}

/// Reads the first argument of an optimizer's or a scheduler's attribute. `what` is the word
/// "optimizer" or "scheduler" for messages.
pub(super) fn named_config<'a>(
    attr: &'a Attr,
    what: &str,
    known: &[&str],
    diag: &Diagnostics,
) -> Option<Named<'a>> {
    let given = attr.args.as_deref()?;
    if let Some((first, args)) = given.split_first() {
        match (Arg::from(first), first) {
            (Arg::Pair(key, value), _) if key == symbol::VALUE => {
                return Some(Named::Value { value, args });
            }
            (Arg::Word(_) | Arg::Other(_), Expr::Path(ty)) if is_own_type(ty, known) => {
                return Some(Named::Own { ty, args });
            }
            _ => {}
        }
    }
    let (at, args) = begins_with_a_name(attr, what, known, diag)?;
    Some(Named::Known { at, args })
}

/// Returns whether the path `ty` is that of a type. If the path differs from a known name only in
/// capital letters and underscores, it is a misspelt name, not a type.
fn is_own_type(ty: &ExprPath, known: &[&str]) -> bool {
    let Some(word) = ty.path.get_ident() else {
        return true;
    };
    let name = word.unraw().to_string();
    let folded = suggest::fold(&name);
    name.starts_with(char::is_uppercase) && known.iter().all(|known| suggest::fold(known) != folded)
}

/// Checks the rule: the first argument is a name from the table.
pub(super) fn begins_with_a_name<'a>(
    attr: &'a Attr,
    what: &str,
    known: &[&str],
    diag: &Diagnostics,
) -> Option<(&'a Ident, &'a [Expr])> {
    let args = attr.args.as_deref()?;
    let Some((first, rest)) = args.split_first() else {
        diag.error(&attr.path, format!("name the {what}: {}", suggest::one_of(known)));
        return None;
    };
    match Arg::from(first) {
        Arg::Word(name) if known.iter().any(|known| name == known) => Some((name, rest)),
        Arg::Word(name) => {
            diag.error(name, suggest::unknown(what, &name.to_string(), known));
            None
        }
        Arg::Pair(..) | Arg::Other(_) => {
            diag.error(first, format!("name the {what} first: {}", suggest::one_of(known)));
            None
        }
    }
}
