//! Control runs: training runs in which the weights never change. They show the metric of a model
//! that does not learn.

use std::rc::Rc;

use amp_core::{
    LightningModule, Result,
    nn::Parameter,
    optim::{
        BuildOptimizer, OnDevice, Optimizer, OptimizerConfig, Optimizers, Rates, Storage,
        TrainingPlan,
    },
    state::State,
};

use crate::interceptor::Interceptor;

/// An interceptor whose optimizer does nothing. Everything else runs as usual, including forward
/// and backward passes. The run shows the metric of an untrained model. This metric may be better
/// than the metric of a newly built model, because batch norms still collect statistics.
pub(super) struct Freeze;

impl Interceptor for Freeze {
    fn optimizers(&self, _: &dyn LightningModule, _: &TrainingPlan) -> Result<Optimizers> {
        Ok(OptimizerConfig::new(NoStep).into())
    }
}

struct NoStep;

impl BuildOptimizer for NoStep {
    fn build_with(&self, parameters: Vec<Parameter>, _: Storage) -> Result<Box<dyn Optimizer>> {
        Ok(Box::new(Frozen(parameters.into())))
    }
}

struct Frozen(Rc<[Parameter]>);

impl Optimizer for Frozen {
    fn name(&self) -> &'static str {
        "Frozen"
    }

    fn parameters(&self) -> &Rc<[Parameter]> {
        &self.0
    }

    fn step_with(&mut self, _: OnDevice<'_>) -> Result<()> {
        Ok(())
    }

    fn rates(&self) -> Vec<Rates> {
        vec![Rates { lr: 0.0, momentum: None }]
    }

    fn set_rates(&mut self, _: &[Rates]) {}

    fn state(&self) -> Result<State> {
        Ok(State::default())
    }

    fn load_state(&mut self, _: &State) -> Result<()> {
        Ok(())
    }
}
