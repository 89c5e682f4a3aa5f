//! Rules about expressions that build layers: `linear(64, 10, bias = false)`, `sequential(…)`, or
//! any Rust expression.

use proc_macro2::Ident;
use syn::{Expr, ExprCall, ExprClosure, ExprMethodCall, Pat};

use super::{keys, tensors};
use crate::{
    diag::Diagnostics,
    model::{Build, Drawn, Pair},
    spec::{Arg, word},
    suggest::{closest, fold, quoted},
    symbol,
    table::{self, Entry, LAYERS, Layer, NOT_NEEDED},
};

/// Reads the expression that builds one layer. Returns `None` if an error was reported.
pub(super) fn build(expr: &Expr, diag: &Diagnostics) -> Option<Build> {
    has_no_question_mark(expr, diag)?;
    is_not_spelt_as_in_python(expr, diag)?;
    let Some((name, args)) = named(expr) else {
        return Some(Build::Rust(expr.clone()));
    };
    let args = args.unwrap_or_default();
    if name == symbol::SEQUENTIAL {
        return sequential(name, &args, diag);
    } else if name == symbol::REPEAT {
        return repeat(name, &args, diag);
    } else if name == symbol::OPTIONAL {
        return optional(name, &args, diag);
    } else if name == symbol::CHECKPOINT {
        return checkpoint(name, &args, diag);
    }
    bind(name, name_is_known(name, diag)?, &args, diag)
}

/// Returns the lowercase name that `expr` is or that it calls, and the arguments of the call. The
/// arguments are `None` if the name is not called. Returns `None` for any other expression, which
/// is plain Rust.
fn named(expr: &Expr) -> Option<(&Ident, Option<Vec<Expr>>)> {
    let (name, args) = match expr {
        Expr::Call(ExprCall { func, args, .. }) => {
            (word(func)?, Some(args.iter().cloned().collect()))
        }
        _ => (word(expr)?, None),
    };
    let lowercase = name.to_string().starts_with(|c: char| c.is_lowercase());
    lowercase.then_some((name, args))
}

/// Returns the names that `#[layer(…)]` itself defines, such as `linear` and `sequential`.
fn names() -> Vec<&'static str> {
    let mut names = table::names(LAYERS);
    names.extend([symbol::SEQUENTIAL, symbol::REPEAT, symbol::OPTIONAL, symbol::CHECKPOINT]);
    names
}

/// Checks the rule: a lowercase name must be in the table of layers.
fn name_is_known(name: &Ident, diag: &Diagnostics) -> Option<&'static Layer> {
    let text = name.to_string();
    let found = table::find(LAYERS, &text);
    if found.is_none() {
        let instead = match closest(&text, &names()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!(
                "call a function of your own by its path, `self::{text}(…)`; the layers are in \
                 the documentation of `derive(LightningModule)`"
            ),
        };
        diag.error(name, format!("unknown layer `{text}`: {instead}"));
    }
    found
}

/// Checks the rule: an expression that begins with a name from the table of layers does not end in
/// `?`, because the generated code adds the `?`.
fn has_no_question_mark(expr: &Expr, diag: &Diagnostics) -> Option<()> {
    if let Expr::Try(tried) = expr
        && let Some((name, _)) = named(&tried.expr)
        && names().iter().any(|known| name == known)
    {
        let mark = tried.question_token;
        diag.error(mark, format!("remove the `?`: `build` returns the error of `{name}`"));
        return None;
    }
    Some(())
}

/// Checks the rule: PyTorch's class names are written in snake case: `batch_norm1d(64)`, not
/// `BatchNorm1d(64)` or `nn.BatchNorm1d(64)`.
fn is_not_spelt_as_in_python(expr: &Expr, diag: &Diagnostics) -> Option<()> {
    let class = match expr {
        Expr::Call(ExprCall { func, .. }) => word(func).or_else(|| last_of_nn(func)),
        Expr::MethodCall(ExprMethodCall { receiver, method, .. }) => {
            word(receiver).filter(|receiver| *receiver == "nn").map(|_| method)
        }
        _ => None,
    };
    let Some(class) = class.filter(|class| class.to_string().starts_with(char::is_uppercase))
    else {
        return Some(());
    };
    let text = class.to_string();
    let Some(meant) = names().into_iter().find(|name| fold(name) == fold(&text)) else {
        return Some(());
    };
    diag.error(class, format!("`{text}` is written `{meant}` here"));
    None
}

fn sequential(name: &Ident, args: &[Expr], diag: &Diagnostics) -> Option<Build> {
    let mut layers = Vec::new();
    for arg in args {
        match Arg::from(arg) {
            Arg::Pair(key, _) => {
                diag.error(
                    key,
                    format!("`sequential` takes only layers: move `{key}` into one of them"),
                );
                layers.push(None);
            }
            Arg::Word(_) | Arg::Other(_) => layers.push(build(arg, diag)),
        }
    }
    if layers.is_empty() {
        diag.error(name, "`sequential` needs layers, as in `sequential(linear(64, 10), relu)`");
        return None;
    }
    let layers = layers.into_iter().collect::<Option<_>>()?;
    Some(Build::Sequential(layers))
}

/// Reads a list of layers. Checks the rule: it has the form `repeat(count, |index| layer)`.
fn repeat(name: &Ident, args: &[Expr], diag: &Diagnostics) -> Option<Build> {
    if let [count, Expr::Closure(closure)] = args
        && let Some(index) = index(closure)
    {
        let layer = Box::new(build(&closure.body, diag)?);
        return Some(Build::Repeat { count: count.clone(), index, layer });
    }
    diag.error(name, "`repeat` takes a count and a closure: `repeat(6, |i| linear(64, 64))`");
    None
}

fn index(closure: &ExprClosure) -> Option<Pat> {
    match closure.inputs.first() {
        Some(pat @ (Pat::Ident(_) | Pat::Wild(_))) if closure.inputs.len() == 1 => {
            Some(pat.clone())
        }
        _ => None,
    }
}

/// Reads an optional layer. Checks the rule: it has the form `optional(condition, layer)`.
fn optional(name: &Ident, args: &[Expr], diag: &Diagnostics) -> Option<Build> {
    if let [condition, layer] = args {
        let layer = Box::new(build(layer, diag)?);
        return Some(Build::Optional { condition: condition.clone(), layer });
    }
    diag.error(name, "`optional` takes a condition and a layer: `optional(norm, layer_norm(64))`");
    None
}

/// Reads a checkpointed layer. Checks the rule: it has the form `checkpoint(layer)` or
/// `checkpoint(layer, enabled = condition)`.
fn checkpoint(name: &Ident, args: &[Expr], diag: &Diagnostics) -> Option<Build> {
    let parts = match args {
        [layer] => Some((layer, None)),
        [layer, condition] => match Arg::from(condition) {
            Arg::Pair(key, value) if key == symbol::ENABLED => Some((layer, Some(value.clone()))),
            _ => None,
        },
        _ => None,
    };
    if let Some((layer, enabled)) = parts
        && !matches!(Arg::from(layer), Arg::Pair(..))
    {
        let layer = Box::new(build(layer, diag)?);
        return Some(Build::Checkpoint { enabled, layer });
    }
    diag.error(
        name,
        "`checkpoint` takes a layer and optionally a condition: \
         `checkpoint(linear(64, 64), enabled = use_checkpointing)`",
    );
    None
}

/// Reads a layer that is in the table. Its arguments may contain initializers for the layer's
/// parameters, such as `weight_init = normal(0.0, 0.02)`.
fn bind(name: &Ident, row: &'static Layer, args: &[Expr], diag: &Diagnostics) -> Option<Build> {
    let (mut own, mut redrawn, mut fits) = (Vec::new(), Vec::new(), true);
    for arg in args {
        match parameter_of(arg, &row.entry) {
            Some((parameter, value)) => match draws(value, diag) {
                Some(drawn) => redrawn.push((parameter, drawn)),
                None => fits = false,
            },
            None => own.push(arg.clone()),
        }
    }
    let (values, options) = arguments(name, &row.entry, &own, diag)?;
    fits.then_some(Build::Layer { row, at: name.clone(), values, options, redrawn })
}

/// Returns the parameter's name (`weight`) and the value if `arg` is an initializer such as
/// `weight_init = normal(0.0, 0.02)`. Returns `None` if `arg` is an ordinary argument of the layer.
fn parameter_of<'a>(arg: &'a Expr, entry: &Entry) -> Option<(Ident, &'a Expr)> {
    let Arg::Pair(key, value) = Arg::from(arg) else { return None };
    let text = key.to_string();
    let parameter = text.strip_suffix(symbol::OF_INIT).filter(|parameter| !parameter.is_empty())?;
    let is_own = entry.keys().any(|known| known.name == text);
    (!is_own).then(|| (Ident::new(parameter, key.span()), value))
}

/// Checks the rule: the initializer of a parameter is in the table of initializers.
fn draws(value: &Expr, diag: &Diagnostics) -> Option<Drawn> {
    let drawn = tensors::drawn(value, diag)?;
    if drawn.is_none() {
        diag.error(
            value,
            "the initializer of a layer's parameter is written as in `weight_init = normal(0.0, \
             0.02)`; to set other values, use `nn::init` after the model is built",
        );
    }
    drawn
}

/// Reads arguments as in a Python call: required keys by position or by name, options by name. The
/// result has the required keys in the order of the table.
pub(super) fn arguments(
    name: &Ident,
    entry: &'static Entry,
    args: &[Expr],
    diag: &Diagnostics,
) -> Option<(Vec<Expr>, Vec<Pair>)> {
    let owner = entry.name;
    let known: Vec<&str> = entry.keys().map(|key| key.name).collect();
    let mut fits = true;
    let mut given: Vec<Pair> = Vec::new();
    let mut positional = 0;
    for arg in args {
        match Arg::from(arg) {
            Arg::Pair(key, value) => {
                fits &= keyword_has_a_counterpart(owner, key, &known, diag)
                    && keys::key_is_known(owner, key, &known, diag)
                    && keys::key_is_new(key, &given, diag);
                given.push(Pair { key: key.clone(), value: value.clone() });
            }
            Arg::Word(_) | Arg::Other(_) => {
                fits &= stands_before_keywords(arg, positional < given.len(), diag);
                if let Some(key) = entry.required.get(positional) {
                    let key = Ident::new(key.name, name.span());
                    given.push(Pair { key, value: arg.clone() });
                }
                positional += 1;
            }
        }
    }
    let count = (positional, args.len());
    fits = fits && number_of_arguments_fits(name, entry, &given, count, diag);
    if !fits {
        return None;
    }
    keys::fit(name, entry, &given, diag)?;
    let mut given = keys::words_to_values(entry, given, diag)?;
    let values: Option<Vec<Expr>> =
        entry.required.iter().map(|key| Some(keys::take(&mut given, key.name)?.value)).collect();
    Some((values?, given))
}

/// Checks the rule: positional arguments come before named arguments, as in Python.
fn stands_before_keywords(arg: &Expr, late: bool, diag: &Diagnostics) -> bool {
    if late {
        diag.error(arg, "positional arguments must come before named ones: name this argument too");
    }
    !late
}

/// Checks the rule: a layer or an initializer gets all of its required arguments, and no more
/// positional arguments than these.
fn number_of_arguments_fits(
    name: &Ident,
    entry: &'static Entry,
    given: &[Pair],
    (positional, all): (usize, usize),
    diag: &Diagnostics,
) -> bool {
    let required: Vec<&str> = entry.required.iter().map(|key| key.name).collect();
    let missing: Vec<&str> =
        required.iter().copied().filter(|key| given.iter().all(|pair| pair.key != key)).collect();
    if missing.is_empty() && positional <= required.len() {
        return true;
    }
    let takes = match required.as_slice() {
        [] => "no arguments".to_owned(),
        required => quoted(required),
    };
    let got = match all {
        0 => "none".to_owned(),
        1 => "1 argument".to_owned(),
        more => format!("{more} arguments"),
    };
    let options: Vec<&str> = entry.options.iter().map(|key| key.name).collect();
    let hint = match options.as_slice() {
        [first, ..] if missing.is_empty() => {
            format!("; options are given by name, as in `{first} = …`")
        }
        _ => String::new(),
    };
    diag.error(name, format!("`{name}` takes {takes}; got {got}{hint}"));
    false
}

/// Checks the rule: `key` is not an argument of PyTorch that is in `NOT_NEEDED`. The error says why
/// it is not needed.
fn keyword_has_a_counterpart(owner: &str, key: &Ident, known: &[&str], diag: &Diagnostics) -> bool {
    let reason = NOT_NEEDED.iter().find(|(name, _)| key == name && !known.contains(name));
    if let Some((_, reason)) = reason {
        diag.error(key, format!("`{owner}` has no `{key}`: {reason}"));
    }
    reason.is_none()
}

/// Returns `X` if `func` is a path `nn::X`.
fn last_of_nn(func: &Expr) -> Option<&Ident> {
    match func {
        Expr::Path(path) => {
            let segments = &path.path.segments;
            (segments.len() == 2 && segments[0].ident == "nn").then(|| &segments[1].ident)
        }
        _ => None,
    }
}
