//! Rules about `#[log]`.

use proc_macro2::Ident;
use quote::ToTokens;
use syn::{Expr, ExprLit, Lit};

use super::{Own, keys, metrics::Declared, training::Stage};
use crate::{
    diag::Diagnostics,
    model::LogOptions,
    spec::{Arg, Attr, Spec, named, word},
    suggest::{self, one_of, quoted},
    symbol,
};

/// The names of the values that generated steps log, with their default flags.
pub(super) struct Names {
    logged: Vec<(String, LogOptions)>,
    /// Whether all metrics could be read. If not, unknown names are not reported, because they may
    /// be the names of metrics with errors.
    complete: bool,
    /// The values that are not logged, because the metric's `stage` is the other stage. Each entry
    /// has the name of such a value (`train_acc`), the metric's name (`acc`), and the metric's
    /// stage (validation). If a `#[log]` mentions the value, the error mentions the stage.
    left_out: Vec<(String, String, Stage)>,
    /// The stages (training, validation) for which the user has written the step.
    own: Vec<Stage>,
}

impl Names {
    pub(super) fn new(metrics: &[Declared], complete: bool, steps: [&Own; 2]) -> Self {
        let (logged, left_out, own) = (Vec::new(), Vec::new(), Vec::new());
        let mut names = Self { logged, complete, left_out, own };
        for (stage, step) in [Stage::Train, Stage::Val].into_iter().zip(steps) {
            if !step.is_generated() {
                names.own.push(stage);
                continue;
            }
            let (metrics, others): (Vec<&Declared>, Vec<&Declared>) =
                metrics.iter().partition(|metric| metric.is_for(stage));
            names.left_out.extend(
                others.iter().map(|m| (stage.name_of(&m.name), m.name.clone(), stage.other())),
            );
            let values = [symbol::LOSS].into_iter().chain(metrics.iter().map(|m| &*m.name));
            names.logged.extend(
                values.map(|value| (stage.name_of(value), defaults(stage, value == symbol::LOSS))),
            );
        }
        names
    }

    fn texts(&self) -> Vec<&str> {
        self.logged.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Returns the default flags for a logged value. They are Lightning's defaults, with one exception:
/// a metric in training is logged once per epoch, computed over all examples of the epoch, unless
/// `on_step` is given.
fn defaults(stage: Stage, is_loss: bool) -> LogOptions {
    let on_step = stage == Stage::Train && is_loss;
    LogOptions { on_step, on_epoch: !on_step, prog_bar: false }
}

/// The flags of each logged value, by the value's name.
pub(super) struct Logs(Vec<(String, LogOptions)>);

impl Logs {
    /// Returns the flags of `value` in `stage`.
    pub(super) fn options(&self, stage: Stage, value: &str) -> LogOptions {
        let name = stage.name_of(value);
        let given = self.0.iter().find(|(logged, _)| *logged == name);
        given.map_or_else(|| defaults(stage, value == symbol::LOSS), |(_, options)| *options)
    }
}

/// Reads all `#[log]` attributes. Returns `None` if an error was reported.
pub(super) fn check(spec: &Spec, names: &Names, diag: &Diagnostics) -> Option<Logs> {
    let mut seen: Vec<&Ident> = Vec::new();
    let mut logs = Some(Vec::new());
    // If the user has written both steps, generated code logs nothing. Another rule reports every
    // `#[log]`, so this loop skips them.
    let attrs = named(&spec.attrs, symbol::LOG).filter(|_| !names.logged.is_empty());
    for attr in attrs {
        let (values, complete) = begins_with_logged_names(attr, names, diag);
        if !complete {
            logs = None;
        }
        for Value { name, flags } in values {
            let defaults = name_is_logged(name, names, diag);
            let options = options(name, &flags, defaults, diag);
            if !name_is_new(name, &seen, diag) {
                logs = None;
            }
            seen.push(name);
            match (&mut logs, options) {
                (Some(logs), Some(options)) => logs.push((name.to_string(), options)),
                _ => logs = None,
            }
        }
    }
    logs.map(Logs)
}

/// The name of a logged value in a `#[log]` attribute, and the flags that follow the name.
struct Value<'a> {
    name: &'a Ident,
    flags: Vec<&'a Expr>,
}

/// Checks the rule: `#[log(name, flags…)]` sets the flags of one value, `#[log(name(flags…), …)]`
/// those of several values. Returns the values that could be read, and whether these are all.
fn begins_with_logged_names<'a>(
    attr: &'a Attr,
    names: &Names,
    diag: &Diagnostics,
) -> (Vec<Value<'a>>, bool) {
    let Some(args) = attr.args.as_deref() else {
        return (Vec::new(), false);
    };
    let Some((first, rest)) = args.split_first() else {
        diag.error(&attr.path, format!("name the values to log: {}", one_of(&names.texts())));
        return (Vec::new(), false);
    };
    if let Some(name) = word(first) {
        return (vec![Value { name, flags: rest.iter().collect() }], true);
    }
    let mut values = Vec::new();
    for arg in args {
        match (with_flags(arg), word(arg)) {
            (Some(value), _) => values.push(value),
            (None, Some(word)) => {
                diag.error(word, format!("add a flag for `{word}`: `{word}(prog_bar)`"));
            }
            (None, None) => {
                let names = one_of(&names.texts());
                diag.error(
                    arg,
                    format!("write the name of a logged value before the flags: {names}"),
                );
            }
        }
    }
    let complete = values.len() == args.len();
    (values, complete)
}

/// Parses `name(flags…)`.
fn with_flags(arg: &Expr) -> Option<Value<'_>> {
    match arg {
        Expr::Call(call) => {
            Some(Value { name: word(&call.func)?, flags: call.args.iter().collect() })
        }
        _ => None,
    }
}

/// Checks that `name` is a value that the step generated by the derive computes. Only such values
/// can be logged. Returns the value's default options, or `None` after it has reported an error.
fn name_is_logged(name: &Ident, names: &Names, diag: &Diagnostics) -> Option<LogOptions> {
    if let Some((_, defaults)) = names.logged.iter().find(|(logged, _)| name == logged) {
        return Some(*defaults);
    }
    let text = name.to_string();
    let is_of = |stage: &&Stage| text.starts_with(&stage.name_of(""));
    if let Some(stage) = names.own.iter().find(is_of) {
        let step = stage.step();
        diag.error(
            name,
            format!(
                "`#[log]` has no effect, because you have written `{step}`: log `{text}` in \
                 `{step}`"
            ),
        );
    } else if let Some((_, metric, stage)) = names.left_out.iter().find(|(n, ..)| name == n) {
        let word = stage.word();
        let message = format!("`{text}` is not computed: remove `stage = {word}` from `{metric}`");
        diag.error(name, message);
    } else if names.complete {
        let known = names.texts();
        let mut message = suggest::unknown("logged value", &text, &known);
        if let (None, Some((_, metric))) = (suggest::closest(&text, &known), text.split_once('_')) {
            message += &format!("; to compute a new metric, add `#[metric(…, name = {metric})]`");
        }
        diag.error(name, message);
    }
    None
}

/// Checks the rule: the flags of a value are given only once.
fn name_is_new(name: &Ident, before: &[&Ident], diag: &Diagnostics) -> bool {
    let new = !before.contains(&name);
    if !new {
        diag.error(name, format!("`#[log({name})]` is given twice: keep one"));
    }
    new
}

/// Returns the flags of a value: the given flags, and the defaults for all others. If `defaults` is
/// `None`, only checks the given flags.
fn options(
    name: &Ident,
    flags: &[&Expr],
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
        if !keys::key_is_known(symbol::LOG, key, symbol::LOG_FLAGS, diag) {
            options = None;
            continue;
        }
        if seen.contains(&key) {
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

/// Checks the rule: a flag is `on_step` or `on_step = false`.
fn flag_is_a_word<'a>(flag: &'a Expr, diag: &Diagnostics) -> Option<(&'a Ident, bool)> {
    match Arg::from(flag) {
        Arg::Word(key) => Some((key, true)),
        Arg::Pair(key, Expr::Lit(ExprLit { lit: Lit::Bool(on), .. })) => Some((key, on.value)),
        Arg::Pair(key, value) => {
            let value = value.to_token_stream();
            diag.error(value, format!("`{key}` must be `true` or `false`"));
            None
        }
        Arg::Other(other) => {
            diag.error(other, format!("expected flags: {}", quoted(symbol::LOG_FLAGS)));
            None
        }
    }
}

/// Checks the rule: a value is logged per step, per epoch, or both per step and per epoch.
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
