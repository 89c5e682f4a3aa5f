//! Rules about `#[batch(Tokens, inputs(ids, mask), target = labels)]`, which selects the fields of
//! a batch for the model's inputs and its target.

use proc_macro2::{Ident, Span};
use syn::{Expr, ExprCall, ExprField, Member, Path, spanned::Spanned};

use super::only;
use crate::{
    diag::Diagnostics,
    model::{BatchOf, Body, Forward, Part},
    spec::{Arg, Derive, Spec, has, word},
    suggest::quoted,
    symbol,
};

/// Returns the type of the batches and the fields that the model uses. `Some(None)` means that a
/// batch is a pair of input and target, `None` that an error was reported.
pub(super) fn check(
    spec: &Spec,
    forward: Option<&Forward>,
    diag: &Diagnostics,
) -> Option<Option<BatchOf>> {
    if spec.derive == Derive::Module {
        return Some(None);
    }
    let inputs = forward.map(inputs);
    let Some(attr) = only(&spec.attrs, symbol::BATCH, diag) else {
        return a_pair_has_one_input(spec, forward, diag).map(|()| None);
    };
    let args = attr.args.as_deref()?;
    let Some((first, rest)) = args.split_first() else {
        diag.error(
            &attr.path,
            "name the type of the batches, as in `#[batch(Tokens, inputs(ids, mask), target = \
             labels)]`",
        );
        return None;
    };
    let ty = is_a_type(first, diag);
    let (mut own, mut target, mut fits) = (None, None, true);
    for arg in rest {
        match (Arg::from(arg), arg) {
            (Arg::Pair(key, value), _) if key == symbol::TARGET && target.is_none() => {
                target = part(value, diag);
                fits &= target.is_some();
            }
            (_, Expr::Call(ExprCall { func, args, .. }))
                if word(func).is_some_and(|name| name == symbol::INPUTS) && own.is_none() =>
            {
                // Collecting directly into an `Option` would stop at the first error, and the
                // others would not be reported.
                let parts: Vec<Option<Part>> = args.iter().map(|arg| part(arg, diag)).collect();
                let parts: Option<Vec<Part>> = parts.into_iter().collect();
                fits &= parts.is_some();
                if let (Some(parts), Some(inputs)) = (&parts, &inputs) {
                    fits &= each_input_has_a_part(arg, parts.len(), inputs, diag);
                }
                own = parts;
            }
            _ => {
                diag.error(arg, "expected `inputs(…)` and `target = …`, each once");
                fits = false;
            }
        }
    }
    fits.then_some(())?;
    let field = |name: Ident| Part::Field(vec![name]);
    let inputs = match own {
        Some(parts) => parts,
        None => inputs?.into_iter().map(field).collect(),
    };
    let target = target.unwrap_or_else(|| field(Ident::new(symbol::TARGET, attr.path.span())));
    Some(Some(BatchOf { ty: ty?, inputs, target }))
}

/// Returns the names of the inputs of `forward`.
fn inputs(forward: &Forward) -> Vec<Ident> {
    match forward {
        Forward::Body(body) => body.inputs.iter().map(|input| input.ident.clone()).collect(),
        Forward::InOrder | Forward::Function(_) => {
            vec![Ident::new(symbol::INPUT, Span::call_site())]
        }
    }
}

/// Checks the rule: the first argument of `#[batch]` is a type.
fn is_a_type(arg: &Expr, diag: &Diagnostics) -> Option<Path> {
    if let Expr::Path(path) = arg
        && path.qself.is_none()
    {
        return Some(path.path.clone());
    }
    diag.error(
        arg,
        "name the type of the batches first, as in `#[batch(Tokens, target = labels)]`",
    );
    None
}

/// Checks the rule: each argument is the name of a field of the batch, such as `ids` or
/// `source.ids`, or the word `batch`, which stands for the whole batch.
fn part(expr: &Expr, diag: &Diagnostics) -> Option<Part> {
    if word(expr).is_some_and(|name| name == symbol::BATCH) {
        return Some(Part::Whole);
    }
    let found = fields(expr);
    if found.is_none() {
        diag.error(
            expr,
            "name a field of the batch, such as `ids` or `source.ids`, or write `batch` for the \
             whole batch",
        );
    }
    found.map(Part::Field)
}

fn fields(expr: &Expr) -> Option<Vec<Ident>> {
    match expr {
        Expr::Field(ExprField { base, member: Member::Named(name), .. }) => {
            let mut names = fields(base)?;
            names.push(name.clone());
            Some(names)
        }
        _ => Some(vec![word(expr)?.clone()]),
    }
}

/// Reads the field of the batch with which a metric compares the output.
pub(super) fn part_of_metric(expr: &Expr, spec: &Spec, diag: &Diagnostics) -> Option<Part> {
    if !has(&spec.attrs, symbol::BATCH) {
        diag.error(
            expr,
            "without `#[batch(…)]`, a batch is a pair of `input` and `target` and has no other \
             fields: name the batch's type in `#[batch(…)]`",
        );
        return None;
    }
    part(expr, diag)
}

/// Checks the rule: the attribute gives a field of the batch for each input of `forward`.
fn each_input_has_a_part(at: &Expr, parts: usize, inputs: &[Ident], diag: &Diagnostics) -> bool {
    let fits = parts == inputs.len();
    if !fits {
        let names: Vec<String> = inputs.iter().map(ToString::to_string).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        diag.error(
            at,
            format!("`forward` takes {}: name a field of the batch for each input", quoted(&names)),
        );
    }
    fits
}

/// Checks the rule: a model with several inputs has the attribute `#[batch(…)]`, because a batch
/// without it is a pair of one input and one target.
fn a_pair_has_one_input(spec: &Spec, forward: Option<&Forward>, diag: &Diagnostics) -> Option<()> {
    let steps_are_own =
        [symbol::TRAINING_STEP, symbol::MANUAL_STEP].iter().any(|name| has(&spec.attrs, name))
            && has(&spec.attrs, symbol::VALIDATION_STEP);
    let Some(Forward::Body(Body { inputs, .. })) = forward else { return Some(()) };
    let [_, second, ..] = inputs.as_slice() else { return Some(()) };
    if steps_are_own {
        return Some(());
    }
    let names: Vec<String> = inputs.iter().map(|input| input.ident.to_string()).collect();
    diag.error(
        &second.ident,
        format!(
            "a batch is a pair of `input` and `target` unless its type is named: add \
             `#[batch(Type, inputs({}), target = target)]`",
            names.join(", ")
        ),
    );
    None
}
