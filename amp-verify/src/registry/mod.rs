//! The registry of a project: its [`Model`]s, its [`DataSet`]s and the workloads (models to train)
//! of `bench`.
//!
//! A project has a function that returns its [`Registry`], and a binary named `amp`. The binary
//! passes the registry to [`main`](crate::main()):
//!
//! ```no_run,standalone_crate
//! use amp_core::{data::DataModule, prelude::*};
//! use amp_verify::{DataSet, Registry, model, project};
//!
//! #[derive(LightningModule)]
//! #[loss(cross_entropy)]
//! #[metric(accuracy, name = acc)]
//! #[optimizer(adamw, lr = 1e-3)]
//! struct Net {
//!     #[layer(linear(64, 10))]
//!     head: Linear,
//! }
//! # fn digits(batch_size: i64) -> Result<DataModule> { unimplemented!() }
//!
//! fn registry() -> Registry {
//!     Registry::new(project!())
//!         .data_set(DataSet::new("digits", digits))
//!         .model(model!(Net).data("digits").epochs(5).margin(0.02))
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     amp_verify::main(registry())
//! }
//! ```

mod data_set;
mod judge;
mod model;
mod project;
#[cfg(feature = "cli")]
mod twin;

pub use crate::{changes::Changes, length::Length};
pub use data_set::DataSet;
pub(crate) use judge::LOSS;
pub use judge::{Direction, Judge};
pub use model::{Build, Model, name_of};
pub use project::Project;
#[cfg(feature = "cli")]
pub use twin::Twin;

use std::sync::Arc;

use amp_core::{Error, Hyperparameters, Result};

use crate::margins_file::Margins;
#[cfg(feature = "cli")]
use crate::speed::{Overhead, Report, Target, Workload};

/// The models and data sets of a project, and the folder with the project's files.
#[derive(Clone)]
pub struct Registry {
    project: Project,
    models: Vec<Arc<Model>>,
    data_sets: Vec<Arc<DataSet>>,
    #[cfg(feature = "cli")]
    pub(crate) bench: Bench,
}

/// What a project adds to `cargo amp bench`: workloads (models to train), peers (other frameworks,
/// such as Lightning) and targets for speed and memory.
#[cfg(feature = "cli")]
#[derive(Clone, Default)]
pub(crate) struct Bench {
    pub(crate) workloads: Vec<Arc<Workload>>,
    pub(crate) peers: Option<Peers>,
    pub(crate) overheads: Option<Arc<Overheads>>,
    pub(crate) targets: Option<fn(&Report) -> Vec<Target>>,
}

#[cfg(feature = "cli")]
type Overheads = dyn Fn() -> Result<Vec<Overhead>> + Send + Sync;

/// The Python program that trains models with the peers. Peers are the other frameworks that
/// `bench` measures, for example Lightning.
#[cfg(feature = "cli")]
#[derive(Clone)]
pub(crate) enum Peers {
    /// The path of the program's file, relative to the project's folder.
    File(String),
    /// The source text of the program.
    Text(&'static str),
}

impl Registry {
    /// Creates a registry without models. The argument is usually the result of
    /// [`project!`](crate::project).
    pub fn new(project: Project) -> Self {
        Self {
            project,
            models: Vec::new(),
            data_sets: Vec::new(),
            #[cfg(feature = "cli")]
            bench: Bench::default(),
        }
    }

    /// Adds a model. A command uses the first model that was added if the user names no model.
    #[must_use]
    pub fn model(mut self, model: Model) -> Self {
        self.models.push(Arc::new(model));
        self
    }

    /// Adds a data set to the registry.
    #[must_use]
    pub fn data_set(mut self, data_set: DataSet) -> Self {
        self.data_sets.push(Arc::new(data_set));
        self
    }

    /// Adds a workload (a model, its data and its size) to `cargo amp bench`. Without workloads,
    /// `bench` trains the models on their own data.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn workload(mut self, workload: Workload) -> Self {
        self.bench.workloads.push(Arc::new(workload));
        self
    }

    /// Sets the Python program that `cargo amp bench --peers` runs to train the workloads with
    /// other frameworks, such as Lightning. `file` is a path relative to the project's folder.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn peers(mut self, file: impl Into<String>) -> Self {
        self.bench.peers = Some(Peers::File(file.into()));
        self
    }

    /// Sets the text of the Python program that `cargo amp bench --peers` runs to train the
    /// workloads with other frameworks. Unlike the file of [`peers`](Self::peers), the text is part
    /// of the binary, so it is available on machines without the project's files.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn peers_program(mut self, text: &'static str) -> Self {
        self.bench.peers = Some(Peers::Text(text));
        self
    }

    /// Sets a function that measures how much time the training loop takes in addition to the
    /// model's operations. `cargo amp bench` calls the function if the benchmark runs on a CPU.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn loop_overheads(
        mut self,
        measure: impl Fn() -> Result<Vec<Overhead>> + Send + Sync + 'static,
    ) -> Self {
        self.bench.overheads = Some(Arc::new(measure));
        self
    }

    /// Sets the targets for speed and memory with which `cargo amp bench` compares its results.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn targets(mut self, targets: fn(&Report) -> Vec<Target>) -> Self {
        self.bench.targets = Some(targets);
        self
    }

    /// Returns the project: the package that declares the registry.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// Returns the models that are not hidden. Commands list these models, and run them by default.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.iter().filter(|model| !model.is_hidden)
    }

    /// Returns all models, including the hidden ones.
    #[cfg(feature = "cli")]
    pub(crate) fn all_models(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.iter()
    }

    /// Returns the data sets of the registry.
    pub fn data_sets(&self) -> impl Iterator<Item = &Arc<DataSet>> {
        self.data_sets.iter()
    }

    /// Returns the model with the given name. If `name` is `None`, returns the first model.
    ///
    /// # Errors
    /// When no model has this name.
    pub fn find(&self, name: Option<&str>) -> Result<&Arc<Model>> {
        let Some(name) = name else {
            return self.models.first().ok_or_else(|| self.without_models());
        };
        self.models.iter().find(|model| model.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.models().map(|model| model.name).collect();
            match names.as_slice() {
                [] => self.without_models(),
                _ => Error::config(format!(
                    "unknown model `{name}`: expected one of {}, or register it in the registry \
                     of {}",
                    names.join(", "),
                    self.project.name()
                )),
            }
        })
    }

    /// Returns the data set with the given name.
    ///
    /// # Errors
    /// When no data set has this name.
    pub fn find_data(&self, name: &str) -> Result<&Arc<DataSet>> {
        self.data_sets.iter().find(|data_set| data_set.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.data_sets.iter().map(|set| set.name).collect();
            Error::config(format!("unknown data `{name}`: expected one of {}", names.join(", ")))
        })
    }

    /// Reads the models' margins (how much worse than 32-true a precision may be) that `cargo amp
    /// margins` recorded in the project's file `margins.json`. If the file does not exist, there
    /// are no margins.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn margins(&self) -> Result<Margins> {
        Margins::read(&self.project.margins_file())
    }

    /// Returns the margin of a model: how much worse than 32-true a precision may be. `changes` are
    /// the user's changes to the registered model, and `length` is the length of training. The
    /// length in `changes` is ignored. Returns the first of these margins that exists:
    ///
    /// 1. The margin that the registry declares. It is valid only if nothing but the length is
    ///    changed, and `length` is the model's full length or the length of the gate's quick tier.
    /// 2. The margin that `cargo amp margins` recorded for the same changes and the same length.
    /// 3. The margin that was recorded for the length of the gate's quick tier, if `length` is the
    ///    model's full length.
    ///
    /// # Errors
    /// When none of these margins exists, or the margin was recorded for other values of the
    /// hyperparameters than the model has now.
    pub fn margin(&self, model: &Model, changes: &Changes, length: Length) -> Result<f64> {
        if let Some(margin) = model.margin_for(changes, length) {
            return Ok(margin);
        }
        let is_own = model.trains_for(length);
        let (name, margins) = (model.name, self.margins()?);
        let quick = || margins.of(name, changes, model.quick()).filter(|_| is_own);
        let Some(recorded) = margins.of(name, changes, length).or_else(quick) else {
            return Err(no_margin(name, changes, (!is_own).then_some(length)));
        };
        if let Some(then) = &recorded.hyperparameters {
            let now = model.all_hyperparameters(&self.hyperparameters(model, changes)?)?;
            if let Some(what) = first_difference(then, &now) {
                return Err(Error::config(format!(
                    "the margin of {name} was recorded for other hyperparameters ({what}): record \
                     it again with `cargo amp margins --model {name}`, or give one with --margin"
                )));
            }
        }
        Ok(recorded.margin)
    }

    /// Merges hyperparameters, in increasing priority: those of the model, those that follow from
    /// its data set, and those in `changes`.
    fn hyperparameters(&self, model: &Model, changes: &Changes) -> Result<Hyperparameters> {
        let data = match &changes.data {
            Some(name) => name.as_str(),
            None => model.data_name(self)?,
        };
        let mut all = model.hyperparameters.clone();
        self.find_data(data)?.apply(&mut all);
        all.extend(changes.hyperparameters.clone());
        Ok(all)
    }

    /// Checks that all names are unique, that the data set of every model is registered, and that no
    /// model declares an error such as `val_loss` as a metric of which higher values are better.
    ///
    /// # Errors
    /// When a name occurs twice, a data set is missing, a metric's direction is wrong, or there is
    /// no model.
    pub fn check(&self) -> Result<()> {
        if self.models.is_empty() {
            return Err(self.without_models());
        }
        let twice = |kind: &str, names: Vec<&str>| match first_repeated(&names) {
            Some(name) => Err(Error::config(format!(
                "the registry of {} has two {kind} named `{name}`: rename or remove one",
                self.project.name()
            ))),
            None => Ok(()),
        };
        twice("models", self.models.iter().map(|model| model.name).collect())?;
        twice("data sets", self.data_sets.iter().map(|set| set.name).collect())?;
        #[cfg(feature = "cli")]
        twice("workloads", self.bench.workloads.iter().map(|w| w.name.as_str()).collect())?;
        for model in &self.models {
            let data = self.find_data(model.data_name(self)?);
            data.and_then(|_| model.judge.check())
                .map_err(|error| error.at(&format!("model {}", model.name)))?;
        }
        Ok(())
    }

    fn without_models(&self) -> Error {
        Error::config(format!(
            "the registry of {} has no models: add one with `.model(model!(…))`",
            self.project.name()
        ))
    }
}

fn first_repeated<'a>(names: &[&'a str]) -> Option<&'a str> {
    let repeated = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
    repeated.map(|(_, name)| *name)
}

/// Returns the error for a model without a margin. `length` is the length of training if the user
/// changed it, that is, if it is neither the model's full length nor the length of the gate's quick
/// tier.
fn no_margin(name: &str, changes: &Changes, length: Option<Length>) -> Error {
    let changes = Changes { length, ..changes.clone() };
    Error::config(match changes.is_empty() {
        true => format!(
            "{name} has no margin: declare one with `.margin(…)`, record one with `cargo amp margins --model \
             {name}`, or give one with --margin"
        ),
        false => format!(
            "{name} has no margin for {changes}: a margin is valid only for the same \
             hyperparameters, data set and length of training; give one with --margin, or record \
             one with `cargo amp margins --model {name}` and the same options"
        ),
    })
}

/// Describes the first hyperparameter whose value has changed: from `then`, when the margin was
/// recorded, to `now`. Returns `None` if all values are equal.
fn first_difference(then: &Hyperparameters, now: &Hyperparameters) -> Option<String> {
    let value = |all: &Hyperparameters, name: &str| {
        all.get(name).map_or("nothing".to_owned(), ToString::to_string)
    };
    let mut names = then.keys().chain(now.keys());
    let name = names.find(|name| then.get(*name) != now.get(*name))?;
    Some(format!("{name} was {} and is now {}", value(then, name), value(now, name)))
}
