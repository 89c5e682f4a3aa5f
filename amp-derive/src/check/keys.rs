//! Checks `key = value` arguments against the keys of a layer, metric, optimizer or scheduler.

use proc_macro2::Ident;
use quote::ToTokens;
use syn::{Expr, ExprLit, ExprUnary, Lit, UnOp, ext::IdentExt};

use crate::{
    diag::Diagnostics,
    model::Pair,
    spec::{Arg, Spec, has, word},
    suggest::{self, one_of, quoted},
    symbol,
    table::{Entry, Key, Range},
    tokens,
};

/// Reads `key = value` pairs, whose keys must be in `known`. Returns `None` if an error was
/// reported.
pub(super) fn pairs(
    owner: &str,
    args: &[Expr],
    known: &[&str],
    diag: &Diagnostics,
) -> Option<Vec<Pair>> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut complete = true;
    for arg in args {
        let Some((key, value)) = has_key_and_value(owner, arg, known, diag) else {
            complete = false;
            continue;
        };
        complete &= key_is_known(owner, key, known, diag);
        complete &= key_is_new(key, &pairs, diag);
        pairs.push(Pair { key: key.clone(), value: value.clone() });
    }
    complete.then_some(pairs)
}

/// Returns the `key = value` pairs in `args`. The keys are not checked here: they become fields of
/// a struct, and rustc checks the fields.
pub(super) fn any_pairs(args: &[Expr], diag: &Diagnostics) -> Option<Vec<Pair>> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut complete = true;
    for arg in args {
        match Arg::from(arg) {
            Arg::Pair(key, value) => {
                complete &= key_is_new(key, &pairs, diag);
                pairs.push(Pair { key: key.clone(), value: value.clone() });
            }
            Arg::Word(key) => {
                diag.error(key, format!("`{key}` needs a value: `{key} = …`"));
                complete = false;
            }
            Arg::Other(other) => {
                diag.error(other, "expected `key = value`, as in `lr = …`");
                complete = false;
            }
        }
    }
    complete.then_some(pairs)
}

/// Checks the rule: an option is written `key = value`.
fn has_key_and_value<'a>(
    owner: &str,
    arg: &'a Expr,
    known: &[&str],
    diag: &Diagnostics,
) -> Option<(&'a Ident, &'a Expr)> {
    match Arg::from(arg) {
        Arg::Pair(key, value) => return Some((key, value)),
        Arg::Word(key) if known.iter().any(|known| key == known) => {
            diag.error(key, format!("`{key}` needs a value: `{key} = …`"));
        }
        Arg::Word(key) => {
            key_is_known(owner, key, known, diag);
        }
        Arg::Other(other) => {
            let expected = match known {
                [] => format!("`{owner}` takes no options"),
                [first, ..] => format!("expected `key = value`, as in `{first} = …`"),
            };
            diag.error(other, expected);
        }
    }
    None
}

/// Checks the rule: `key` is one of `known`, the keys that `owner` (for example the optimizer
/// `adamw`) accepts.
pub(super) fn key_is_known(owner: &str, key: &Ident, known: &[&str], diag: &Diagnostics) -> bool {
    if known.iter().any(|known| key == known) {
        return true;
    }
    let instead = match (suggest::closest(&key.to_string(), known), known) {
        (Some(meant), _) => format!("did you mean `{meant}`?"),
        (None, []) => "it takes no options".to_owned(),
        (None, known) => format!("it takes {}", quoted(known)),
    };
    diag.error(key, format!("`{owner}` has no `{key}`: {instead}"));
    false
}

/// Checks the rule: no key occurs twice.
pub(super) fn key_is_new(key: &Ident, before: &[Pair], diag: &Diagnostics) -> bool {
    let new = before.iter().all(|pair| pair.key != *key);
    if !new {
        diag.error(key, format!("`{key}` is given twice: keep one"));
    }
    new
}

/// Checks two rules: every key without a default is given, and every literal is in the range of its
/// key.
pub(super) fn fit(
    at: &Ident,
    row: &'static Entry,
    pairs: &[Pair],
    diag: &Diagnostics,
) -> Option<()> {
    let mut fits = true;
    let missing: Vec<&str> = row
        .required
        .iter()
        .map(|key| key.name)
        .filter(|name| pairs.iter().all(|pair| pair.key != name))
        .collect();
    if !missing.is_empty() {
        let example: Vec<String> = missing.iter().map(|name| format!("{name} = …")).collect();
        diag.error(at, format!("`{at}` needs {}: add `{}`", quoted(&missing), example.join(", ")));
        fits = false;
    }
    fits &= are_in_range(at, row, pairs, diag);
    fits.then_some(())
}

/// Returns whether all literals among the values are in range.
pub(super) fn are_in_range(
    at: &Ident,
    row: &'static Entry,
    pairs: &[Pair],
    diag: &Diagnostics,
) -> bool {
    let mut fits = true;
    for pair in pairs {
        if let Some(key) = row.keys().find(|key| pair.key == key.name) {
            fits &= literal_is_in_range(&at.to_string(), key, &pair.value, diag);
        }
    }
    fits
}

/// Converts the values to Rust expressions of the types that their keys need. For example, the word
/// `same` becomes `Padding::Same`.
pub(super) fn words_to_values(
    row: &'static Entry,
    pairs: Vec<Pair>,
    diag: &Diagnostics,
) -> Option<Vec<Pair>> {
    let value = |pair: &Pair| match row.keys().find(|key| pair.key == key.name)?.range {
        Range::Choice(words) => syn::parse_str(choice(pair, words, diag)?).ok(),
        Range::Logged => {
            let name = logged_name(pair, diag)?;
            Some(syn::parse_quote!(__amp::ToString::to_string(#name)))
        }
        Range::Padding if word(&pair.value).is_some_and(|word| word == symbol::SAME) => {
            Some(syn::parse_quote!(__amp::nn::Padding::Same))
        }
        Range::Optional => {
            let value = &pair.value;
            Some(syn::parse_quote!(__amp::From::from(#value)))
        }
        // An optional key becomes a field of a struct, so its value is converted here. A required
        // key becomes an argument of a constructor, which converts the value.
        Range::Sizes(_) | Range::Padding if row.options.iter().any(|key| pair.key == key.name) => {
            let value = &pair.value;
            Some(syn::parse_quote!(__amp::From::from(#value)))
        }
        Range::Rising => {
            let value = &pair.value;
            Some(syn::parse_quote!(__amp::From::from(#value)))
        }
        Range::Tensor => {
            let value = &pair.value;
            Some(syn::parse_quote!(__amp::Some((#value).shallow_clone())))
        }
        _ => Some(pair.value.clone()),
    };
    // Collecting directly into an `Option` would stop at the first error, and the others would not
    // be reported.
    let values: Vec<Option<Expr>> = pairs.iter().map(value).collect();
    let pair = |(pair, value): (Pair, Option<Expr>)| Some(Pair { value: value?, ..pair });
    pairs.into_iter().zip(values).map(pair).collect()
}

/// Checks the rule: the name of a logged value is written without quotes.
fn logged_name(pair: &Pair, diag: &Diagnostics) -> Option<String> {
    if let Some(name) = word(&pair.value) {
        return Some(name.to_string());
    }
    let key = &pair.key;
    match &pair.value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => {
            diag.error(&pair.value, format!("write it without quotes: `{key} = {}`", text.value()))
        }
        value => diag.error(
            value,
            format!("`{key}` takes the name of a logged value, as in `{key} = val_loss`"),
        ),
    }
    None
}

/// Checks the rule: a literal number is in the range that the table gives for its key.
pub(super) fn literal_is_in_range(
    owner: &str,
    key: &Key,
    value: &Expr,
    diag: &Diagnostics,
) -> bool {
    if key.range == Range::Rising {
        return rises(owner, key, value, diag);
    }
    let fits = key.range == Range::Any || number(value).is_none_or(|n| key.range.contains(n));
    if !fits {
        diag.error(
            value,
            format!(
                "`{}` of `{owner}` takes a value {}, not {}",
                key.name,
                key.range.text(),
                value.to_token_stream().to_string().replace(' ', "")
            ),
        );
    }
    fits
}

/// Checks the rule: the value of a key such as `milestones` is a list of positive numbers in
/// ascending order. Only literals are checked.
fn rises(owner: &str, key: &Key, value: &Expr, diag: &Diagnostics) -> bool {
    let fits = match value {
        Expr::Array(list) => {
            let numbers: Vec<f64> = list.elems.iter().filter_map(number).collect();
            !list.elems.is_empty() && numbers.iter().all(|n| *n >= 1.0) && numbers.is_sorted()
        }
        value => number(value).is_none(),
    };
    if !fits {
        let name = key.name;
        diag.error(
            value,
            format!(
                "`{name}` of `{owner}` must be positive numbers in ascending order, as in `[30, \
                 80]`"
            ),
        );
    }
    fits
}

/// Returns the value of a literal number, with its sign. Returns `None` for any other expression.
pub(super) fn number(expr: &Expr) -> Option<f64> {
    match expr {
        Expr::Lit(ExprLit { lit: Lit::Int(int), .. }) => int.base10_parse().ok(),
        Expr::Lit(ExprLit { lit: Lit::Float(float), .. }) => float.base10_parse().ok(),
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => number(expr).map(|n| -n),
        _ => None,
    }
}

/// Checks the rule: a value reads a hyperparameter as `self.name`, because values are evaluated in
/// a method.
pub(super) fn fields_are_read_from_self(
    spec: &Spec,
    pairs: &[Pair],
    diag: &Diagnostics,
) -> Option<()> {
    let mut fits = Some(());
    let hparams = || spec.fields.iter().filter(|field| has(&field.attrs, symbol::HPARAM));
    for (pair, field) in pairs.iter().flat_map(|pair| hparams().map(move |field| (pair, field))) {
        // A closure or a block can declare a variable with the name of a hyperparameter. A value
        // that is a closure or a block is therefore not checked.
        let opaque = matches!(pair.value, Expr::Closure(_) | Expr::Block(_));
        let found = tokens::variable(pair.value.to_token_stream(), &field.ident);
        if let Some(found) = found.filter(|found| !opaque && *found != symbol::PLAN) {
            diag.error(&found, format!("`{found}` is a field of the model: write `self.{found}`"));
            fits = None;
        }
    }
    fits
}

/// Removes the pair whose key is `key` from `pairs`, and returns the pair.
pub(super) fn take(pairs: &mut Vec<Pair>, key: &str) -> Option<Pair> {
    let at = pairs.iter().position(|pair| pair.key == key)?;
    Some(pairs.remove(at))
}

/// Checks the rule: if a key accepts only certain words, its value is one of these words, written
/// without quotes.
pub(super) fn choice<T: Copy>(pair: &Pair, words: &[(&str, T)], diag: &Diagnostics) -> Option<T> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let key = &pair.key;
    if let Some(word) = word(&pair.value) {
        let found = words.iter().find(|(name, _)| word.unraw() == name);
        if found.is_none() {
            diag.error(word, suggest::unknown(&key.to_string(), &word.to_string(), &names));
        }
        return found.map(|(_, value)| *value);
    }
    let quoted = match &pair.value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
        _ => None,
    };
    match quoted.filter(|text| names.contains(&text.as_str())) {
        Some(text) => diag.error(&pair.value, format!("write it without quotes: `{key} = {text}`")),
        None => diag.error(&pair.value, format!("`{key}` must be {}", one_of(&names))),
    }
    None
}
