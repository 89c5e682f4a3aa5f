//! A data set by name.

use std::{fmt, sync::Arc};

use amp_core::{Hyperparameters, Result, data::DataModule};
use serde_json::Value;

type Load = dyn Fn(i64) -> Result<DataModule> + Send + Sync;

/// A data set that models are trained and validated on.
///
/// ```no_run,standalone_crate
/// use amp_core::{Result, data::DataModule, data::Batch, tch::{Device, Kind, Tensor}};
/// use amp_verify::DataSet;
///
/// fn ramp(batch_size: i64) -> Result<DataModule> {
///     let part = |first: i64, count: i64| {
///         let x = Tensor::f_arange_start(first, first + count, (Kind::Float, Device::Cpu))?;
///         Batch::new(x.f_unsqueeze(1)?, x.f_gt(0.0)?.f_to_kind(Kind::Int64)?)
///     };
///     Ok(DataModule::new("ramp", part(-64, 128)?, part(-16, 32)?, batch_size))
/// }
///
/// let data_set = DataSet::new("ramp", ramp).hyperparameters([("input_size", 1)]);
/// assert_eq!(data_set.load(16)?.batch_size, 16);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Clone)]
pub struct DataSet {
    pub(crate) name: &'static str,
    about: String,
    hyperparameters: Hyperparameters,
    load: Arc<Load>,
}

impl DataSet {
    /// The set called `name`, which `load` makes for a batch size. It must give the same examples each
    /// time.
    pub fn new(
        name: &'static str,
        load: impl Fn(i64) -> Result<DataModule> + Send + Sync + 'static,
    ) -> Self {
        let hyperparameters = Hyperparameters::new();
        Self { name, about: String::new(), hyperparameters, load: Arc::new(load) }
    }

    /// A short description.
    #[must_use]
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.about = about.into();
        self
    }

    /// Hyperparameters that follow from the data, as the number of features. They are set in models
    /// that name them among their own [`hyperparameters`](crate::Model::hyperparameters).
    #[must_use]
    pub fn hyperparameters<V: Into<Value>>(
        mut self,
        hyperparameters: impl IntoIterator<Item = (&'static str, V)>,
    ) -> Self {
        let pairs = hyperparameters.into_iter();
        self.hyperparameters.extend(pairs.map(|(name, value)| (name.to_owned(), value.into())));
        self
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The description; empty if none was given.
    pub fn description(&self) -> &str {
        &self.about
    }

    /// Loads it with batches of `batch_size` examples.
    ///
    /// # Errors
    /// When the data cannot be loaded.
    pub fn load(&self, batch_size: i64) -> Result<DataModule> {
        (self.load)(batch_size)
    }

    /// Sets what follows from the data in a model's hyperparameters.
    pub(crate) fn apply(&self, hyperparameters: &mut Hyperparameters) {
        for (name, value) in &self.hyperparameters {
            if let Some(own) = hyperparameters.get_mut(name) {
                own.clone_from(value);
            }
        }
    }
}

impl fmt::Debug for DataSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSet").field("name", &self.name).finish_non_exhaustive()
    }
}
