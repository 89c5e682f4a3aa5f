//! Converts a [`Spec`] into a [`Model`] by applying the rules. Each rule is one function, whose
//! comment states the rule.
//!
//! A rule reports errors through [`Diagnostics`], and the next rules still run, so that one
//! compilation shows every mistake. No mistake is reported twice: a part that could not be read is
//! `None`, and rules that need the part report nothing.

pub(crate) mod amp_core;
mod batch;
mod fields;
mod forward;
mod keys;
mod layers;
mod lints;
mod logging;
mod metrics;
mod named;
mod optimizer;
mod scheduler;
mod tensors;
mod training;

#[cfg(test)]
pub(crate) mod tests;

use syn::{Expr, ExprPath};

use crate::{
    diag::Diagnostics,
    model::{Model, Pair},
    spec::{Attr, Derive, Spec, has, named},
    symbol,
};

/// Applies every rule to the struct. Returns `None` if a part of the model has an error. Other
/// rules only report their error to `diag`, so a returned model may be refused later.
pub(crate) fn check(spec: &Spec, diag: &Diagnostics) -> Option<Model> {
    attributes_are_in_their_place(spec, diag);
    has_a_layer(spec, diag);
    lints::outputs_are_logits(spec, diag);
    let fields = fields::check(spec, diag);
    let forward = forward::check(spec, diag);
    let batch = batch::check(spec, forward.as_ref(), diag);
    let lightning = match spec.derive {
        Derive::Module => Some(None),
        Derive::LightningModule => training::check(spec, diag).map(Some),
    };
    let model = Model {
        ident: spec.ident.clone(),
        builder: spec.builder.clone(),
        vis: spec.vis.clone(),
        generics: spec.generics.clone(),
        allows: spec.allows.clone(),
        fields: fields?,
        forward: forward?,
        batch: batch?,
        lightning: lightning?,
    };
    lints::advise(&model, diag);
    Some(model)
}

/// Checks the rule: attributes for fields are on fields, and attributes for the struct are on the
/// struct. `derive(Module)` refuses attributes for training.
fn attributes_are_in_their_place(spec: &Spec, diag: &Diagnostics) {
    for attr in &spec.attrs {
        if let Some(name) = symbol::ON_FIELD.iter().find(|name| attr.is(name)) {
            let of = if *name == symbol::PRECISION { "layer field" } else { "field" };
            diag.error(&attr.path, format!("`#[{name}]` belongs on a {of}, not on the struct"));
        } else if spec.derive == Derive::Module
            && !attr.is(symbol::FORWARD)
            && !attr.is(symbol::AMP)
        {
            let name = attr_name(attr);
            diag.error(
                &attr.path,
                format!(
                    "`#[{name}]` is for training: derive `LightningModule` instead of `Module`, \
                     or move it to the model that this block is part of"
                ),
            );
        }
    }
    for attr in spec.fields.iter().flat_map(|field| &field.attrs) {
        if let Some(name) = symbol::ON_STRUCT.iter().find(|name| attr.is(name)) {
            diag.error(&attr.path, format!("`#[{name}]` belongs on the struct, not on a field"));
        }
    }
}

/// Checks the rule: a model has a layer or a parameter, because otherwise there is nothing to train.
/// A module needs neither if it has its own `forward`, as a module that has only buffers.
fn has_a_layer(spec: &Spec, diag: &Diagnostics) {
    let is_trained = |name| spec.fields.iter().any(|field| has(&field.attrs, name));
    if is_trained(symbol::LAYER) || is_trained(symbol::PARAMETER) {
        return;
    }
    let or_forward = match spec.derive {
        Derive::Module if has(&spec.attrs, symbol::FORWARD) => return,
        Derive::Module => "write `#[forward(|x| …)]`, or ",
        Derive::LightningModule => "",
    };
    diag.error(
        &spec.ident,
        format!(
            "`{}` has no layers: {or_forward}give it a field such as \
             `#[layer(linear(64, 10))] model: Linear`",
            spec.ident
        ),
    );
}

/// Checks the rule: the attribute `name` is given at most once. Returns the first attribute with
/// this name.
pub(crate) fn only<'a>(attrs: &'a [Attr], name: &'a str, diag: &Diagnostics) -> Option<&'a Attr> {
    let mut all = named(attrs, name);
    let first = all.next();
    for again in all {
        diag.error(&again.path, format!("`#[{name}]` is given twice: keep one"));
    }
    first
}

/// The content of an attribute that replaces a generated function, such as `#[training_step]`.
enum Own {
    /// The user gave no attribute, so the function is generated.
    Generated,
    Function {
        path: ExprPath,
        /// Whether the keyword that this attribute allows, for example `captured`, follows the
        /// path.
        marked: bool,
        /// The `key = value` arguments after the path. Only a training step may have such arguments.
        pairs: Vec<Pair>,
    },
    /// The attribute contained an error, which was already reported.
    Refused,
}

impl Own {
    fn is_generated(&self) -> bool {
        matches!(self, Self::Generated)
    }
}

/// Checks the rule: an attribute that replaces a generated function contains the path of the user's
/// function. The error message gives the `signature` that this function must have.
fn own_function(spec: &Spec, name: &str, signature: &str, diag: &Diagnostics) -> Own {
    let Some(attr) = only(&spec.attrs, name, diag) else {
        return Own::Generated;
    };
    let Some(args) = attr.args.as_deref() else { return Own::Refused };
    let [Expr::Path(path), rest @ ..] = args else {
        return takes_a_path(attr, name, signature, diag);
    };
    let mark = mark_of(name);
    let is_mark = |argument: &&Expr| mark.is_some_and(|word| is_word(argument, word));
    let marks = rest.iter().filter(is_mark).count();
    let others: Vec<Expr> = rest.iter().filter(|argument| !is_mark(argument)).cloned().collect();
    if marks > 1 || !others.is_empty() && keys_of(name).is_empty() {
        return takes_a_path(attr, name, signature, diag);
    }
    match keys::pairs(name, &others, keys_of(name), diag) {
        Some(pairs) => Own::Function { path: path.clone(), marked: marks == 1, pairs },
        None => Own::Refused,
    }
}

/// Reports that the attribute needs the path of a function.
fn takes_a_path(attr: &Attr, name: &str, signature: &str, diag: &Diagnostics) -> Own {
    let mark = mark_of(name).map(|word| format!("; `{word}` may follow the path"));
    let mark = mark.unwrap_or_default();
    diag.error(
        &attr.path,
        format!("`#[{name}]` takes the path of a function, as in `#[{name}(Self::my_{name})]`, with the signature `{signature}`{mark}"),
    );
    Own::Refused
}

/// Returns the keys that may follow the function in the attribute `name`. Only `#[training_step]`
/// has such keys: `of` and `counts`, which say whether the returned loss is a mean over examples or
/// over other elements.
fn keys_of(name: &str) -> &'static [&'static str] {
    match name {
        symbol::TRAINING_STEP => &[symbol::OF, symbol::COUNTS],
        _ => &[],
    }
}

/// Returns the word that may follow the function in the attribute `name`, if there is such a word.
/// `late` means that the trainer may call the hook for a step after later steps have started.
/// `captured` means that the training step may run as a CUDA graph.
fn mark_of(name: &str) -> Option<&'static str> {
    match name {
        symbol::ON_TRAIN_BATCH_END => Some(symbol::LATE),
        symbol::TRAINING_STEP => Some(symbol::CAPTURED),
        _ => None,
    }
}

fn is_word(argument: &Expr, word: &str) -> bool {
    matches!(argument, Expr::Path(path) if path.path.is_ident(word))
}

/// Checks the rule: if the user replaces a generated function, the attributes `names`, which only
/// configure this function, are absent. They would have no effect.
fn has_no_effect(spec: &Spec, names: &[&str], because: &str, diag: &Diagnostics) {
    for attr in spec.attrs.iter().filter(|attr| names.iter().any(|name| attr.is(name))) {
        let name = attr_name(attr);
        diag.error(&attr.path, format!("`#[{name}]` has no effect, because {because}"));
    }
}

fn attr_name(attr: &Attr) -> String {
    attr.path.get_ident().map(ToString::to_string).unwrap_or_default()
}
