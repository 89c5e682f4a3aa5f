//! Control runs: training runs in which the weights never change. They show the metric of a model
//! that does not learn.
//!
//! This metric depends on the random weights: with two classes, the accuracy of a newly built model
//! may be far above one half. So if 32-true seems no better than the control run of the first seed,
//! control runs with the other seeds follow, and 32-true is compared with the mean of all control
//! runs.

use std::rc::Rc;

use amp_core::{
    LightningModule, Result,
    nn::Parameter,
    optim::{BuildOptimizer, OnDevice, Optimizer, Optimizers, Rates, Storage, TrainingPlan},
    precision::Precision,
    state::State,
};

use super::{Plan, Pool, Subject, Task, outcome::Outcome, runs::learning};
use crate::{interceptor::Interceptor, verdict::mean};

/// Finds the models that under 32-true seem no better than the first seed's control run (a run
/// without learning). For these models, makes the control runs of the other seeds too.
///
/// # Errors
/// When the cache cannot be written.
pub(super) fn complete(plan: &Plan, pool: &mut Pool) -> Result<()> {
    let mut jobs = Vec::new();
    for model in &plan.models {
        let run = |seed| pool.outcome(&plan.job(model, Precision::F32True, seed, Task::Train));
        let runs = plan.seeds(plan.first).map(|seed| run(seed).cloned());
        let Some(runs) = runs.collect::<Option<Vec<Outcome>>>() else { continue };
        let is_sound = runs.iter().all(|outcome| outcome.failures.is_empty());
        if is_sound && learning(model, &plan.untrained(pool, model), &runs, "").1.is_some() {
            let others = plan.seeds(plan.first).skip(1);
            jobs.extend(others.map(|seed| plan.job(model, Precision::F32True, seed, Task::Frozen)));
        }
    }
    pool.run(jobs)
}

impl Plan {
    /// Returns the metric of a model that does not learn: the mean over the control runs that have
    /// ended. If no control run has ended, or if a control run failed, returns the cause.
    pub(super) fn untrained(&self, pool: &Pool, model: &Subject) -> Untrained {
        let control = |seed| pool.outcome(&self.job(model, Precision::F32True, seed, Task::Frozen));
        let runs = self.seeds(self.first.max(1)).filter_map(control);
        let metrics = runs.map(metric_or_cause).collect::<std::result::Result<Vec<f64>, _>>()?;
        match metrics.as_slice() {
            [] => Err("it did not run".to_owned()),
            metrics => Ok(mean(metrics)),
        }
    }
}

/// The metric of a model that does not learn, or the reason why a control run has no metric.
pub(super) type Untrained = std::result::Result<f64, String>;

fn metric_or_cause(outcome: &Outcome) -> Untrained {
    let cause = || match outcome.failures.first() {
        Some(failure) => failure.text.clone(),
        None => "it has no metric".to_owned(),
    };
    outcome.metric.ok_or_else(cause)
}

/// An interceptor whose optimizers do nothing. Everything else runs as usual, including forward and
/// backward passes. A run with this interceptor shows the metric of a model that does not learn.
/// This metric may be better than the metric of a newly built model, because batch norms still
/// collect statistics.
pub(super) struct Freeze;

impl Interceptor for Freeze {
    fn optimizers(&self, model: &dyn LightningModule, plan: &TrainingPlan) -> Result<Optimizers> {
        let own = model.configure_optimizers(plan)?;
        Ok(own.map(|config| config.wrap_optimizer(|inner| Box::new(NoStep(inner)))))
    }
}

struct NoStep(Box<dyn BuildOptimizer>);

impl BuildOptimizer for NoStep {
    fn build_with(
        &self,
        parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>> {
        let own = self.0.build_with(parameters, storage)?;
        Ok(Box::new(Frozen { parameters: own.parameters().clone(), rates: own.rates() }))
    }
}

/// An optimizer that stores the learning rates that its schedule sets, but changes no parameter.
struct Frozen {
    parameters: Rc<[Parameter]>,
    rates: Vec<Rates>,
}

impl Optimizer for Frozen {
    fn name(&self) -> &'static str {
        "Frozen"
    }

    fn parameters(&self) -> &Rc<[Parameter]> {
        &self.parameters
    }

    fn step_with(&mut self, _: OnDevice<'_>) -> Result<()> {
        Ok(())
    }

    fn rates(&self) -> Vec<Rates> {
        self.rates.clone()
    }

    fn set_rates(&mut self, rates: &[Rates]) {
        self.rates = rates.to_vec();
    }

    fn state(&self) -> Result<State> {
        Ok(State::default())
    }

    fn load_state(&mut self, _: &State) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use amp_core::{
        data::{Batch, DataModule},
        prelude::*,
        trainer::Check,
    };
    use clap::Parser;

    use super::*;
    use crate::{
        DataSet, Registry,
        gate::{Cache, GateArgs, Job, waves::rows},
        length::Length,
        model, project,
    };

    /// A classifier with random weights that does not learn, because its learning rate is 0.
    #[derive(LightningModule)]
    #[loss(cross_entropy)]
    #[metric(accuracy, name = acc)]
    #[optimizer(sgd, lr = 0.0)]
    struct Guess {
        #[layer(linear(4, 2))]
        head: Linear,
    }

    /// A classifier whose learning rate a schedule sets.
    #[derive(LightningModule)]
    #[loss(cross_entropy)]
    #[metric(accuracy, name = acc)]
    #[optimizer(sgd, lr = 0.1)]
    #[scheduler(cosine_annealing, t_max = 40)]
    struct Scheduled {
        #[layer(linear(4, 2))]
        head: Linear,
    }

    fn waves(batch_size: i64) -> Result<DataModule> {
        let part = |first: i64| {
            let (x, sums) = rows(first)?;
            Batch::new(x, sums.f_flatten(0, -1)?.f_gt(0.0)?.f_to_kind(Kind::Int64)?)
        };
        Ok(DataModule::new("waves", part(0)?, part(256)?, batch_size))
    }

    /// Checks that a control run, in which no weight changes, does not fail even if the model has a
    /// learning rate schedule and the job asks for all checks of invariants. The accuracy after
    /// training must be higher by 0.2 than after the control run.
    #[test]
    fn a_schedule_does_not_disturb_the_control() -> Result<()> {
        let model = model!(Scheduled).margin(0.01).batch_size(16);
        let registry =
            Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(model);
        let metric = |task| {
            let job = Job::new("Scheduled", Precision::F32True, 3, Length::Epochs(10), task);
            let outcome = Job { check: Check::Full, ..job }.execute(&registry);
            assert_eq!(outcome.failures, [], "{task:?}");
            outcome.metric.expect("a metric")
        };
        assert!(metric(Task::Train) > metric(Task::Frozen) + 0.2);
        Ok(())
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        gate: GateArgs,
    }

    /// Checks that the gate compares 32-true with the mean over the control runs of all first seeds,
    /// not with the first control run. The model `Guess` does not learn, and its accuracy differs
    /// between seeds.
    #[test]
    fn the_control_is_the_mean_over_the_seeds() -> Result<()> {
        let guess = model!(Guess).margin(0.01).batch_size(16);
        let registry =
            Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(guess);
        let line = Line::parse_from(["gate", "--device", "cpu", "--precision", "bf16-mixed"]);
        let plan = Plan::new(&registry, &line.gate)?;
        let model = &plan.models[0];
        let mut pool = Pool::new(&registry, 1, 1, Cache::none())?;
        let job = |seed, task| plan.job(model, Precision::F32True, seed, task);
        let trained: Vec<_> = plan.seeds(plan.first).map(|seed| job(seed, Task::Train)).collect();
        pool.run(trained.iter().cloned())?;
        pool.run([job(plan.first_seed, Task::Frozen)])?;
        let metric = |pool: &Pool, job| pool.outcome(job).and_then(|outcome| outcome.metric);
        let metrics: Vec<f64> = trained.iter().filter_map(|job| metric(&pool, job)).collect();
        assert_eq!(metrics.len(), plan.first);
        assert_eq!(plan.untrained(&pool, model), Ok(metrics[0]));
        assert!((mean(&metrics) - metrics[0]).abs() > 0.01, "{metrics:?}");
        complete(&plan, &mut pool)?;
        assert_eq!(plan.untrained(&pool, model), Ok(mean(&metrics)));
        Ok(())
    }
}
