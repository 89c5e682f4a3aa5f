//! Tests of embeddings with `max_norm`, in training, in evaluation and in skipped steps. If a
//! vector that is looked up is longer than `max_norm`, the embedding rescales it to this length.

use amp_core::{
    LightningModule, Module, Result, Step, Trainer, TrainerConfig,
    data::{Batch, DataModule},
    event::Event,
    log::LogOptions,
    loss,
    nn::{
        BagMode, Context, Embedding, EmbeddingBag, EmbeddingBagConfig, EmbeddingConfig, Forward,
        Linear, named_tensors, place,
    },
    optim::WeightUpdate,
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
    trainer::{Check, Graph},
};
use rstest::rstest;

use crate::support::{device, message, needs_cuda, seeded};

const MOST: f64 = 0.5;

fn limited(config: EmbeddingConfig) -> EmbeddingConfig {
    EmbeddingConfig { max_norm: Some(MOST), ..config }
}

fn ids(values: &[i64]) -> Tensor {
    Tensor::from_slice(values).to_device(device())
}

fn lengths(rows: &Tensor) -> Vec<f64> {
    let norms = rows.to_kind(Kind::Double).square().sum_dim_intlist(-1, false, Kind::Double).sqrt();
    Vec::try_from(norms.reshape([-1])).expect("numbers")
}

/// In evaluation, the output contains the rescaled vectors, but the table does not change. Output
/// and gradients equal those of training.
#[rstest]
fn evaluation_leaves_the_table_as_it_is(
    #[values(false, true)] scale_grad_by_freq: bool,
    #[values(None, Some(1))] padding_idx: Option<i64>,
) -> Result<()> {
    let _generator = seeded(3);
    let policy = Policy::new(Precision::F64True, device());
    let config =
        EmbeddingConfig { scale_grad_by_freq, padding_idx, ..limited(EmbeddingConfig::new(6, 4)) };
    let table = Embedding::new(config)?;
    place(&table, policy, &Default::default())?;
    let before = table.weight().copy();
    let ids = ids(&[0, 1, 5, 0]);
    let run = |training| -> Result<(Tensor, Tensor)> {
        let output = table.forward(&ids, &Context::new(policy, training))?;
        output.f_square()?.f_sum(Kind::Double)?.f_backward()?;
        let gradient = table.weight().grad().copy();
        let _ = table.weight().grad().zero_();
        Ok((output.detach(), gradient))
    };
    let (evaluated, gradient) = run(false)?;
    assert!(table.weight().equal(&before));
    assert!(lengths(&before).iter().any(|length| *length > MOST));
    assert!(lengths(&evaluated).iter().all(|length| *length <= MOST));
    let (trained, of_training) = run(true)?;
    assert!(trained.equal(&evaluated) && of_training.equal(&gradient));
    let changed = lengths(table.weight());
    assert!([0, 5].iter().all(|at| changed[*at] <= MOST));
    assert!(
        table.weight().get(2).equal(&before.get(2)),
        "a vector that was not looked up is unchanged"
    );
    Ok(())
}

/// In evaluation, an embedding bag does not change its table, in any mode, with and without
/// padding. The output equals the output of training.
#[rstest]
#[case(BagMode::Mean, None)]
#[case(BagMode::Mean, Some(1))]
#[case(BagMode::Sum, Some(0))]
#[case(BagMode::Max, Some(5))]
fn bags_in_evaluation_leave_the_table_as_it_is(
    #[case] mode: BagMode,
    #[case] padding_idx: Option<i64>,
) -> Result<()> {
    let _generator = seeded(3);
    let policy = Policy::new(Precision::F64True, device());
    let config = EmbeddingBagConfig {
        mode,
        padding_idx,
        max_norm: Some(MOST),
        ..EmbeddingBagConfig::new(6, 4)
    };
    let table = EmbeddingBag::new(config)?;
    place(&table, policy, &Default::default())?;
    let before = table.weight().copy();
    let (ids, offsets) = (ids(&[0, 1, 5, 0, 5, 1]), ids(&[0, 3, 4]));
    let run = |training| {
        table.forward_with((&ids, Some(&offsets), None), &Context::new(policy, training))
    };
    let evaluated = run(false)?;
    assert!(table.weight().equal(&before));
    let trained = run(true)?;
    assert!(!table.weight().equal(&before));
    assert!(
        trained.allclose(&evaluated, 1e-12, 1e-12, false),
        "training {trained}, evaluation {evaluated}"
    );
    Ok(())
}

#[rstest]
#[case(0.0, 2.0, "max_norm is 0, but must be above 0")]
#[case(f64::NAN, 2.0, "max_norm is NaN")]
#[case(1.0, -1.0, "norm_type is -1, but must be above 0")]
fn limits_are_above_0(#[case] most: f64, #[case] norm_type: f64, #[case] says: &str) {
    let config = EmbeddingConfig { max_norm: Some(most), norm_type, ..EmbeddingConfig::new(6, 4) };
    let text = message(Embedding::new(config));
    assert!(text.contains(says), "{text}");
    let config =
        EmbeddingBagConfig { max_norm: Some(most), norm_type, ..EmbeddingBagConfig::new(6, 4) };
    let text = message(EmbeddingBag::new(config));
    assert!(text.starts_with("embedding_bag: ") && text.contains(says), "{text}");
    let maxima = EmbeddingBagConfig {
        mode: BagMode::Max,
        scale_grad_by_freq: true,
        ..EmbeddingBagConfig::new(6, 4)
    };
    assert!(message(EmbeddingBag::new(maxima)).contains("needs the mode Sum or Mean"));
}

/// A model whose embedding has a `max_norm`. If the embedding's vectors are long, the matrix
/// products of the model's head overflow in f16.
#[derive(LightningModule)]
#[training_step(trained, captured)]
#[validation_step(validated)]
#[optimizer(adam, lr = 0.1)]
struct Words {
    #[layer(embedding(8, 4, max_norm = 0.5))]
    words: Embedding,
    #[layer(linear(4, 2))]
    head: Linear,
}

fn loss_of(net: &Words, batch: &Batch, step: &Step<'_>) -> Result<Tensor> {
    let output = net.forward(&batch.input, step.context())?;
    loss::mse_loss(&output, &batch.target)
}

fn trained(net: &mut Words, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
    let loss = loss_of(net, batch, step)?;
    step.log("train_loss", &loss, batch.len(), LogOptions::ON_BOTH)?;
    Ok(loss)
}

fn validated(net: &mut Words, batch: &Batch, step: &mut Step<'_>) -> Result<()> {
    let loss = loss_of(net, batch, step)?;
    step.log("val_loss", &loss, batch.len(), LogOptions::ON_EPOCH)
}

fn data() -> Result<DataModule> {
    let rows = |count: i64| -> Result<Batch> {
        let ids = Tensor::f_arange(count, (Kind::Int64, Device::Cpu))?.f_remainder(8)?;
        let target = ids.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_expand([-1, 2], false)?;
        Batch::new(ids, target.f_contiguous()?)
    };
    Ok(DataModule::new("words", rows(24)?, rows(8)?, 2))
}

/// Returns the events of a training run, the weights after it, and the number of steps that ran as
/// a CUDA graph. If `overflows` is true, the first steps overflow and are skipped.
fn run(config: TrainerConfig, overflows: bool) -> Result<(Vec<Event>, Vec<Tensor>, u64)> {
    let _generator = seeded(3);
    let mut model = Words::builder().build()?;
    let mut events = Vec::new();
    let mut keep = |event: &Event| -> Result<()> {
        events.push(event.clone());
        Ok(())
    };
    let config = config.with(|config| {
        config.max_epochs = 2;
        config.checks.level = Check::Full;
        config.checks.shared_examples = true;
        config.numerics.scaler.init_scale = if overflows { 2f64.powi(24) } else { 1024.0 };
        config.numerics.scaler.growth_interval = 3;
    });
    let record = Trainer::new(config).subscribe(&mut keep).fit(&mut model, &data()?)?;
    assert_eq!(record.end.skipped > 0, overflows);
    let weights = named_tensors(&model).into_iter().map(|(_, tensor, _)| tensor.copy()).collect();
    Ok((events, weights, record.end.replayed))
}

/// Skipped steps and validations do not change the table, although their forward passes look up
/// vectors. The trainer's checks of invariants confirm this.
#[rstest]
#[case(Precision::F32True, false)]
#[case(Precision::F16Mixed, true)]
fn skipped_steps_and_validations_change_no_vector(
    #[case] precision: Precision,
    #[case] overflows: bool,
) -> Result<()> {
    run(
        TrainerConfig::new(precision, device()).with(|config| config.graph = Graph::Off),
        overflows,
    )?;
    Ok(())
}

/// Embeddings with a maximal norm refuse master weights: the forward pass rescales vectors in the
/// table, and copying the master weights back would undo this change.
#[test]
fn master_weights_of_limited_vectors_are_refused() {
    let with = |update| {
        let config = TrainerConfig::new(Precision::Bf16True, device());
        run(config.with(|config| config.numerics.weight_update = update), false)
    };
    let text = message(with(WeightUpdate::MasterWeights));
    assert!(text.contains("`words.weight` is a 16-bit weight with max_norm"), "{text}");
    with(WeightUpdate::StochasticRounding).expect("no copy of the weights is kept");
}

/// A step that runs as a CUDA graph rescales the same vectors as a step without a CUDA graph, even
/// if some steps are skipped.
#[rstest]
#[case(Precision::F32True, false)]
#[case(Precision::F16Mixed, true)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_graph_rescales_the_same_vectors(
    #[case] precision: Precision,
    #[case] overflows: bool,
) -> Result<()> {
    needs_cuda();
    let with = |graph| {
        let config = TrainerConfig::new(precision, device());
        run(config.with(|config| config.graph = graph), overflows)
    };
    let (_, weights, replayed) = with(Graph::On)?;
    let (_, same, none) = with(Graph::Off)?;
    assert!(weights.iter().zip(&same).all(|(weight, same)| weight.equal(same)));
    assert!(replayed >= 5 && none == 0, "{replayed}");
    Ok(())
}
