//! Rules about `#[optimizer]` and `#[scheduler]`.

use proc_macro2::Ident;
use quote::ToTokens;
use syn::{Expr, ExprLit, Lit};

use super::{Own, has_no_effect, keys, only, own_function};
use crate::{
    diag::Diagnostics,
    model::{Config, Optimizers, Pair},
    spec::{Arg, Attr, Spec, has},
    suggest, symbol,
    table::{self, Interval, OPTIMIZERS, SCHEDULERS, Scheduler},
    tokens,
};

/// What `configure_optimizers` returns; `None` if it was refused.
pub(super) fn check(spec: &Spec, diag: &Diagnostics) -> Option<Optimizers> {
    let signature = "fn(&Self, &TrainingPlan) -> Result<OptimizerConfig>";
    match own_function(spec, symbol::CONFIGURE_OPTIMIZERS, signature, diag) {
        Own::Generated => {}
        own => {
            let because = "`#[configure_optimizers]` replaces it: keep one of the two";
            has_no_effect(spec, &[symbol::OPTIMIZER, symbol::SCHEDULER], because, diag);
            return match own {
                Own::Function(path) => Some(Optimizers::Function(path)),
                Own::Generated | Own::Refused => None,
            };
        }
    }
    let optimizer = only(&spec.attrs, symbol::OPTIMIZER, diag);
    let scheduler = only(&spec.attrs, symbol::SCHEDULER, diag);
    has_an_optimizer(spec, scheduler, diag);
    // Both are looked at before either is missed.
    let optimizer = optimizer.and_then(|attr| check_optimizer(spec, attr, diag));
    let scheduler = match scheduler {
        None => Some(None),
        Some(attr) => check_scheduler(spec, attr, diag).map(Some),
    };
    Some(Optimizers::Generated { optimizer: optimizer?, scheduler: scheduler? })
}

/// Rule: a model says how it is optimized; a scheduler alone has nothing to schedule.
fn has_an_optimizer(spec: &Spec, scheduler: Option<&Attr>, diag: &Diagnostics) {
    if has(&spec.attrs, symbol::OPTIMIZER) {
        return;
    }
    match scheduler {
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

fn check_optimizer(spec: &Spec, attr: &Attr, diag: &Diagnostics) -> Option<Config> {
    let (at, args) = begins_with_a_name(attr, symbol::OPTIMIZER, &table::names(OPTIMIZERS), diag)?;
    let row = table::find(OPTIMIZERS, &at.to_string())?;
    let known: Vec<&str> = row.keys().map(|key| key.name).collect();
    let pairs = keys::pairs(row.name, args, &known, diag)?;
    keys::fit(at, row, &pairs, diag)?;
    keys::fields_are_read_from_self(spec, &pairs, diag)?;
    nesterov_has_momentum(&pairs, diag)?;
    betas_are_a_pair(&pairs, diag)?;
    Some(Config { row, at: at.clone(), keys: pairs })
}

fn check_scheduler(spec: &Spec, attr: &Attr, diag: &Diagnostics) -> Option<(Config, Interval)> {
    let (at, args) = begins_with_a_name(attr, symbol::SCHEDULER, &table::names(SCHEDULERS), diag)?;
    let Scheduler { entry: row, interval } = table::find(SCHEDULERS, &at.to_string())?;
    let mut known: Vec<&str> = row.keys().map(|key| key.name).collect();
    known.push(symbol::INTERVAL);
    let mut pairs = keys::pairs(row.name, args, &known, diag)?;
    let given = keys::take(&mut pairs, symbol::INTERVAL);
    let interval = match &given {
        None => Some(*interval),
        Some(pair) => keys::choice(pair, INTERVALS, diag),
    };
    keys::fit(at, row, &pairs, diag)?;
    keys::fields_are_read_from_self(spec, &pairs, diag)?;
    let interval = interval?;
    counts_fit_the_interval(at, &pairs, interval, given.as_ref(), diag)?;
    Some((Config { row, at: at.clone(), keys: pairs }, interval))
}

const INTERVALS: &[(&str, Interval)] = &[("step", Interval::Step), ("epoch", Interval::Epoch)];

/// Rule: the first argument is a name that is known.
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

/// Rule: Nesterov's rule looks ahead along the momentum, so it needs one (torch.optim.SGD).
fn nesterov_has_momentum(pairs: &[Pair], diag: &Diagnostics) -> Option<()> {
    let find = |key: &str| pairs.iter().find(|pair| pair.key == key);
    let is_true = |pair: &&Pair| matches!(&pair.value, Expr::Lit(ExprLit { lit: Lit::Bool(value), .. }) if value.value);
    let no_momentum = find("momentum").is_none_or(|pair| keys::number(&pair.value) == Some(0.0));
    match find("nesterov").filter(is_true) {
        Some(nesterov) if no_momentum => {
            diag.error(&nesterov.key, "`nesterov` needs a momentum: add `momentum = 0.9`");
            None
        }
        _ => Some(()),
    }
}

/// Rule: Adam has two betas, each from 0 up to but not including 1.
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
        diag.error(&betas.value, "`betas` are two values below 1, as in `(0.9, 0.999)`");
        return None;
    }
    Some(())
}

/// Rule: what counts optimizer steps moves every step. OneCycleLR with
/// `total_steps = estimated_stepping_batches` that moves every epoch never leaves its warm-up.
fn counts_fit_the_interval(
    at: &Ident,
    pairs: &[Pair],
    interval: Interval,
    given: Option<&Pair>,
    diag: &Diagnostics,
) -> Option<()> {
    let steps = Ident::new(symbol::STEPPING_BATCHES, at.span());
    let counted = pairs
        .iter()
        .find(|pair| tokens::contains(pair.value.to_token_stream(), &steps))
        .filter(|_| interval == Interval::Epoch);
    let Some(counted) = counted else {
        return Some(());
    };
    let (key, message) = (&counted.key, "but the scheduler moves every epoch");
    match given {
        Some(given) => diag.error(
            &given.value,
            format!("`{key}` counts optimizer steps, {message}: write `interval = step`"),
        ),
        None => diag
            .error(at, format!("`{key}` counts optimizer steps, {message}: add `interval = step`")),
    }
    None
}
