//! A named data set of a registry.

use std::{fmt, sync::Arc};

use amp_core::{Hyperparameters, Result, data::DataModule, random};
use serde_json::Value;

type Load = dyn Fn(i64, &Hyperparameters) -> Result<DataModule> + Send + Sync;

/// A named data set for training and validating models.
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
    /// Whether the size of an example depends on the model's hyperparameters. If so, `load` needs
    /// the values of all hyperparameters.
    is_sized: bool,
    load: Arc<Load>,
}

impl DataSet {
    /// Creates a data set. `load` receives the batch size and returns the data. Every call must
    /// return the same examples, so that runs can be compared.
    ///
    /// While `load` runs, libtorch's CPU generator has a seed that depends only on `name`, and its
    /// state is restored afterwards. Therefore examples from `Tensor::randn` on the CPU are the
    /// same in every process and for every seed of the run. Random numbers from other sources, such
    /// as a CUDA device or the crate `rand`, need a constant seed.
    pub fn new(
        name: &'static str,
        load: impl Fn(i64) -> Result<DataModule> + Send + Sync + 'static,
    ) -> Self {
        Self::with(name, false, move |batch_size, _| load(batch_size))
    }

    /// Creates a data set in which the size of an example depends on the model's hyperparameters,
    /// for example on the length of generated sequences. `load` receives the batch size and all
    /// hyperparameters, including those with default values. Every call with the same
    /// hyperparameters must return the same examples. libtorch's CPU generator is seeded as in
    /// [`new`](Self::new).
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::{Hyperparameters, Result, data::{Batch, DataModule}, tch::{Device, Kind, Tensor}};
    /// use amp_verify::DataSet;
    ///
    /// fn ramp(batch_size: i64, of: &Hyperparameters) -> Result<DataModule> {
    ///     let features = of["input_size"].as_i64().unwrap_or(1);
    ///     let part = |count: i64| {
    ///         let x = Tensor::f_linspace(-1.0, 1.0, count * features, (Kind::Float, Device::Cpu))?;
    ///         let x = x.f_reshape([count, features])?;
    ///         let y = x.f_select(1, 0)?.f_gt(0.0)?.f_to_kind(Kind::Int64)?;
    ///         Batch::new(x, y)
    ///     };
    ///     Ok(DataModule::new("ramp", part(128)?, part(31)?, batch_size))
    /// }
    ///
    /// assert!(DataSet::sized("ramp", ramp).is_sized());
    /// ```
    pub fn sized(
        name: &'static str,
        load: impl Fn(i64, &Hyperparameters) -> Result<DataModule> + Send + Sync + 'static,
    ) -> Self {
        Self::with(name, true, load)
    }

    fn with(
        name: &'static str,
        is_sized: bool,
        load: impl Fn(i64, &Hyperparameters) -> Result<DataModule> + Send + Sync + 'static,
    ) -> Self {
        let hyperparameters = Hyperparameters::new();
        Self { name, about: String::new(), hyperparameters, is_sized, load: Arc::new(load) }
    }

    /// Sets a short description, which `cargo amp models` shows.
    #[must_use]
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.about = about.into();
        self
    }

    /// Sets hyperparameters whose values follow from the data, for example the number of features.
    /// If a model that is trained on this data has hyperparameters with these names, they get these
    /// values.
    #[must_use]
    pub fn hyperparameters<V: Into<Value>>(
        mut self,
        hyperparameters: impl IntoIterator<Item = (&'static str, V)>,
    ) -> Self {
        let pairs = hyperparameters.into_iter();
        self.hyperparameters.extend(pairs.map(|(name, value)| (name.to_owned(), value.into())));
        self
    }

    /// Returns the name of the data set.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the description of the data set. The description is empty if [`about`](Self::about)
    /// was not called.
    pub fn description(&self) -> &str {
        &self.about
    }

    /// Returns whether the size of the examples depends on the model's hyperparameters.
    pub fn is_sized(&self) -> bool {
        self.is_sized
    }

    /// Loads the data, divided into batches of `batch_size` examples.
    ///
    /// # Errors
    /// When the data cannot be loaded.
    pub fn load(&self, batch_size: i64) -> Result<DataModule> {
        self.load_for(batch_size, &Hyperparameters::new())
    }

    /// Loads the data for a model. `of` must contain the values of all hyperparameters of the
    /// model, including those with default values.
    ///
    /// # Errors
    /// When the data cannot be loaded, or the model lacks a hyperparameter that the data set needs.
    pub fn load_for(&self, batch_size: i64, of: &Hyperparameters) -> Result<DataModule> {
        random::isolated(seed_of(self.name), || (self.load)(batch_size, of))?
    }

    /// Sets those hyperparameters of a model that follow from the data. Ignores a hyperparameter
    /// that the model does not have.
    pub(crate) fn apply(&self, hyperparameters: &mut Hyperparameters) {
        for (name, value) in &self.hyperparameters {
            if let Some(own) = hyperparameters.get_mut(name) {
                own.clone_from(value);
            }
        }
    }
}

/// Returns the seed of the random numbers of the data set of this name: the hash FNV-1a of the name.
fn seed_of(name: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    name.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

impl fmt::Debug for DataSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSet").field("name", &self.name).finish_non_exhaustive()
    }
}
