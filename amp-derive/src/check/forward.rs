//! Rules about `#[forward]`.

use proc_macro2::{Ident, TokenStream};
use quote::ToTokens;
use syn::{
    Expr, ExprBlock, ExprClosure, GenericArgument, Pat, PathArguments, ReturnType, Stmt, Type,
};

use super::only;
use crate::{
    diag::Diagnostics,
    model::{Body, Forward, Input},
    spec::{Field, Spec, has, named},
    suggest::closest,
    symbol, tokens,
};

/// Returns the checked `#[forward]`, or `None` if an error was reported.
pub(super) fn check(spec: &Spec, diag: &Diagnostics) -> Option<Forward> {
    let Some(attr) = only(&spec.attrs, symbol::FORWARD, diag) else {
        uses_every_parameter(spec, None, diag);
        return Some(Forward::InOrder);
    };
    match attr.args.as_deref()? {
        [Expr::Path(path)] => Some(Forward::Function(path.clone())),
        [Expr::Closure(closure)] => {
            let (inputs, output) =
                (inputs_have_names(closure, diag), returns_a_result(closure, diag));
            let inputs = inputs?;
            inputs_hide_nothing(spec, &inputs, diag)?;
            runs_every_layer(spec, &inputs, &closure.body, diag);
            uses_every_parameter(spec, Some(&closure.body), diag);
            calls_agree(spec, &closure.body, diag);
            let body = unwrapped(&closure.body);
            Some(Forward::Body(Body { inputs, output: output?, body }))
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

/// The largest number of inputs for which amp-core implements `Arguments`.
const MOST_INPUTS: usize = 8;

/// Checks the rule: the arguments of the closure are simple names, because the generated `forward`
/// has arguments of the same names.
fn inputs_have_names(closure: &ExprClosure, diag: &Diagnostics) -> Option<Vec<Input>> {
    const MESSAGE: &str =
        "the inputs of `forward` need names, as in `|x| …` or `|x, mask: Option<&Tensor>| …`";
    if closure.inputs.is_empty() {
        diag.error(closure.or1_token, MESSAGE);
        return None;
    }
    if let Some(first) = closure.inputs.iter().nth(MOST_INPUTS) {
        diag.error(
            first,
            format!("`forward` has at most {MOST_INPUTS} inputs: put some in a struct"),
        );
        return None;
    }
    let input = |argument: &Pat| {
        let (pat, ty) = match argument {
            Pat::Type(typed) => (&*typed.pat, Some((*typed.ty).clone())),
            pat => (pat, None),
        };
        match pat {
            Pat::Ident(pat)
                if pat.by_ref.is_none() && pat.mutability.is_none() && pat.subpat.is_none() =>
            {
                lifetimes_are_left_out(ty.as_ref(), diag)?;
                Some(Input { ident: pat.ident.clone(), ty })
            }
            pat => {
                diag.error(pat, MESSAGE);
                None
            }
        }
    };
    // Collecting directly into an `Option` would stop at the first error, and the others would not
    // be reported.
    let inputs: Vec<Option<Input>> = closure.inputs.iter().map(input).collect();
    inputs.into_iter().collect()
}

/// Checks the rule: the type of an input has no named lifetime, because `forward` borrows an input
/// only for one call.
fn lifetimes_are_left_out(ty: Option<&Type>, diag: &Diagnostics) -> Option<()> {
    let Some(named) = ty.and_then(|ty| tokens::named_lifetime(ty.to_token_stream())) else {
        return Some(());
    };
    diag.error(&named, format!("inputs are borrowed for one call only: remove `{named}`"));
    None
}

/// Checks the rule: a closure with a return type returns a `Result`. Returns `Some(None)` for a
/// closure without a written return type, which must return `Result<Tensor>`.
fn returns_a_result(closure: &ExprClosure, diag: &Diagnostics) -> Option<Option<(Type, Type)>> {
    let ReturnType::Type(_, written) = &closure.output else {
        return Some(None);
    };
    if let Type::Path(path) = &**written
        && let Some(last) = path.path.segments.last()
        && last.ident == "Result"
        && let PathArguments::AngleBracketed(arguments) = &last.arguments
        && let Some(GenericArgument::Type(output)) = arguments.args.first()
    {
        return Some(Some(((**written).clone(), output.clone())));
    }
    diag.error(written, "`forward` must return a `Result`, as in `-> Result<(Tensor, Tensor)>`");
    None
}

/// Checks the rule: an input does not have the name of a layer or of the context. In the closure,
/// the input would hide the layer or the context.
fn inputs_hide_nothing(spec: &Spec, inputs: &[Input], diag: &Diagnostics) -> Option<()> {
    let hidden = |input: &Ident| match input {
        cx if cx == symbol::CX => Some("the context"),
        name => layers(spec).any(|layer| layer.ident == *name).then_some("the layer of this name"),
    };
    let mut fits = Some(());
    for Input { ident, .. } in inputs {
        if let Some(hidden) = hidden(ident) {
            diag.error(ident, format!("`{ident}` hides {hidden}: give the input another name"));
            fits = None;
        }
    }
    fits
}

/// Returns those of the layers or parameters `candidates` that neither `forward` nor the loss
/// mentions. They would never be trained. Returns an empty list if `forward` or the loss passes
/// `self` to a function, because the function may use every field, or if the user has written the
/// training step.
fn untrained<'a>(
    spec: &'a Spec,
    body: Option<&Expr>,
    candidates: impl Iterator<Item = &'a Field>,
) -> Vec<&'a Ident> {
    let body = body.map(ToTokens::to_token_stream).unwrap_or_default();
    let of_losses = named(&spec.attrs, symbol::LOSS).filter_map(|attr| attr.args.as_deref());
    let loss: TokenStream = of_losses.flatten().map(ToTokens::to_token_stream).collect();
    let fields: Vec<&Ident> = spec.fields.iter().map(|field| &field.ident).collect();
    let is_own =
        [symbol::TRAINING_STEP, symbol::MANUAL_STEP].iter().any(|step| has(&spec.attrs, step));
    if is_own || [&body, &loss].iter().any(|code| tokens::passes_self_on((*code).clone(), &fields))
    {
        return Vec::new();
    }
    let is_used = |field: &Ident| {
        tokens::contains(body.clone(), field) || tokens::reads_from_self(loss.clone(), field)
    };
    candidates.map(|field| &field.ident).filter(|field| !is_used(field)).collect()
}

/// Checks the rule: `forward` or the loss mentions every layer, because an unused layer is never
/// trained.
fn runs_every_layer(spec: &Spec, inputs: &[Input], body: &Expr, diag: &Diagnostics) {
    let Some(Input { ident: input, .. }) = inputs.first() else { return };
    let called = tokens::called(body.to_token_stream());
    let fields: Vec<&Ident> = spec.fields.iter().map(|field| &field.ident).collect();
    for name in untrained(spec, Some(body), layers(spec)) {
        let text = name.to_string();
        let is_meant = |called: &Ident| closest(&called.to_string(), &[&text]).is_some();
        let misspelt = called.iter().find(|called| is_meant(called));
        match misspelt.filter(|called| fields.iter().all(|field| field != called)) {
            Some(called) => {
                diag.error(called, format!("unknown layer `{called}`: did you mean `{name}`?"));
            }
            None => diag.error(
                name,
                format!(
                    "`forward` never runs `{name}`: call it, as in `{name}({input})?`, or remove \
                     the field"
                ),
            ),
        }
    }
}

/// Checks the rule: `forward` or the loss mentions every parameter, because an unused parameter is
/// never trained.
fn uses_every_parameter(spec: &Spec, body: Option<&Expr>, diag: &Diagnostics) {
    let parameters = spec.fields.iter().filter(|field| has(&field.attrs, symbol::PARAMETER));
    for ident in untrained(spec, body, parameters) {
        let or_loss = match has(&spec.attrs, symbol::LOSS) {
            true => " or in the closure of `#[loss(with = …)]`",
            false => "",
        };
        diag.error(
            ident,
            format!(
                "`forward` never uses `{ident}`: use `self.{ident}` in `#[forward(|x| …)]`{or_loss}, \
                 or remove the field"
            ),
        );
    }
}

/// Checks the rule: if the closure calls a layer several times, all calls pass the same number of
/// inputs.
fn calls_agree(spec: &Spec, body: &Expr, diag: &Diagnostics) {
    let calls = tokens::calls(body.to_token_stream());
    for layer in layers(spec) {
        let mut own = calls.iter().filter(|(name, _)| *name == layer.ident);
        let Some((_, first)) = own.next() else { continue };
        if let Some((name, count)) = own.find(|(_, count)| count != first) {
            diag.error(
                name,
                format!(
                    "number of inputs of `{name}`: {count} here, {first} above; give every \
                     call the same number, with `None` for an absent input"
                ),
            );
        }
    }
}

fn layers(spec: &Spec) -> impl Iterator<Item = &Field> {
    spec.fields.iter().filter(|field| has(&field.attrs, symbol::LAYER))
}

/// Returns `body` without its braces if `body` is a block of one expression, and `body` itself
/// otherwise.
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
