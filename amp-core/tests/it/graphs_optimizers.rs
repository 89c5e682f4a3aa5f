//! Tests of optimizers that cannot be part of a CUDA graph, or that can be part of it only after
//! some steps. Such an optimizer runs after the CUDA graph, with the same results
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

/// Returns SGD with dampening. The first step of each parameter is computed differently from later
/// steps. The CUDA graph therefore contains the optimizer only after every parameter has had its
/// first step.
fn damped(_: &TrainingPlan) -> OptimizerConfig {
    let sgd = Sgd { lr: 1e-2, momentum: 0.9, dampening: 0.5, ..Default::default() };
    OptimizerConfig::new(sgd)
}

/// An optimizer that runs after the CUDA graph gives the same weights as without a CUDA graph. In
/// steps that overflow, it must not change the weights.
#[rstest]
#[case(foreach_adamw)]
#[case(foreach_sgd)]
#[case(damped)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn an_optimizer_behind_the_graph_gives_the_same_step(
    #[case] optimizer: fn(&TrainingPlan) -> OptimizerConfig,
    #[values(Precision::F32True, Precision::F16Mixed)] precision: Precision,
) -> Result<()> {
    runs(precision, optimizer, || demo(0.2))
}

/// A layer that does not run in the first few batches of 32 examples, so that its parameters have
/// no gradient in these batches.
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

/// A parameter may have no gradient while the training step is captured as a CUDA graph. Its first
/// update then runs after the CUDA graph, or in the smaller last batch of an epoch, which runs
/// without a CUDA graph. Only after this update can the CUDA graph contain the optimizer with
/// dampening. A gradient that the CUDA graph does not compute counts as missing.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_parameter_may_get_its_first_gradient_after_the_capture(
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
        train_on(&config, network()?, StepAccess::Deferred, optimizer, Vec::new())
    };
    let runs = [run(Graph::Off)?, run(Graph::On)?];
    assert_same(&runs);
    let end = &runs[1].record.end;
    assert!(end.replayed > 20, "{end:?}");
    assert!(precision != Precision::F16Mixed || end.skipped > 0, "{end:?}");
    Ok(())
}
