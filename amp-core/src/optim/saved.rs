//! The keys under which optimizers and schedules save their state, and the check of a state before
//! it is loaded.

use std::mem::discriminant;

use serde_json::Value;

use super::Rates;
use crate::{Error, Result, state::State};

/// The key under which an optimizer or schedule saves its name.
pub(super) const NAME: &str = "name";
/// The key under which the f32 master weights of 16-bit parameters are saved.
pub(super) const MASTER: &str = "master";
/// The key of the flag that says whether a parameter has been updated before.
pub(super) const STARTED: &str = "started";
/// The key of the number of steps or epochs that a schedule has passed. As in PyTorch, the key is
/// `last_epoch` even if the schedule counts steps.
pub(super) const LAST_EPOCH: &str = "last_epoch";
/// The key of the current rates of a schedule.
pub(super) const LAST: &str = "last";

/// Returns the prefix of the keys of a parameter group.
pub(super) fn group(index: usize) -> String {
    format!("param_groups/{index}")
}

pub(super) fn put_rates(state: &mut State, under: &str, rates: Rates) -> Result<()> {
    state.put(format!("{under}/lr"), &rates.lr)?;
    state.put(format!("{under}/momentum"), &rates.momentum)
}

pub(super) fn get_rates(state: &State, under: &str) -> Result<Rates> {
    Ok(Rates {
        lr: state.get(&format!("{under}/lr"))?,
        momentum: state.get(&format!("{under}/momentum"))?,
    })
}

/// Returns an error if the names, shapes, dtypes or types of the saved values differ from those in
/// `own`, the current state. A difference means that another optimizer or schedule saved the state.
pub(super) fn same_layout(own: &State, saved: &State) -> Result<()> {
    let names = own.values().iter().filter(|(path, _)| path.rsplit('/').next() == Some(NAME));
    for (path, own) in names {
        if let (Some(own), Some(saved)) =
            (own.as_str(), saved.values().get(path).and_then(Value::as_str))
            && own != saved
        {
            return Err(Error::config(format!(
                "the saved state belongs to {saved}, but this run uses {own}: configure the \
                 optimizer and schedule of the saved run"
            )));
        }
    }
    for (name, tensor) in own.tensors() {
        saved.tensor_like(name, tensor)?;
    }
    for (name, value) in own.values() {
        let found: Value = saved.get(name)?;
        let is_float = |value: &Value| value.as_number().is_some_and(serde_json::Number::is_f64);
        if discriminant(value) != discriminant(&found) || is_float(value) != is_float(&found) {
            return Err(Error::config(format!(
                "state `{name}` is {found} in the file, but must have the same type as its current \
                  value, {value}"
            )));
        }
    }
    let known = |name: &str| own.values().contains_key(name) || own.tensor(name).is_ok();
    let mut names =
        saved.tensors().map(|(name, _)| name).chain(saved.values().keys().map(String::as_str));
    match names.find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => Err(Error::config(format!(
            "the saved state contains `{name}`, which this run does not have: another model or \
             optimizer saved it"
        ))),
    }
}
