//! The plan of one call of `cargo amp gate`: which models and precisions are judged, and which
//! training runs and checks are needed for this.

use std::{ops::Deref, path::PathBuf, sync::Arc, time::Duration};

use amp_core::{
    Error, Result, hardware,
    precision::{Kernels, Precision},
    trainer::Check,
};

use super::{DIAGNOSED, GateArgs, Job, Task, Tier};
use crate::{
    case::{Case, Choices},
    changes::Changes,
    diagnose::{Overrides, PolicyFile},
    faults::Fault,
    length::Length,
    options::check_margin,
    registry::{Model, Registry},
};

/// A model that the gate judges, and its margin: how much worse than 32-true a precision may be.
#[derive(Debug, Clone)]
pub struct Subject {
    model: Arc<Model>,
    /// The margin: a precision that is worse than 32-true by this much or more is a regression.
    pub margin: f64,
    /// By how much the metric of a trained model must be better than the metric of the control run,
    /// in which no weight changes.
    pub learns_by: f64,
}

impl Subject {
    /// Prepares to judge `model` with the margin that the registry declares. If the registry
    /// declares none, uses the recorded margin.
    ///
    /// # Errors
    /// When the model has no margin.
    pub fn new(registry: &Registry, model: &Arc<Model>) -> Result<Self> {
        Self::with(registry, model, &Changes::default(), model.quick(), None)
    }

    /// Prepares to judge `model` with `changes` to its hyperparameters, data or training, trained
    /// for `length`. If `margin` is given, it is used in place of the declared or recorded margin.
    ///
    /// # Errors
    /// When there is no margin for these changes, or the model does not allow one of the changes.
    pub fn with(
        registry: &Registry,
        model: &Arc<Model>,
        changes: &Changes,
        length: Length,
        margin: Option<f64>,
    ) -> Result<Self> {
        let margin = margin.map_or_else(|| registry.margin(model, changes, length), Ok)?;
        // The registry's `learns_by` is only valid without changes to the model. Otherwise the
        // margin is used.
        let own = model.learns_by.filter(|_| changes.is_empty());
        Ok(Self { model: Arc::clone(model), margin, learns_by: own.unwrap_or(margin) })
    }
}

impl Deref for Subject {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
    }
}

/// What a call of the gate judges: the command-line options, after they were checked.
#[derive(Clone)]
pub struct Plan {
    /// The registry that contains the models.
    pub registry: Registry,
    /// The models to judge.
    pub models: Vec<Subject>,
    /// The changes to each model that the options ask for.
    pub changes: Changes,
    /// The time limit for the checks of rules and the full training runs. `None` means that there
    /// is no limit.
    pub time_limit: Option<Duration>,
    /// Whether only the rules are checked, without full training runs.
    pub rules_only: bool,
    /// The tier, which determines how long the runs are.
    pub tier: Tier,
    /// The precisions to judge.
    pub precisions: Vec<Precision>,
    /// The number of seeds with which a precision is first judged. See
    /// [`evaluations`](crate::verdict::evaluations).
    pub first: usize,
    /// The largest number of seeds, which is used if the statistical test with the first seeds is
    /// inconclusive.
    pub most: usize,
    /// The first seed of the training runs. The further seeds are the numbers that follow it.
    pub first_seed: u64,
    /// The significance level α of the test. See [`Design::alpha`](crate::verdict::Design::alpha).
    pub alpha: f64,
    /// Whether a precision that is better than 32-true by more than the margin fails as well. See
    /// [`Design::equivalence`](crate::verdict::Design::equivalence).
    pub equivalence: bool,
    /// The name of the device, for example `cuda:0`.
    pub device: String,
    /// Whether f32 matrix products may run in TF32.
    pub tf32: bool,
    /// Whether libtorch is asked for deterministic algorithms.
    pub deterministic: bool,
    /// The kernels that layers and losses use.
    pub kernels: Kernels,
    /// How often the invariants of training are checked.
    pub check: Check,
    /// The folder of the goldens (recorded results) with which the results of the first seed are
    /// compared. `None` means that nothing is compared.
    pub goldens: Option<PathBuf>,
    /// The precisions of single modules, by the module's path. They replace the precisions that the
    /// model's code sets.
    pub overrides: Overrides,
    /// How many failing combinations of model and precision are diagnosed at most.
    pub diagnosed: usize,
    /// The fault that the self-test puts into the runs. `None` outside the self-test.
    pub fault: Option<Fault>,
}

impl Plan {
    /// Creates the plan from the command-line options, for the models that they name.
    ///
    /// # Errors
    /// When a name is unknown, a number is out of range, or a model has no margin.
    pub fn new(registry: &Registry, args: &GateArgs) -> Result<Self> {
        let changes = args.changes.changes();
        let judged = match args.model.len() {
            0 => registry.models().count(),
            named => named,
        };
        if args.margin.is_some() && judged != 1 {
            return Err(Error::config(format!(
                "margin: it applies to one model, but {judged} models are judged: name one with \
                 --model"
            )));
        }
        check_margin(args.margin)?;
        let subject = |model: &Arc<Model>| {
            let length = length(&changes, args.tier, model);
            Subject::with(registry, model, &changes, length, args.margin)
        };
        let models: Vec<Subject> = match args.model.as_slice() {
            [] => registry.models().map(subject).collect::<Result<_>>()?,
            names => {
                let find = |name: &String| subject(registry.find(Some(name))?);
                names.iter().map(find).collect::<Result<_>>()?
            }
        };
        let mut precisions = match args.precision.as_slice() {
            [] => args.tier.precisions().to_vec(),
            chosen => chosen.to_vec(),
        };
        precisions.retain(|precision| *precision != Precision::F32True);
        precisions.dedup();
        if precisions.is_empty() {
            return Err(Error::config(
                "precision: 32-true is the baseline; name another precision to compare with it",
            ));
        }
        let (first, most) = args.tier.seeds();
        let first = args.seeds.unwrap_or(first);
        let most = args.max_seeds.unwrap_or(most.max(first));
        if first < 2 || most < first {
            return Err(Error::config(format!(
                "seeds {first}, max-seeds {most}: there must be at least 2 seeds, and max-seeds \
                 must not be smaller than seeds"
            )));
        }
        if !(args.alpha > 0.0 && args.alpha < 0.5) {
            return Err(Error::config(format!("alpha {}: it must be in (0, 0.5)", args.alpha)));
        }
        let device = hardware::parse_device(&args.device)?;
        let case = |model: &Model| Case::new(registry, model, Choices::from(&changes), device);
        if !changes.is_empty() {
            for model in &models {
                case(model).map_err(|error| error.at(model.name))?;
            }
        }
        let overrides = match (&args.policy, models.as_slice()) {
            (None, _) => Overrides::new(),
            (Some(path), [model]) => {
                let case = case(model)?;
                let built = case.build()?;
                PolicyFile::read(path, model.name, built.as_ref())?.overrides
            }
            (Some(_), _) => return Err(for_one_model("policy")),
        };
        if args.fix.is_some() && models.len() != 1 {
            return Err(for_one_model("fix"));
        }
        Ok(Self {
            registry: registry.clone(),
            models,
            changes,
            time_limit: args.time_limit,
            rules_only: false,
            tier: args.tier,
            precisions,
            first,
            most,
            first_seed: args.first_seed,
            alpha: args.alpha,
            equivalence: args.equivalence,
            device: args.device.clone(),
            tf32: args.tf32,
            deterministic: args.deterministic,
            kernels: args.kernels,
            check: args.check,
            goldens: args.goldens.clone(),
            overrides,
            diagnosed: if args.no_diagnose { 0 } else { DIAGNOSED },
            fault: None,
        })
    }

    pub(super) fn length(&self, model: &Model) -> Length {
        length(&self.changes, self.tier, model)
    }

    pub(crate) fn job(&self, model: &Model, precision: Precision, seed: u64, task: Task) -> Job {
        let fault = match (precision, self.fault) {
            // A fault of the self-test that does not affect 32-true is left out of the jobs under
            // 32-true. So these jobs are equal for all such faults and run only once.
            (Precision::F32True, Some(fault)) if !fault.touches_baseline() => None,
            (_, fault) => fault,
        };
        Job {
            model: model.name.to_owned(),
            precision,
            seed,
            length: self.length(model),
            changes: self.changes.clone(),
            device: self.device.clone(),
            tf32: self.tf32
                || (precision == Precision::F32True && fault == Some(Fault::Tf32Baseline)),
            deterministic: self.deterministic,
            kernels: self.kernels,
            check: if task == Task::Invariants { Check::Full } else { self.check },
            task,
            overrides: self.overrides.clone(),
            fault,
        }
    }

    pub(super) fn seeds(&self, count: usize) -> impl Iterator<Item = u64> + use<> {
        let first = self.first_seed;
        (0..count as u64).map(move |index| first + index)
    }

    /// Returns the jobs that run first: for each model, the checks of the gate's rules, and the full
    /// training runs with the first seeds. If their result is inconclusive, runs with more seeds
    /// follow.
    pub(crate) fn first_look(&self) -> Vec<Job> {
        let mut jobs = self.rules();
        for model in &self.models {
            for seed in self.seeds(self.first) {
                jobs.extend(self.pairs(model, &self.precisions, seed));
            }
        }
        jobs
    }

    /// Returns the jobs that need only one seed: the control run, in which no weight changes, the
    /// comparison of the first steps with 32-true, and the check of the observed steps against
    /// rules.
    pub(super) fn rules(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for model in &self.models {
            jobs.push(self.job(model, Precision::F32True, self.first_seed, Task::Frozen));
            for precision in &self.precisions {
                jobs.push(self.job(model, *precision, self.first_seed, Task::Conformance));
                jobs.push(self.job(model, *precision, self.first_seed, Task::Path));
            }
        }
        jobs
    }

    /// Returns the jobs that train a model with one seed: under 32-true and under each of
    /// `precisions`.
    pub(super) fn pairs<'a>(
        &'a self,
        model: &'a Model,
        precisions: &'a [Precision],
        seed: u64,
    ) -> impl Iterator<Item = Job> + 'a {
        let all = std::iter::once(&Precision::F32True).chain(precisions);
        all.map(move |precision| self.job(model, *precision, seed, Task::Train))
    }
}

/// Returns for how long a model with these changes is trained in a tier.
fn length(changes: &Changes, tier: Tier, model: &Model) -> Length {
    changes.length.unwrap_or(match tier {
        Tier::Quick => model.quick(),
        Tier::Nightly => model.length(),
    })
}

fn for_one_model(option: &str) -> Error {
    Error::config(format!("{option}: a policy applies to one model: name this model with --model"))
}
