//! Rules about `#[log]`.

use proc_macro2::Ident;
use quote::ToTokens;
use syn::{Expr, ExprLit, Lit};

use super::{
    Own, keys,
    training::{Declared, Stage, loggable, unknown_log},
};
use crate::{
    diag::Diagnostics,
    model::LogOptions,
    spec::{Arg, Attr, Spec, named},
    suggest::{one_of, quoted},
    symbol,
};

/// What is logged how.
pub(super) struct Logs(Vec<(Ident, LogOptions)>);

impl Logs {
    /// The options of the value `name` of `stage`.
    pub(super) fn options(&self, stage: Stage, name: &str) -> LogOptions {
        let full = format!("{}_{name}", stage.prefix());
        let given = self.0.iter().find(|(logged, _)| *logged == full);
        given.map_or_else(|| defaults(stage, name == symbol::LOSS), |(_, options)| *options)
    }
}

/// Lightning's defaults, but for metrics in training: those are computed from the counts of the
/// whole epoch unless a step's own value is asked for.
fn defaults(stage: Stage, is_loss: bool) -> LogOptions {
    let on_step = stage == Stage::Train && is_loss;
    LogOptions { on_step, on_epoch: !on_step, prog_bar: false }
}

/// Reads all `#[log]`s. A refused one has its default.
pub(super) fn check(
    spec: &Spec,
    metrics: &[Declared],
    steps: [&Own; 2],
    diag: &Diagnostics,
) -> Logs {
    let names = loggable(metrics, steps);
    let mut logs: Vec<(Ident, LogOptions)> = Vec::new();
    if names.is_empty() {
        // Both steps are the user's, which has its own rule.
        return Logs(logs);
    }
    for attr in named(&spec.attrs, symbol::LOG) {
        let Some((name, flags)) = begins_with_a_logged_name(attr, &names, diag) else {
            continue;
        };
        let found = name_is_logged(name, &names, steps, diag);
        let default = found.map(|(_, stage, is_loss)| defaults(*stage, *is_loss));
        let options = options(name, flags, default, diag);
        name_is_new(name, &logs, diag);
        if let Some(options) = options {
            logs.push((name.clone(), options));
        }
    }
    Logs(logs)
}

fn begins_with_a_logged_name<'a>(
    attr: &'a Attr,
    names: &[(String, Stage, bool)],
    diag: &Diagnostics,
) -> Option<(&'a Ident, &'a [Expr])> {
    let args = attr.args.as_deref()?;
    let names = names.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>();
    match args.split_first() {
        Some((first, rest)) => match Arg::from(first) {
            Arg::Word(name) => return Some((name, rest)),
            Arg::Pair(..) | Arg::Other(_) => {
                diag.error(first, format!("name what is logged first: {}", one_of(&names)));
            }
        },
        None => diag.error(&attr.path, format!("name what is logged: {}", one_of(&names))),
    }
    None
}

/// Rule: only what a generated step computes can be logged.
fn name_is_logged<'a>(
    name: &Ident,
    names: &'a [(String, Stage, bool)],
    steps: [&Own; 2],
    diag: &Diagnostics,
) -> Option<&'a (String, Stage, bool)> {
    let found = names.iter().find(|(known, ..)| name == known);
    if found.is_none() {
        let text = name.to_string();
        let own = [Stage::Train, Stage::Val].into_iter().zip(steps).find(|(stage, own)| {
            !own.is_generated() && text.starts_with(&format!("{}_", stage.prefix()))
        });
        let known: Vec<&str> = names.iter().map(|(name, ..)| name.as_str()).collect();
        let message = match own {
            Some((stage, _)) => {
                format!("`#[log]` has no effect: `{}` is yours, log `{text}` there", stage.step())
            }
            None => {
                let message = unknown_log(&text, &known);
                let metric = text.split_once('_').map(|(_, metric)| metric);
                match metric.filter(|_| !message.contains("did you mean")) {
                    Some(metric) => {
                        format!("{message}; for a new one add `#[metric(…, name = \"{metric}\")]`")
                    }
                    None => message,
                }
            }
        };
        diag.error(name, message);
    }
    found
}

/// Rule: how a value is logged is said once.
fn name_is_new(name: &Ident, before: &[(Ident, LogOptions)], diag: &Diagnostics) {
    if before.iter().any(|(other, _)| other == name) {
        diag.error(name, format!("`#[log({name})]` is given twice: keep one"));
    }
}

/// The flags over the defaults; without defaults only the rules are applied.
fn options(
    name: &Ident,
    flags: &[Expr],
    defaults: Option<LogOptions>,
    diag: &Diagnostics,
) -> Option<LogOptions> {
    let mut options = defaults;
    let mut seen: Vec<&Ident> = Vec::new();
    for flag in flags {
        let Some((key, on)) = flag_is_a_word(flag, diag) else {
            options = None;
            continue;
        };
        let known = keys::key_is_known(symbol::LOG, key, symbol::LOG_FLAGS, diag);
        if known && seen.contains(&key) {
            diag.error(key, format!("`{key}` is given twice: keep one"));
        }
        seen.push(key);
        if let Some(options) = options.as_mut() {
            match key {
                key if key == symbol::ON_STEP => options.on_step = on,
                key if key == symbol::ON_EPOCH => options.on_epoch = on,
                _ => options.prog_bar = on,
            }
        }
    }
    options.filter(|options| is_logged_at_all(name, *options, diag))
}

/// Rule: a flag is `on_step` or `on_step = false`.
fn flag_is_a_word<'a>(flag: &'a Expr, diag: &Diagnostics) -> Option<(&'a Ident, bool)> {
    match Arg::from(flag) {
        Arg::Word(key) => Some((key, true)),
        Arg::Pair(key, Expr::Lit(ExprLit { lit: Lit::Bool(on), .. })) => Some((key, on.value)),
        Arg::Pair(key, value) => {
            let value = value.to_token_stream();
            diag.error(value, format!("`{key}` is `true` or `false`"));
            None
        }
        Arg::Other(other) => {
            diag.error(other, format!("expected flags: {}", quoted(symbol::LOG_FLAGS)));
            None
        }
    }
}

/// Rule: what is logged is logged per step, per epoch or both.
fn is_logged_at_all(name: &Ident, options: LogOptions, diag: &Diagnostics) -> bool {
    let logged = options.on_step || options.on_epoch;
    if !logged {
        diag.error(
            name,
            format!(
                "`{name}` is logged neither per step nor per epoch: add `on_step` or `on_epoch`"
            ),
        );
    }
    logged
}
