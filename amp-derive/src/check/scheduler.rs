//! Rules about `#[scheduler]`.

use proc_macro2::Ident;
use quote::ToTokens;
use syn::{Expr, spanned::Spanned};

use super::{
    keys,
    named::{Named, named_config},
};
use crate::{
    diag::Diagnostics,
    model::{Config, Pair},
    spec::{Attr, Spec},
    symbol,
    table::{self, Interval, SCHEDULERS, Scheduler},
    tokens,
};

/// Returns the schedule and the unit in which it advances (step or epoch). Returns `None` if an
/// error was reported.
pub(super) fn check(spec: &Spec, attr: &Attr, diag: &Diagnostics) -> Option<(Config, Interval)> {
    match named_config(attr, symbol::SCHEDULER, &table::names(SCHEDULERS), diag)? {
        Named::Known { at, args } => known(spec, at, args, diag),
        Named::Own { ty, args } => {
            let mut pairs = keys::any_pairs(args, diag)?;
            let at = &ty.path.segments.last()?.ident;
            let interval = own_interval(spec, at, ty, &mut pairs, &[], diag)?;
            Some((Config::Own { ty: ty.clone(), keys: pairs }, interval))
        }
        Named::Value { value, args } => {
            let mut pairs = keys::pairs(symbol::SCHEDULER, args, &[symbol::INTERVAL], diag)?;
            let key = Ident::new(symbol::VALUE, value.span());
            let all = [Pair { key: key.clone(), value: value.clone() }];
            let interval = own_interval(spec, &key, value, &mut pairs, &all, diag)?;
            Some((Config::Value(value.clone()), interval))
        }
    }
}

/// Checks the rule: a schedule that the user has written needs an `interval`, because the macro
/// cannot infer from the type whether the schedule advances per step or per epoch.
fn own_interval(
    spec: &Spec,
    at: &Ident,
    place: &impl ToTokens,
    pairs: &mut Vec<Pair>,
    others: &[Pair],
    diag: &Diagnostics,
) -> Option<Interval> {
    let Some(given) = keys::take(pairs, symbol::INTERVAL) else {
        diag.error(
            place,
            "the scheduler needs an interval: add `interval = step` or `interval = epoch`",
        );
        return None;
    };
    let interval = keys::choice(&given, INTERVALS, diag)?;
    let all: Vec<Pair> = pairs.iter().chain(others).cloned().collect();
    keys::fields_are_read_from_self(spec, &all, diag)?;
    counts_fit_the_interval(at, &all, interval, Some(&given), diag)?;
    Some(interval)
}

fn known(spec: &Spec, at: &Ident, args: &[Expr], diag: &Diagnostics) -> Option<(Config, Interval)> {
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
    let pairs = keys::words_to_values(row, pairs, diag)?;
    keys::fields_are_read_from_self(spec, &pairs, diag)?;
    let interval = interval?;
    counts_fit_the_interval(at, &pairs, interval, given.as_ref(), diag)?;
    monitors_by_epoch(at, &pairs, interval, given.as_ref(), diag)?;
    Some((Config::Known { row, at: at.clone(), keys: pairs }, interval))
}

/// Checks the rule: a schedule that monitors a value advances once per epoch, because the value
/// exists only at the end of an epoch.
fn monitors_by_epoch(
    at: &Ident,
    pairs: &[Pair],
    interval: Interval,
    given: Option<&Pair>,
    diag: &Diagnostics,
) -> Option<()> {
    let monitors = pairs.iter().any(|pair| pair.key == symbol::MONITOR);
    match given.filter(|_| monitors && interval == Interval::Step) {
        None => Some(()),
        Some(given) => {
            let text = format!(
                "`{at}` monitors a value that is logged at the end of an epoch, so it cannot \
                 advance per step: remove `interval`"
            );
            diag.error(&given.value, text);
            None
        }
    }
}

const INTERVALS: &[(&str, Interval)] = &[("step", Interval::Step), ("epoch", Interval::Epoch)];

/// Checks the rule: a schedule whose keys count optimizer steps advances at every step. For
/// example, a OneCycleLR with `total_steps = estimated_stepping_batches` that advanced once per
/// epoch would never finish its warm-up.
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
    let (key, message) = (&counted.key, "but the scheduler advances once per epoch");
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
