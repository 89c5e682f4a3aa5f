//! Tests of training steps that run as CUDA graphs. They must give the same results as without CUDA
//! graphs. If a step cannot be a CUDA graph, a note names the reason. Tests that need a CUDA graph
//! run only on CUDA (`AMP_DEVICE=cuda`).

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Hook, Hyperparameters, LightningModule, Module, Result, Step, Trainer, TrainerConfig,
    callback::{Action, Callback, ModelCheckpoint},
    data::AnyBatch,
    event::Event,
    nn::{Context, Sequential, Visit, Visitor, named_tensors},
    optim::{
        AdamW, Interval, Lion, OneCycle, OptimizerConfig, Optimizers, RmsProp, Sgd, StepLr,
        TrainingPlan,
    },
    precision::{Clip, GradScalerConfig, Precision, StepOutcome},
    record::RunRecord,
    tch::Tensor,
    trainer::{Graph, NonFinite, StepAccess},
};
use rstest::rstest;

use crate::support::{
    bits::sha256,
    device,
    model::{Model, demo, digits, same},
    needs_cuda, seeded,
};

/// A model with the given step access, which decides whether the model's steps can be CUDA graphs.
struct Free {
    model: Model,
    access: StepAccess,
}

impl Visit for Free {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.model.visit(visitor);
    }
}

impl Module for Free {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.model.forward(input, cx)
    }
}

impl LightningModule for Free {
    fn name(&self) -> &'static str {
        self.model.name()
    }

    fn hyperparameters(&self) -> Hyperparameters {
        self.model.hyperparameters()
    }

    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        self.model.training_step(batch, step)
    }

    fn validation_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        self.model.validation_step(batch, step)
    }

    fn configure_optimizers(&self, plan: &TrainingPlan) -> Result<Optimizers> {
        self.model.configure_optimizers(plan)
    }

    fn step_access(&self) -> StepAccess {
        self.access
    }
}

/// The results of a training run: its weights, its events without times, and its record.
pub(crate) struct Outcome {
    pub(crate) weights: String,
    events: Vec<String>,
    pub(crate) record: RunRecord,
}

/// Trains the model `MixedPrecisionDemo`, with batch norm and dropout, on some digits.
pub(crate) fn train(
    config: &TrainerConfig,
    optimizer: fn(&TrainingPlan) -> OptimizerConfig,
    callbacks: Vec<Box<dyn Callback + '_>>,
) -> Result<Outcome> {
    let _generator = seeded(7);
    let network = demo(0.2)?;
    train_on(config, network, StepAccess::Deferred, optimizer, callbacks)
}

pub(crate) fn train_on(
    config: &TrainerConfig,
    network: Sequential,
    access: StepAccess,
    optimizer: fn(&TrainingPlan) -> OptimizerConfig,
    callbacks: Vec<Box<dyn Callback + '_>>,
) -> Result<Outcome> {
    let loss = amp_core::loss::cross_entropy;
    let model = Model { model: Box::new(network), loss, optimizer: Box::new(optimizer) };
    let mut model = Free { model, access };
    // An epoch has ten batches of 32 examples and a smaller last batch, whose step runs without a
    // CUDA graph.
    let data = same(digits(330)?, 32)?;
    let mut events = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        match event.clone() {
            Event::EpochEnd(mut end) => {
                (end.train_seconds, end.val_seconds) = (0.0, 0.0);
                events.push(format!("{end:?}"));
            }
            Event::FitEnd(mut end) => {
                (end.seconds, end.replayed) = (0.0, 0);
                events.push(format!("{end:?}"));
            }
            other => events.push(format!("{other:?}")),
        }
        Ok(())
    };
    let mut trainer = Trainer::new(config.clone()).subscribe(&mut listen);
    for callback in callbacks {
        trainer = trainer.callback(callback);
    }
    let record = trainer.fit(&mut model, &data)?;
    drop(trainer);
    let tensors: Vec<Tensor> =
        named_tensors(&model).into_iter().map(|(_, tensor, _)| tensor).collect();
    let weights = tensors.iter().map(sha256).collect::<Vec<_>>().join(" ");
    Ok(Outcome { weights, events, record })
}

/// Configures about 500 steps, eleven in each epoch.
pub(crate) fn config(precision: Precision, graph: Graph) -> TrainerConfig {
    TrainerConfig { max_epochs: 46, graph, ..TrainerConfig::new(precision, device()) }.with(
        |config| {
            config.optimization.gradient_clip = Some(Clip::Norm(1.0));
            config.logging.log_every_n_steps = 7;
            config.recovery.provenance = false;
        },
    )
}

pub(crate) fn one_cycle(plan: &TrainingPlan) -> OptimizerConfig {
    let total_steps = plan.estimated_stepping_batches;
    let schedule = OneCycle { max_lr: 3e-3, total_steps, ..Default::default() };
    OptimizerConfig::new(AdamW::default()).with_scheduler(schedule, Interval::Step)
}

pub(crate) fn momentum(_: &TrainingPlan) -> OptimizerConfig {
    let sgd = Sgd { lr: 1e-2, momentum: 0.9, nesterov: true, ..Default::default() };
    OptimizerConfig::new(sgd).with_scheduler(StepLr { step_size: 5, gamma: 0.9 }, Interval::Epoch)
}

fn lion(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Lion::default())
}

/// Returns an RMSprop with `centered = true`, whose schedule changes the momentum together with the
/// learning rate.
fn centered(plan: &TrainingPlan) -> OptimizerConfig {
    let total_steps = plan.estimated_stepping_batches;
    let schedule = OneCycle { max_lr: 1e-3, total_steps, ..Default::default() };
    let rmsprop = RmsProp { momentum: 0.9, centered: true, ..Default::default() };
    OptimizerConfig::new(rmsprop).with_scheduler(schedule, Interval::Step)
}

/// Runs the same training twice, with and without CUDA graphs.
pub(crate) fn both(
    change: impl Fn(&mut TrainerConfig),
    precision: Precision,
    optimizer: fn(&TrainingPlan) -> OptimizerConfig,
) -> Result<[Outcome; 2]> {
    let run = |graph| {
        let mut config = config(precision, graph);
        change(&mut config);
        train(&config, optimizer, Vec::new())
    };
    Ok([run(Graph::Off)?, run(Graph::On)?])
}

pub(crate) fn assert_same([eager, graphed]: &[Outcome; 2]) {
    assert_eq!(eager.record.end.replayed, 0);
    assert_eq!(eager.events.len(), graphed.events.len());
    for (eager, graphed) in eager.events.iter().zip(&graphed.events) {
        assert_eq!(eager, graphed);
    }
    assert_eq!(eager.weights, graphed.weights);
}

#[rstest]
#[case(one_cycle)]
#[case(momentum)]
#[case(lion)]
#[case(centered)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_graph_gives_the_numbers_of_eager_steps(
    #[values(
        Precision::F32True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F64True,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    #[case] optimizer: fn(&TrainingPlan) -> OptimizerConfig,
) -> Result<()> {
    needs_cuda();
    let runs = both(|_| {}, precision, optimizer)?;
    assert_same(&runs);
    // All steps ran as CUDA graphs, except the first few steps and the last step of each epoch.
    assert!(runs[1].record.end.replayed > 400, "{}", runs[1].record.end.replayed);
    Ok(())
}

#[rstest]
#[case(one_cycle)]
#[case(momentum)]
#[case(lion)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn overflowing_steps_are_handled_as_without_a_graph(
    #[case] optimizer: fn(&TrainingPlan) -> OptimizerConfig,
    #[values(1, 3)] window: i64,
    #[values(false, true)] advances: bool,
) -> Result<()> {
    needs_cuda();
    let change = |config: &mut TrainerConfig| {
        // The gradients overflow in the first steps, and again each time the loss scale has grown.
        config.numerics.scaler = GradScalerConfig {
            init_scale: 2.0_f64.powi(26),
            growth_interval: 3,
            ..Default::default()
        };
        config.optimization.accumulate_grad_batches = window;
        config.recovery.skipped_step_advances = advances;
        config.recovery.provenance = true;
    };
    let runs = both(change, Precision::F16Mixed, optimizer)?;
    assert_same(&runs);
    assert!(runs[1].record.end.skipped > 20, "{}", runs[1].record.end.skipped);
    assert!(runs[1].record.end.replayed > 60, "{}", runs[1].record.end.replayed);
    Ok(())
}

#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn steps_are_repeated_at_a_lower_scale_as_without_a_graph() -> Result<()> {
    needs_cuda();
    let change = |config: &mut TrainerConfig| {
        config.numerics.scaler = GradScalerConfig { growth_interval: 5, ..Default::default() };
        config.numerics.scaler.init_scale = 2.0_f64.powi(26);
        config.recovery.on_non_finite = NonFinite::LowerScale;
    };
    let runs = both(change, Precision::F16Mixed, one_cycle)?;
    assert_same(&runs);
    assert!(runs[1].record.recoveries.len() > 10);
    Ok(())
}

#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_run_ends_after_the_same_steps_as_without_a_graph() -> Result<()> {
    needs_cuda();
    let runs = both(|config| config.max_steps = Some(107), Precision::Bf16Mixed, one_cycle)?;
    assert_same(&runs);
    assert_eq!(runs[1].record.end.global_step, 107);
    Ok(())
}

/// A callback that records the outcome of each step. If its step access allows reading the weights,
/// it also records the model's first weight.
struct Watch {
    access: StepAccess,
    seen: Rc<RefCell<Vec<String>>>,
}

impl Callback for Watch {
    fn name(&self) -> String {
        "Watch".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        self.access
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        let optimizer = &hook.optimizers()[0].optimizer;
        let state = match self.access {
            StepAccess::Deferred => String::new(),
            _ => format!("{} {:?}", sha256(&optimizer.parameters()[0].tensor), optimizer.rates()),
        };
        let seen = format!("{} {:?} {outcome:?} {state}", hook.global_step, hook.scale);
        self.seen.borrow_mut().push(seen);
        // The callback stops the run after the 60th step.
        Ok(match hook.global_step {
            60 => vec![Action::Stop("enough".to_owned())],
            _ => Vec::new(),
        })
    }
}

#[rstest]
#[case::late(StepAccess::Deferred, 60)]
#[case::each(StepAccess::PerStep, 60)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_callback_gets_the_access_it_asks_for(
    #[case] access: StepAccess,
    #[case] stopped: u64,
) -> Result<()> {
    needs_cuda();
    let run = |graph| {
        let mut config = config(Precision::F16Mixed, graph);
        config.numerics.scaler = GradScalerConfig { growth_interval: 4, ..Default::default() };
        config.numerics.scaler.init_scale = 2.0_f64.powi(26);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let watch = Box::new(Watch { access, seen: seen.clone() });
        let outcome = train(&config, one_cycle, vec![watch])?;
        Ok::<_, amp_core::Error>((seen.take(), outcome))
    };
    let (eager, _) = run(Graph::Off)?;
    let (graphed, outcome) = run(Graph::On)?;
    assert_eq!(eager[..], graphed[..eager.len()]);
    assert!(outcome.record.end.replayed > 20);
    // A deferred callback may be called a few steps late, so the run stops later than the callback
    // asks.
    let steps = outcome.record.end.global_step;
    match access {
        StepAccess::PerStep => assert_eq!(steps, stopped),
        _ => assert!((stopped..stopped + 4).contains(&steps), "{steps}"),
    }
    Ok(())
}

#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_checkpoint_between_replays_resumes_bit_for_bit() -> Result<()> {
    needs_cuda();
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = config(Precision::F16Mixed, Graph::On);
    config.max_epochs = 8;
    let save = |folder| -> Result<Box<dyn Callback>> {
        let checkpoint = ModelCheckpoint::new(folder, "val_loss", amp_core::callback::Mode::Min)?;
        Ok(Box::new(checkpoint.every_n_train_steps(37)))
    };
    let whole = train(&config, one_cycle, vec![save(folder.path())?])?;
    assert!(whole.record.end.replayed > 60);
    config.graph = Graph::Off;
    let again = tempfile::tempdir().expect("a folder");
    let eager = train(&config, one_cycle, vec![save(again.path())?])?;
    assert_eq!(whole.weights, eager.weights);
    let saved = |folder: &std::path::Path| -> Result<Vec<String>> {
        let file = std::fs::read(folder.join("last.safetensors")).expect("a checkpoint");
        let tensors = safetensors::SafeTensors::deserialize(&file).expect("of tensors");
        let mut tensors: Vec<String> =
            tensors.iter().map(|(name, view)| format!("{name} {:?}", view.data())).collect();
        tensors.sort();
        Ok(tensors)
    };
    assert_eq!(saved(folder.path())?, saved(again.path())?);
    Ok(())
}
