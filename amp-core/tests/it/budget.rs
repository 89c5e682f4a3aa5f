//! Tests that a memory budget decides which layers are recomputed in the backward pass, and that it
//! changes nothing else.

use std::collections::BTreeSet;

use amp_core::{
    Error, Module, Result, TrainerConfig,
    data::{Batch, DataModule, Placement},
    event::Event,
    memory::{MemoryMeter, cuda_allocated},
    nn::{
        BatchNorm, BatchNormConfig, Checkpoint, Context, Dropout, Gelu, Relu, Segment, Sequential,
        TransformerEncoderLayer, TransformerEncoderLayerConfig, Visit, Visitor, named_tensors,
        visit_child,
    },
    optim::{OptimizerConfig, Sgd, TrainingPlan},
    precision::{GradScalerConfig, Precision},
    record::RunRecord,
    tch::{Device, Kind, Tensor},
    trainer::MemoryPlan,
};
use rstest::rstest;

use crate::support::{
    bits::sha256,
    device, message,
    model::{Model, fit, linear, same},
    seeded,
};

pub(crate) const WIDTH: i64 = 32;
/// The number of examples in a batch: so many that one activation (1 MiB) is larger than the
/// workspace of libtorch's matrix products.
pub(crate) const BATCH: i64 = 8192;
const BLOCKS: usize = 8;
/// The number of bytes of one activation in f32.
const ACTIVATION: u64 = (BATCH * WIDTH * 4) as u64;

pub(crate) fn sgd(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 1e-2, momentum: 0.9, ..Default::default() })
}

/// Returns a stack in which linear layers and activations alternate.
fn stack<M: Module + 'static>(activation: fn() -> M) -> Result<Model> {
    let mut layers: Vec<Box<dyn Module>> = Vec::new();
    for _ in 0..BLOCKS {
        layers.push(Box::new(linear(WIDTH, WIDTH)?));
        layers.push(Box::new(activation()));
    }
    Ok(Model::regression(Sequential::new(layers), sgd))
}

/// Returns a model whose blocks are a linear layer and GELU. Each of the two layers keeps its input
/// for the backward pass, so a block keeps two activations.
pub(crate) fn mlp() -> Result<Model> {
    stack(|| Gelu)
}

/// Returns a model of linear layers with ReLU. ReLU keeps its output for the backward pass. The
/// next linear layer keeps the same tensor as its input, so each block keeps only one activation.
fn relu_mlp() -> Result<Model> {
    stack(|| Relu)
}

/// Returns a model whose blocks contain batch norm and dropout. One block uses activation
/// checkpointing.
pub(crate) fn mixed() -> Result<Model> {
    let block = || -> Result<Vec<Box<dyn Module>>> {
        Ok(vec![
            Box::new(linear(WIDTH, WIDTH)?),
            Box::new(BatchNorm::new(BatchNormConfig::new(WIDTH))?),
            Box::new(Relu),
            Box::new(Dropout::new(0.3)?),
        ])
    };
    let mut layers = block()?;
    layers.push(Box::new(Checkpoint::new(Sequential::new(block()?), true)));
    for _ in 0..4 {
        layers.extend(block()?);
    }
    Ok(Model::regression(Sequential::new(layers), sgd))
}

struct Run {
    record: Result<RunRecord>,
    plans: Vec<MemoryPlan>,
    /// The peak of allocated bytes, counted from just before the model was built. The data was
    /// loaded earlier, so it is not counted.
    peak: u64,
    /// All parameters and buffers after the run, as text.
    tensors: Vec<String>,
    /// A digest of the next random numbers, which shows the state of the generator.
    after: String,
}

impl Run {
    fn plan(&self) -> &MemoryPlan {
        if let Err(error) = &self.record {
            panic!("{error}");
        }
        assert_eq!(self.plans.len(), 1, "the plan is reported once");
        &self.plans[0]
    }

    fn record(&self) -> &RunRecord {
        self.record.as_ref().expect("a run that fits")
    }
}

pub(crate) fn config(precision: Precision, budget: Option<u64>) -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, device()) }.with(|config| {
        config.memory.budget = budget;
        config.numerics.scaler = GradScalerConfig { init_scale: 256.0, ..Default::default() };
        config.logging.log_every_n_steps = 1;
        config.logging.profile_every_n_steps = Some(1);
    })
}

/// Returns four batches of random numbers. On CUDA they stay in the host's memory, because a data
/// set on the device would count towards the memory budget.
pub(crate) fn examples() -> Result<DataModule> {
    let noise = || Tensor::randn([4 * BATCH, WIDTH], (Kind::Float, Device::Cpu));
    let mut data = same(Batch::new(noise(), noise())?, BATCH)?;
    if device().is_cuda() {
        data.loading.placement = Placement::Host;
        data.loading.prefetch = Some(0);
    }
    Ok(data)
}

/// Builds the model and trains it for one epoch. Returns the plans for recomputing activations, the
/// peak of the memory, and the trained tensors.
fn run(config: &TrainerConfig, build: impl Fn() -> Result<Model>) -> Result<Run> {
    let _generator = seeded(3);
    let data = examples()?;
    let meter = MemoryMeter::start(device())?;
    let mut model = build()?;
    let (events, record) = fit(config, &mut model, &data);
    let peak = meter.read()?.peak_allocated;
    let plans = events.into_iter().filter_map(|event| match event {
        Event::Checkpointed(plan) => Some(plan),
        _ => None,
    });
    let tensors = named_tensors(&model).iter().map(|(_, tensor, _)| sha256(tensor)).collect();
    let after = sha256(&Tensor::rand([8], (Kind::Float, device())));
    Ok(Run { record, plans: plans.collect(), peak, tensors, after })
}

/// Returns the bytes of the inputs and targets of the previous step. On CUDA, where the device runs
/// behind the host, they may still be in memory during a step.
fn earlier_batches(config: &TrainerConfig) -> u64 {
    match device() {
        Device::Cpu => 0,
        _ => 2 * ACTIVATION * config.optimization.accumulate_grad_batches.cast_unsigned(),
    }
}

/// Trains without a budget. Returns the peak of the memory, and the bytes that count towards a
/// budget in addition to what a step needs: memory that was allocated before the run, and the
/// batches of the previous step.
///
/// Measures the second of two runs: on CUDA, libraries allocate workspaces in the first run of a
/// process and never free them.
pub(crate) fn unlimited(
    config: &TrainerConfig,
    build: impl Fn() -> Result<Model>,
) -> Result<(u64, u64)> {
    let config = config.clone().with(|config| config.memory.budget = None);
    let _ = run(&config, &build)?;
    let run = run(&config, &build)?;
    assert_eq!(run.plans, [], "a run without a budget has no plan");
    let held = match device() {
        Device::Cpu => 0,
        device => cuda_allocated(device)?,
    };
    Ok((run.peak, held + earlier_batches(&config)))
}

/// The measured peak is within the budget, and on the CPU within 4 KiB of the predicted peak.
/// `kept_of_two` is the number of layers in a block of two that keep their own input for the
/// backward pass. A recomputed segment frees these inputs, except that of its first layer, from
/// which it is recomputed.
#[rstest]
#[case::each_keeps_its_input(mlp, 2, 70)]
#[case::each_keeps_its_input(mlp, 2, 80)]
#[case::each_keeps_its_input(mlp, 2, 95)]
#[case::half_keep_their_inputs(relu_mlp, 1, 85)]
#[case::half_keep_their_inputs(relu_mlp, 1, 95)]
fn the_peak_is_as_predicted_and_within_the_budget(
    #[case] build: fn() -> Result<Model>,
    #[case] kept_of_two: usize,
    #[case] percent: u64,
    #[values(1, 2)] accumulate_grad_batches: i64,
) -> Result<()> {
    let mut config = config(Precision::F32True, None)
        .with(|config| config.optimization.accumulate_grad_batches = accumulate_grad_batches);
    let (peak, beside) = unlimited(&config, build)?;
    let earlier = earlier_batches(&config);
    let budget = beside + peak * percent / 100;
    config.memory.budget = Some(budget);
    let run = run(&config, build)?;
    let plan = run.plan();
    let most = budget - (beside - earlier);
    assert!(run.peak <= most, "peak {}, allowed {most}: {plan:?}", run.peak);
    assert!(plan.predicted_peak <= budget);
    let freed = plan.segments.iter().map(|segment| {
        let layers = segment.layers.clone().expect("layers of the container");
        assert_eq!(segment.path, "model");
        // If only one of the two keeps its input, it is the linear layer, which has an even index.
        let kept = layers.filter(|place| place % 2 < kept_of_two).count();
        (kept as u64 - 1) * ACTIVATION
    });
    assert_eq!(plan.freed, freed.sum::<u64>(), "{plan}");
    assert!(
        plan.freed > 0 && run.peak < peak + earlier,
        "peak {}, {peak} without a budget",
        run.peak
    );
    if device() == Device::Cpu {
        let off = plan.predicted_peak - run.peak;
        assert!(off <= 4096, "{off} bytes differ from the prediction");
    }
    Ok(())
}

/// The trainer chooses layers inside a stage if recomputing the whole stage at once would exceed
/// the budget. The model has two stages of layers.
#[test]
fn layers_within_a_stage_are_chosen() -> Result<()> {
    let stages = || -> Result<Model> {
        let stage = || -> Result<Box<dyn Module>> {
            let mut layers: Vec<Box<dyn Module>> = Vec::new();
            for _ in 0..BLOCKS {
                layers.push(Box::new(linear(WIDTH, WIDTH)?));
                layers.push(Box::new(Gelu));
            }
            Ok(Box::new(Sequential::new(layers)))
        };
        Ok(Model::regression(Sequential::new(vec![stage()?, stage()?]), sgd))
    };
    let config = config(Precision::F32True, None);
    let free = run(&config, stages)?;
    let (peak, beside) = unlimited(&config, stages)?;
    let (budget, earlier) = (beside + peak / 2, earlier_batches(&config));
    let tight = run(&config.with(|config| config.memory.budget = Some(budget)), stages)?;
    let paths = tight.plan().segments.iter().map(|segment| segment.path.as_str());
    assert_eq!(paths.collect::<BTreeSet<_>>(), BTreeSet::from(["model.0", "model.1"]));
    let most = budget - (beside - earlier);
    assert!(tight.peak <= most, "peak {}, allowed {most}", tight.peak);
    assert_eq!((free.tensors, free.after), (tight.tensors, tight.after));
    Ok(())
}

/// A run with a memory budget has the same results as a run without one: weights, batch statistics,
/// losses, loss scale, phases of the profile, and the next random numbers.
#[rstest]
fn a_budget_changes_no_result(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed, Precision::F64True)]
    precision: Precision,
) -> Result<()> {
    let free = run(&config(precision, None), mixed)?;
    let (peak, beside) = unlimited(&config(precision, None), mixed)?;
    let tight = run(&config(precision, Some(beside + peak * 85 / 100)), mixed)?;
    assert!(!tight.plan().segments.is_empty(), "{}", tight.plan());
    for (at, (a, b)) in free.tensors.iter().zip(&tight.tensors).enumerate() {
        assert_eq!(a, b, "tensor {at}");
    }
    assert_eq!(free.after, tight.after, "the next random numbers");
    let (free, tight) = (free.record(), tight.record());
    assert_eq!(free.last("train_loss"), tight.last("train_loss"));
    assert_eq!((free.end.scale, free.end.global_step), (tight.end.scale, tight.end.global_step));
    let phases = |record: &RunRecord| -> Vec<Vec<_>> {
        let spans = record.profile.iter().map(|profile| profile.spans.iter());
        spans.map(|spans| spans.map(|span| span.phase).collect()).collect()
    };
    assert_eq!(phases(free), phases(tight));
    assert!(tight.notes.iter().any(|note| note.contains("are saved by checkpointing `model.")));
    Ok(())
}

/// A model of two checkpointed stacks that are not in a container.
struct Pair(Checkpoint<Sequential>, Checkpoint<Sequential>);

impl Visit for Pair {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "first", None, &self.0);
        visit_child(visitor, "second", None, &self.1);
    }
}

impl Module for Pair {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        cx.call("second", None, &self.1, &cx.call("first", None, &self.0, input)?)
    }
}

fn pair(enabled: bool) -> Result<Model> {
    let stack = || -> Result<Checkpoint<Sequential>> {
        let mut layers: Vec<Box<dyn Module>> = vec![Box::new(linear(WIDTH, WIDTH)?)];
        layers.extend((0..4).map(|_| Box::new(Gelu) as Box<dyn Module>));
        Ok(Checkpoint::new(Sequential::new(layers), enabled))
    };
    Ok(Model::regression(Pair(stack()?, stack()?), sgd))
}

/// A budget overrides the option `enabled` of `Checkpoint`. If everything fits, nothing is
/// recomputed, even with `enabled = true`. Otherwise the chosen layers are recomputed, even with
/// `enabled = false`.
#[test]
fn a_budget_overrides_the_options_of_checkpoints() -> Result<()> {
    let config = config(Precision::F32True, None);
    let (plain, beside) = unlimited(&config, || pair(false))?;
    let (declared, _) = unlimited(&config, || pair(true))?;
    assert!(declared < plain, "peak {declared} with checkpoints, {plain} without");
    let with = |budget| config.clone().with(|config| config.memory.budget = Some(budget));
    let wide = run(&with(beside + 4 * plain), || pair(true))?;
    assert_eq!((&wide.plan().segments, wide.plan().freed), (&vec![], 0));
    let tight = run(&with(beside + plain - ACTIVATION), || pair(false))?;
    let paths: Vec<String> = tight.plan().segments.iter().map(Segment::to_string).collect();
    assert_eq!(paths, ["model.first"], "{}", tight.plan());
    assert!(tight.peak < plain, "peak {}, {plain} without a budget", tight.peak);
    if device() == Device::Cpu {
        assert_eq!(wide.peak, plain);
    }
    Ok(())
}

#[test]
fn a_budget_that_is_too_small_names_the_smallest_possible() -> Result<()> {
    let budget = |bytes| config(Precision::F32True, Some(bytes));
    let outcome = run(&budget(1 << 20), mlp)?;
    assert!(matches!(outcome.record, Err(Error::Config(_))));
    assert_eq!(outcome.plans, []);
    let said = message(outcome.record);
    assert!(said.starts_with("the memory budget is 1048576 bytes, but a step takes "), "{said}");
    let fix = "even with the checkpointing that saves the most memory: raise the budget, lower \
               the batch size";
    assert!(said.ends_with(fix), "{said}");
    let least = said.split_once("takes ").and_then(|(_, rest)| rest.split(' ').next());
    let least: u64 = least.and_then(|bytes| bytes.parse().ok()).expect("bytes");
    if device() == Device::Cpu {
        let fits = run(&budget(least), mlp)?;
        assert_eq!(fits.plan().predicted_peak, least);
        assert!(run(&budget(least - 1), mlp)?.record.is_err());
    }
    Ok(())
}

/// A memory budget is refused if the model is a single layer and not a container of layers.
#[test]
fn a_model_without_checkpointable_layers_is_refused() -> Result<()> {
    let lone = || Ok(Model::regression(linear(WIDTH, WIDTH)?, sgd));
    let said = message(run(&config(Precision::F32True, Some(1 << 16)), lone)?.record);
    assert!(said.contains("and no module of the model can be checkpointed"), "{said}");
    assert!(said.ends_with("or put layers into a Sequential or a Checkpoint"), "{said}");
    Ok(())
}

/// The trainer chooses to recompute whole blocks of a list, including their dropout. This changes
/// no result.
#[test]
fn transformer_blocks_are_chosen_as_a_whole() -> Result<()> {
    /// Transformer blocks whose input `[N, d]` is reshaped to sequences of 16 rows.
    struct Fold(Vec<TransformerEncoderLayer>);
    impl Visit for Fold {
        fn visit(&self, visitor: &mut dyn Visitor) {
            visit_child(visitor, "blocks", None, &self.0);
        }
    }

    impl Module for Fold {
        fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
            let folded = input.f_reshape([-1, 16, WIDTH])?;
            Ok(cx.call("blocks", None, &self.0, &folded)?.f_reshape([-1, WIDTH])?)
        }
    }
    let build = || -> Result<Model> {
        let config = TransformerEncoderLayerConfig {
            dim_feedforward: 64,
            ..TransformerEncoderLayerConfig::new(WIDTH, 4)
        };
        let blocks = (0..6).map(|_| TransformerEncoderLayer::new(config));
        Ok(Model::regression(Fold(blocks.collect::<Result<_>>()?), sgd))
    };
    let config = config(Precision::F32True, None);
    let free = run(&config, build)?;
    let (peak, beside) = unlimited(&config, build)?;
    let budget = Some(beside + peak * 2 / 3);
    let tight = run(&config.with(|config| config.memory.budget = budget), build)?;
    assert!(tight.plan().segments.iter().all(|segment| segment.path == "model.blocks"));
    assert!(tight.peak <= peak * 2 / 3, "peak {}, {peak} without a budget", tight.peak);
    assert_eq!((free.tensors, free.after), (tight.tensors, tight.after));
    Ok(())
}

#[test]
fn a_budget_of_zero_is_refused() {
    let said = message(config(Precision::F32True, Some(0)).check());
    assert_eq!(said, "memory_budget is 0, but must be at least 1 byte");
}
