//! Rules about `#[optimizer]`.

use proc_macro2::Ident;
use quote::ToTokens;
use syn::{Expr, ExprArray, ExprCall, ExprLit, Lit, LitInt, LitStr};

use super::{
    Own, has_no_effect, keys,
    named::{Named, named_config},
    own_function, scheduler,
};
use crate::{
    diag::Diagnostics,
    model::{Config, Group, Optimizer, Optimizers, Pair, Selection},
    spec::{Attr, Spec, has, named, word},
    suggest, symbol,
    table::{self, Entry, OPTIMIZERS},
};

/// Returns the optimizers of `configure_optimizers`, or `None` if an error was reported.
pub(super) fn check(spec: &Spec, diag: &Diagnostics) -> Option<Optimizers> {
    let signature = "fn(&Self, &TrainingPlan) -> Result<OptimizerConfig>";
    match own_function(spec, symbol::CONFIGURE_OPTIMIZERS, signature, diag) {
        Own::Generated => {}
        own => {
            let because = "`#[configure_optimizers]` replaces it: keep one of the two";
            has_no_effect(spec, &[symbol::OPTIMIZER, symbol::SCHEDULER], because, diag);
            return match own {
                Own::Function { path, .. } => Some(Optimizers::Function(path)),
                Own::Generated | Own::Refused => None,
            };
        }
    }
    has_an_optimizer(spec, diag);
    let pairs = with_their_schedulers(spec, diag);
    // Collecting directly into an `Option` would stop at the first error, and the others would not
    // be reported.
    let optimizers: Vec<Option<Optimizer>> =
        pairs.iter().map(|(attr, scheduler)| check_one(spec, attr, *scheduler, diag)).collect();
    let optimizers = optimizers.into_iter().collect::<Option<Vec<_>>>()?;
    one_takes_the_rest(&pairs, &optimizers, diag)?;
    (!optimizers.is_empty()).then_some(Optimizers::Generated(optimizers))
}

/// Checks the rule: a model has an optimizer. A scheduler alone has nothing to schedule.
fn has_an_optimizer(spec: &Spec, diag: &Diagnostics) {
    if has(&spec.attrs, symbol::OPTIMIZER) {
        return;
    }
    match named(&spec.attrs, symbol::SCHEDULER).next() {
        Some(attr) => diag.error(
            &attr.path,
            "a scheduler needs an optimizer: add one, as in `#[optimizer(adamw, lr = 1e-3)]`",
        ),
        None => diag.error(
            &spec.ident,
            format!(
                "`{}` has no optimizer: add one, as in `#[optimizer(adamw, lr = 1e-3)]`",
                spec.ident
            ),
        ),
    }
}

/// Returns each optimizer's attribute with the attribute of its scheduler, if it has one. Checks
/// the rule: a scheduler stands after its optimizer, and an optimizer has at most one scheduler. If
/// there is only one optimizer, its scheduler may also stand before it.
fn with_their_schedulers<'a>(
    spec: &'a Spec,
    diag: &Diagnostics,
) -> Vec<(&'a Attr, Option<&'a Attr>)> {
    let mut pairs: Vec<(&Attr, Option<&Attr>)> = Vec::new();
    let single = named(&spec.attrs, symbol::OPTIMIZER).count() == 1;
    let mut above = None;
    for attr in &spec.attrs {
        if attr.is(symbol::OPTIMIZER) {
            pairs.push((attr, above.take()));
        } else if attr.is(symbol::SCHEDULER) {
            match pairs.last_mut() {
                Some((_, scheduler @ None)) => *scheduler = Some(attr),
                None if single && above.is_none() => above = Some(attr),
                None if !single => {
                    if has(&spec.attrs, symbol::OPTIMIZER) {
                        diag.error(&attr.path, "put the scheduler after its optimizer");
                    }
                }
                _ => diag.error(&attr.path, "`#[scheduler]` is given twice: keep one"),
            }
        }
    }
    pairs
}

/// Checks the rule: if there are several optimizers, at most one of them has none of the keys
/// `params`, `except` and `ndim`. This optimizer trains all parameters that no other optimizer
/// selects.
fn one_takes_the_rest(
    pairs: &[(&Attr, Option<&Attr>)],
    optimizers: &[Optimizer],
    diag: &Diagnostics,
) -> Option<()> {
    let mut rest = pairs.iter().zip(optimizers).filter(|(_, one)| one.params.is_none());
    rest.next();
    let mut fits = Some(());
    for ((attr, _), _) in rest {
        diag.error(
            &attr.path,
            "two optimizers would train all parameters: select those of this optimizer, as in \
             `params = [\"head.*\"]`, or keep one of the two",
        );
        fits = None;
    }
    fits
}

fn check_one(
    spec: &Spec,
    attr: &Attr,
    scheduler: Option<&Attr>,
    diag: &Diagnostics,
) -> Option<Optimizer> {
    let optimizer = check_optimizer(spec, attr, diag);
    let scheduler = match scheduler {
        None => Some(None),
        Some(attr) => scheduler::check(spec, attr, diag).map(Some),
    };
    Some(Optimizer { scheduler: scheduler?, ..optimizer? })
}

fn check_optimizer(spec: &Spec, attr: &Attr, diag: &Diagnostics) -> Option<Optimizer> {
    let named = named_config(attr, symbol::OPTIMIZER, &table::names(OPTIMIZERS), diag)?;
    let (calls, args): (Vec<Expr>, Vec<Expr>) =
        named.args().iter().cloned().partition(|arg| matches!(arg, Expr::Call(_)));
    let owner = Owner::of(&named);
    if let (Owner::Value, Some(call)) = (owner, calls.first()) {
        diag.error(
            call,
            "`group(…)` is not allowed after an optimizer that is given as a value: build its \
             groups with `ParamGroups`",
        );
        return None;
    }
    let base = own_options(spec, owner, &args, diag);
    let groups = calls.iter().map(|call| check_group(spec, owner, call, diag));
    // Collecting directly into an `Option` would stop at the first error, and the others would not
    // be reported.
    let groups: Vec<Option<Group>> = groups.collect();
    let (params, pairs) = base?;
    let groups = groups.into_iter().collect::<Option<Vec<_>>>()?;
    let config = match named {
        Named::Known { at, .. } => {
            let row = table::find(OPTIMIZERS, &at.to_string())?;
            keys::fit(at, row, &pairs, diag)?;
            nesterov_has_momentum(row, &pairs, diag)?;
            for group in &groups {
                // A key that the group does not set has the optimizer's value.
                let inherited =
                    pairs.iter().filter(|pair| group.keys.iter().all(|own| own.key != pair.key));
                let all: Vec<Pair> = group.keys.iter().chain(inherited).cloned().collect();
                nesterov_has_momentum(row, &all, diag)?;
            }
            Config::Known { row, at: at.clone(), keys: pairs }
        }
        Named::Own { ty, .. } => Config::Own { ty: ty.clone(), keys: pairs },
        Named::Value { value, .. } => Config::Value(value.clone()),
    };
    Some(Optimizer { config, params, groups, scheduler: None })
}

/// The optimizer for which a key is given, also if the key is in one of its groups.
#[derive(Clone, Copy)]
enum Owner<'a> {
    /// An optimizer of amp-core. `row` lists the keys that it accepts.
    Known { at: &'a Ident, row: &'static Entry },
    /// A struct that the user has written. Each key must be a field of this struct.
    Own,
    /// An expression for the whole optimizer. It accepts only the keys that select parameters.
    Value,
}

impl<'a> Owner<'a> {
    fn of(named: &Named<'a>) -> Self {
        match *named {
            Named::Known { at, .. } => match table::find(OPTIMIZERS, &at.to_string()) {
                Some(row) => Self::Known { at, row },
                None => Self::Own,
            },
            Named::Own { .. } => Self::Own,
            Named::Value { .. } => Self::Value,
        }
    }
}

/// Returns the selection of parameters, if the pairs contain one, and the remaining pairs, which
/// are options.
fn own_options(
    spec: &Spec,
    owner: Owner<'_>,
    args: &[Expr],
    diag: &Diagnostics,
) -> Option<(Option<Selection>, Vec<Pair>)> {
    let mut pairs = match owner {
        Owner::Known { row, .. } => {
            let mut known: Vec<&str> = row.keys().map(|key| key.name).collect();
            known.extend(symbol::SELECTION);
            keys::pairs(row.name, args, &known, diag)?
        }
        Owner::Own => keys::any_pairs(args, diag)?,
        Owner::Value => keys::pairs(symbol::OPTIMIZER, args, symbol::SELECTION, diag)?,
    };
    let params = selection(&mut pairs, diag)?;
    keys::fields_are_read_from_self(spec, &pairs, diag)?;
    if let Owner::Known { row, .. } = owner {
        betas_are_a_pair(&pairs, diag)?;
        pairs = keys::words_to_values(row, pairs, diag)?;
    }
    Some((params, pairs))
}

/// Removes from `pairs` the keys that select parameters. Returns `Some(None)` if there are none,
/// and `None` if an error was reported.
fn selection(pairs: &mut Vec<Pair>, diag: &Diagnostics) -> Option<Option<Selection>> {
    let [named, except, ndim] =
        [symbol::PARAMS, symbol::EXCEPT, symbol::NDIM].map(|key| keys::take(pairs, key));
    if named.is_none() && except.is_none() && ndim.is_none() {
        return Some(None);
    }
    let patterns = |pair: &Option<Pair>| match pair {
        None => Some(Vec::new()),
        Some(pair) => are_patterns(pair, diag),
    };
    let (named, except) = (patterns(&named), patterns(&except));
    let ndim = match &ndim {
        None => None,
        Some(pair) => Some(is_a_number_of_dimensions(pair, diag)?),
    };
    Some(Some(Selection { named: named?, except: except?, ndim }))
}

/// Checks the rule: patterns are in a list, even a single one. Clippy would report two attributes
/// such as `params = "a"`, which contain only literals, as duplicates.
fn are_patterns(pair: &Pair, diag: &Diagnostics) -> Option<Vec<LitStr>> {
    let pattern = |arg: &Expr| match arg {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.clone()),
        _ => None,
    };
    let patterns = match &pair.value {
        Expr::Array(ExprArray { elems, .. }) => elems.iter().map(pattern).collect(),
        _ => None,
    };
    let patterns = patterns.filter(|patterns: &Vec<LitStr>| !patterns.is_empty());
    if patterns.is_none() {
        let key = &pair.key;
        let text = format!("`{key}` takes a list of name patterns, as in `{key} = [\"head.*\"]`");
        diag.error(&pair.value, text);
    }
    patterns
}

/// Checks the rule: `ndim` is a literal number.
fn is_a_number_of_dimensions(pair: &Pair, diag: &Diagnostics) -> Option<LitInt> {
    match &pair.value {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => Some(number.clone()),
        value => {
            diag.error(value, "`ndim` takes a number of dimensions, as in `ndim = 2` for matrices");
            None
        }
    }
}

/// Reads a parameter group such as `group(params = ["*.bias"], weight_decay = 0.0)`.
fn check_group(spec: &Spec, owner: Owner<'_>, call: &Expr, diag: &Diagnostics) -> Option<Group> {
    let Expr::Call(ExprCall { func, args, .. }) = call else {
        return None;
    };
    match word(func) {
        Some(name) if name == symbol::GROUP => {}
        Some(name) if name == symbol::PARAMS => {
            diag.error(call, "write it as a list: `params = [\"head.*\"]`");
            return None;
        }
        _ => {
            let written = func.to_token_stream().to_string();
            diag.error(call, suggest::unknown("argument", &written, &[symbol::GROUP]));
            return None;
        }
    }
    let args: Vec<Expr> = args.iter().cloned().collect();
    let (params, keys) = own_options(spec, owner, &args, diag)?;
    let Some(params) = params else {
        diag.error(
            call,
            "select the parameters of the group, as in `group(params = [\"*.bias\"], …)`",
        );
        return None;
    };
    if keys.is_empty() {
        diag.error(call, "give the options of the group, as in `weight_decay = 0.0`");
        return None;
    }
    let fit = match owner {
        Owner::Known { at, row } => keys::are_in_range(at, row, &keys, diag),
        Owner::Own | Owner::Value => true,
    };
    fit.then_some(Group { params, keys })
}

/// Checks the rule: Nesterov's method needs a momentum, which is 0 in SGD by default
/// (torch.optim.SGD).
fn nesterov_has_momentum(row: &'static Entry, pairs: &[Pair], diag: &Diagnostics) -> Option<()> {
    let find = |key: &str| pairs.iter().find(|pair| pair.key == key);
    let is_true = |pair: &&Pair| matches!(&pair.value, Expr::Lit(ExprLit { lit: Lit::Bool(value), .. }) if value.value);
    let no_momentum = find("momentum").is_none_or(|pair| keys::number(&pair.value) == Some(0.0));
    match find("nesterov").filter(is_true) {
        Some(nesterov) if no_momentum && row.name == "sgd" => {
            diag.error(&nesterov.key, "`nesterov` needs a momentum: add `momentum = 0.9`");
            None
        }
        _ => Some(()),
    }
}

/// Checks the rule: Adam has two betas, each at least 0 and below 1.
fn betas_are_a_pair(pairs: &[Pair], diag: &Diagnostics) -> Option<()> {
    let Some(betas) = pairs.iter().find(|pair| pair.key == "betas") else {
        return Some(());
    };
    let fits = match &betas.value {
        Expr::Tuple(tuple) => {
            let below_one =
                |beta: &Expr| keys::number(beta).is_none_or(|b| (0.0..1.0).contains(&b));
            tuple.elems.len() == 2 && tuple.elems.iter().all(below_one)
        }
        Expr::Lit(_) | Expr::Array(_) => false,
        _ => true,
    };
    if !fits {
        diag.error(&betas.value, "`betas` takes two values below 1, as in `(0.9, 0.999)`");
        return None;
    }
    Some(())
}
