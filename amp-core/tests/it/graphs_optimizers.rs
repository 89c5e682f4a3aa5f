//! Optimizers that a CUDA graph cannot hold, or not yet: they step behind it, with the same numbers
//! (`AMP_DEVICE=cuda`).

use std::cell::Cell;

use amp_core::{
    Module, Result,
    nn::{Context, Linear, Sequential, Visit, Visitor},
    optim::{AdamW, OptimizerConfig, Sgd, TrainingPlan},
    precision::{GradScalerConfig, Precision},
    tch::Tensor,
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::{
    graphs::{assert_same, config, momentum, train_on},
    support::{
        model::{demo, linear},
        needs_cuda, seeded,
    },
};

fn foreach_adamw(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(AdamW { fused: false, ..Default::default() })
}

fn foreach_sgd(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 1e-2, momentum: 0.9, fused: false, ..Default::default() })
}

/// The first step of each parameter is another: a graph holds it once all have taken theirs.
fn damped(_: &TrainingPlan) -> OptimizerConfig {
    let sgd = Sgd { lr: 1e-2, momentum: 0.9, dampening: 0.5, ..Default::default() };
    OptimizerConfig::new(sgd)
}

/// With overflows, after which a step behind the graph must not be taken.
#[rstest]
#[case(foreach_adamw)]
#[case(foreach_sgd)]
#[case(damped)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_step_behind_the_graph_is_the_step(
    #[case] optimizer: fn(&TrainingPlan) -> OptimizerConfig,
    #[values(Precision::F32True, Precision::F16Mixed)] precision: Precision,
) -> Result<()> {
    runs(precision, optimizer, || demo(0.2))
}

/// A layer that training goes around for so many batches of 32.
struct Late {
    layer: Linear,
    left: Cell<u64>,
}

impl Visit for Late {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.layer.visit(visitor);
    }
}

impl Module for Late {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let left = self.left.get();
        if cx.is_training() && input.size()[0] == 32 && left > 0 {
            self.left.set(left - 1);
            return Ok(input.shallow_clone());
        }
        self.layer.forward(input, cx)
    }
}

/// Parameters that have had no gradient when the step is first captured: they take their first step
/// with the graph, or without it in the last batch of an epoch, which is smaller. From then on the graph
/// can hold the steps of a damped momentum; a gradient that it does not compute is none.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_parameter_may_have_its_first_gradient_late(
    #[values(3, u64::MAX)] left: u64,
    #[values(damped, momentum, foreach_sgd)] optimizer: fn(&TrainingPlan) -> OptimizerConfig,
) -> Result<()> {
    let network = || -> Result<Sequential> {
        let late = Late { layer: linear(64, 64)?, left: Cell::new(left) };
        Ok(Sequential::new(vec![Box::new(late) as Box<dyn Module>, Box::new(linear(64, 10)?)]))
    };
    runs(Precision::F32True, optimizer, network)
}

fn runs(
    precision: Precision,
    optimizer: fn(&TrainingPlan) -> OptimizerConfig,
    network: impl Fn() -> Result<Sequential>,
) -> Result<()> {
    needs_cuda();
    let run = |graph| {
        let _generator = seeded(7);
        let mut config = config(precision, graph);
        config.max_epochs = 12;
        config.numerics.scaler = GradScalerConfig { growth_interval: 5, ..Default::default() };
        config.numerics.scaler.init_scale = 2.0_f64.powi(26);
        train_on(&config, network()?, StepAccess::Late, optimizer, Vec::new())
    };
    let runs = [run(Graph::Off)?, run(Graph::On)?];
    assert_same(&runs);
    let end = &runs[1].record.end;
    assert!(end.replayed > 20, "{end:?}");
    assert!(precision != Precision::F16Mixed || end.skipped > 0, "{end:?}");
    Ok(())
}
