//! Rules about `#[metric]`.

use proc_macro2::Ident;
use syn::{Expr, ExprLit, Lit, ext::IdentExt};

use super::{Own, batch, keys, named::begins_with_a_name, training::Stage};
use crate::{
    diag::Diagnostics,
    model::{Measured, Pair, Value},
    spec::{Arg, Attr, Spec, named, word},
    symbol,
    table::{self, METRICS},
};

const STAGES: &[(&str, Stage)] = &[("train", Stage::Train), ("val", Stage::Val)];

/// A metric that a `#[metric]` attribute declares, for training, for validation, or for both.
pub(super) struct Declared {
    pub(super) name: String,
    stage: Option<Stage>,
    pub(super) value: Value,
    pub(super) of: Measured,
}

impl Declared {
    pub(super) fn is_for(&self, stage: Stage) -> bool {
        self.stage.is_none_or(|only| only == stage)
    }
}

/// Returns the metrics that the attributes declare, and whether all of them are without errors.
pub(super) fn metrics(spec: &Spec, steps: [&Own; 2], diag: &Diagnostics) -> (Vec<Declared>, bool) {
    let mut declared: Vec<Declared> = Vec::new();
    let mut complete = true;
    for attr in named(&spec.attrs, symbol::METRIC) {
        let Some((metric, at)) = metric(spec, attr, diag) else {
            complete = false;
            continue;
        };
        complete &= name_is_its_own(&metric, &at, &declared, diag);
        complete &= stage_is_generated(&metric, &at, steps, diag);
        declared.push(metric);
    }
    (declared, complete)
}

fn metric(spec: &Spec, attr: &Attr, diag: &Diagnostics) -> Option<(Declared, Ident)> {
    let args = attr.args.as_deref()?;
    if let Some(first) = args.first()
        && let Arg::Pair(with, _) = Arg::from(first)
        && with == symbol::WITH
    {
        let known = [symbol::WITH, symbol::NAME, symbol::STAGE, symbol::OUTPUT, symbol::TARGET];
        let mut pairs = keys::pairs(symbol::METRIC, args, &known, diag)?;
        let value = keys::take(&mut pairs, symbol::WITH)?.value;
        let of = measured(spec, &mut pairs, diag)?;
        let (name, stage) = name_and_stage(&mut pairs, diag)?;
        let name = own_metric_is_named(name, with, diag)?;
        let value = Value::Rust(value);
        return Some((Declared { name, stage, value, of }, with.clone()));
    }
    let (at, args) = begins_with_a_name(attr, symbol::METRIC, &table::names(METRICS), diag)?;
    let row = table::find(METRICS, &at.to_string())?;
    let mut known: Vec<&str> = row.keys().map(|key| key.name).collect();
    known.extend([symbol::NAME, symbol::STAGE, symbol::OUTPUT, symbol::TARGET]);
    let mut pairs = keys::pairs(row.name, args, &known, diag)?;
    let choices = name_and_stage(&mut pairs, diag);
    let of = measured(spec, &mut pairs, diag);
    keys::fit(at, row, &pairs, diag)?;
    keys::fields_are_read_from_self(spec, &pairs, diag)?;
    let keys = keys::words_to_values(row, pairs, diag)?;
    let (name, stage) = choices?;
    let name = name.unwrap_or_else(|| row.name.to_owned());
    let value = Value::Known { row, at: at.clone(), keys };
    Some((Declared { name, stage, value, of: of? }, at.clone()))
}

/// Reads `output` and `target`, which say from which tensors the metric is computed. Returns `None`
/// if an error was reported.
fn measured(spec: &Spec, pairs: &mut Vec<Pair>, diag: &Diagnostics) -> Option<Measured> {
    let output = keys::take(pairs, symbol::OUTPUT).map(|pair| pair.value);
    let target = match keys::take(pairs, symbol::TARGET) {
        Some(pair) => Some(batch::part_of_metric(&pair.value, spec, diag)?),
        None => None,
    };
    Some(Measured { output, target })
}

fn name_and_stage(
    pairs: &mut Vec<Pair>,
    diag: &Diagnostics,
) -> Option<(Option<String>, Option<Stage>)> {
    let name = match keys::take(pairs, symbol::NAME) {
        None => Some(None),
        Some(pair) => name_can_be_logged(&pair, diag).map(Some),
    };
    let stage = match keys::take(pairs, symbol::STAGE) {
        None => Some(None),
        Some(pair) => keys::choice(&pair, STAGES, diag).map(Some),
    };
    Some((name?, stage?))
}

/// Checks the rule: a metric's name must be usable in `#[log(train_NAME)]`.
fn name_can_be_logged(pair: &Pair, diag: &Diagnostics) -> Option<String> {
    if let Some(name) = word(&pair.value) {
        return Some(name.unraw().to_string());
    }
    let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &pair.value else {
        diag.error(&pair.value, "a metric's name must be a word, as in `name = acc`");
        return None;
    };
    let name = text.value();
    // `train_` or `val_` precedes this name in the logged name, so this name may begin with a
    // digit.
    let fits = !name.is_empty() && syn::parse_str::<Ident>(&format!("train_{name}")).is_ok();
    if !fits {
        diag.error(
            text,
            "a metric's name may have only letters, digits and `_`, as in `name = acc`",
        );
    }
    fits.then_some(name)
}

/// Checks the rule: a custom metric needs a name.
fn own_metric_is_named(name: Option<String>, at: &Ident, diag: &Diagnostics) -> Option<String> {
    if name.is_none() {
        diag.error(at, "a custom metric needs a name: add `name = …`");
    }
    name
}

/// Checks the rule: no two metrics have the same logged name, and no metric has that of the loss.
fn name_is_its_own(metric: &Declared, at: &Ident, before: &[Declared], diag: &Diagnostics) -> bool {
    let name = &metric.name;
    let meets = |other: &&Declared| {
        let both = |stage| metric.is_for(stage) && other.is_for(stage);
        other.name == *name && (both(Stage::Train) || both(Stage::Val))
    };
    if name == symbol::LOSS {
        diag.error(at, "`loss` is logged already: give the metric another name");
        return false;
    }
    if before.iter().any(|other| meets(&other)) {
        diag.error(
            at,
            format!(
                "two metrics are called `{name}`: give this one a name, as in `name = {name}_2`"
            ),
        );
        return false;
    }
    true
}

/// Checks the rule: a metric with a `stage` needs a generated step in that stage.
fn stage_is_generated(metric: &Declared, at: &Ident, steps: [&Own; 2], diag: &Diagnostics) -> bool {
    let [train, val] = steps;
    let own = match metric.stage {
        Some(stage @ Stage::Train) if !train.is_generated() => stage,
        Some(stage @ Stage::Val) if !val.is_generated() => stage,
        _ => return true,
    };
    let message = format!(
        "`#[metric]` has no effect, because you have written `{0}`: log the metric in `{0}`",
        own.step()
    );
    diag.error(at, message);
    false
}
