//! The saved state of a run or of one of its components, such as an optimizer. A state contains
//! tensors and small JSON values, each with a name.

mod floats;

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tch::Tensor;

pub(crate) use self::floats::{from_value, to_value};
use crate::{Error, Result};

/// The state of an optimizer, a schedule, a scaler, a log or a whole run. Names are paths whose
/// parts are separated by `/` (`optimizer/0/exp_avg/model.0.weight`). A weight's name contains no
/// `/`, so no name of a state can be mistaken for the name of a weight.
#[derive(Debug, Default)]
pub struct State {
    tensors: BTreeMap<String, Tensor>,
    values: Map<String, Value>,
}

impl State {
    /// Stores a handle of `tensor`, not a copy. If the tensor is changed before the state is saved,
    /// the changed values are saved.
    pub fn put_tensor(&mut self, name: impl Into<String>, tensor: &Tensor) {
        self.tensors.insert(name.into(), tensor.shallow_clone());
    }

    /// Stores a small value under a name. The value itself may be an infinite float or NaN, but may
    /// not contain one.
    ///
    /// # Errors
    /// When JSON cannot represent the value, for example a NaN within a list.
    pub fn put(&mut self, name: impl Into<String>, value: &impl Serialize) -> Result<()> {
        let name = name.into();
        let value =
            to_value(value).map_err(|error| Error::config(format!("state `{name}`: {error}")))?;
        self.values.insert(name, value);
        Ok(())
    }

    /// Stores another state within this state, with the prefix `part/` added to each of its names.
    pub fn put_part(&mut self, part: &str, state: Self) {
        let under = |name: String| format!("{part}/{name}");
        self.tensors.extend(state.tensors.into_iter().map(|(name, t)| (under(name), t)));
        self.values.extend(state.values.into_iter().map(|(name, v)| (under(name), v)));
    }

    /// Returns the tensors and values whose names begin with `part/`, without this prefix in their
    /// names.
    #[must_use]
    pub fn part(&self, part: &str) -> Self {
        let within = |name: &str| Some(name.strip_prefix(part)?.strip_prefix('/')?.to_owned());
        Self {
            tensors: self
                .tensors
                .iter()
                .filter_map(|(name, tensor)| Some((within(name)?, tensor.shallow_clone())))
                .collect(),
            values: self
                .values
                .iter()
                .filter_map(|(name, value)| Some((within(name)?, value.clone())))
                .collect(),
        }
    }

    /// Returns the tensor that is stored under this name.
    ///
    /// # Errors
    /// When the state has no tensor of this name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| missing(name))
    }

    /// Returns the tensor that is stored under this name, after checking that it has the shape and
    /// dtype of `like`.
    ///
    /// # Errors
    /// When the state has no tensor of this name, or the tensor has another shape or dtype than
    /// `like`.
    pub fn tensor_like(&self, name: &str, like: &Tensor) -> Result<&Tensor> {
        let found = self.tensor(name)?;
        if found.size() == like.size() && found.kind() == like.kind() {
            return Ok(found);
        }
        let (kind, size) = (found.kind(), found.size());
        let (wanted, wanted_size) = (like.kind(), like.size());
        Err(Error::config(format!(
            "state `{name}` is {kind:?} {size:?}, but {wanted:?} {wanted_size:?} is needed"
        )))
    }

    /// Returns the small value that is stored under this name.
    ///
    /// # Errors
    /// When the state has no value of this name, or the value has another type than `T`.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let value = self.values.get(name).ok_or_else(|| missing(name))?;
        from_value(value).map_err(|error| Error::config(format!("state `{name}`: {error}")))
    }

    /// Calls `replace` once with all tensors, in the order of their names, and replaces the tensors
    /// with the returned ones.
    pub(crate) fn replace_tensors(
        &mut self,
        replace: impl FnOnce(&[&Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<()> {
        let own: Vec<&Tensor> = self.tensors.values().collect();
        let others = replace(&own)?;
        self.tensors.values_mut().zip(others).for_each(|(tensor, other)| *tensor = other);
        Ok(())
    }

    /// Copies every tensor to new memory on the same device, so that later changes of the original
    /// tensors do not affect the state.
    ///
    /// # Errors
    /// When there is not enough device memory.
    pub fn copied(mut self) -> Result<Self> {
        for tensor in self.tensors.values_mut() {
            *tensor = tch::no_grad(|| tensor.f_detach_copy())?;
        }
        Ok(self)
    }

    /// Returns whether the state contains neither tensors nor values.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty() && self.values.is_empty()
    }

    /// Returns the tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Returns the values by name.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    pub(crate) fn from_parts(
        tensors: BTreeMap<String, Tensor>,
        values: Map<String, Value>,
    ) -> Self {
        Self { tensors, values }
    }
}

fn missing(name: &str) -> Error {
    Error::config(format!("the saved state has no `{name}`"))
}
