//! Tests of metrics in training runs. The value of an epoch equals the metric of the whole set,
//! however the set is divided into batches, accumulated batches and micro-batches. This also holds
//! in a run that is resumed at any step, and in steps that run as CUDA graphs.

use std::path::{Path, PathBuf};

use amp_core::{
    Trainer, TrainerConfig,
    callback::{Action, Callback},
    metric::{
        Auroc, AveragePrecision, BinaryFBeta, BinaryRecall, ConfusionMatrix, FBeta, Metric,
        MetricState, Recall, Reduction, Rmse,
    },
    prelude::*,
    record::RunRecord,
    trainer::Graph,
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{device, layers::Room, message, needs_cuda, seeded};

/// A metric whose value is the largest score of all examples.
#[derive(Debug)]
struct Largest;

impl Metric for Largest {
    fn update(&self, output: &Tensor, _: &Tensor) -> Result<MetricState> {
        Ok(MetricState::concat(&output.f_reshape([-1])?))
    }

    fn reduction(&self) -> Reduction {
        Reduction::of(|tensors| Ok(tensors[0].f_max()?))
    }
}

/// A metric whose value is the mean score. Scores are rounded to multiples of 1/1000. The state of
/// the metric counts how often each of the 40,000 multiples from −20 to 19.999 occurs.
#[derive(Debug)]
struct Centre;

impl Metric for Centre {
    fn update(&self, output: &Tensor, _: &Tensor) -> Result<MetricState> {
        let steps = (output.f_reshape([-1])? * 1000 + 20_000).f_clamp(0, 39_999)?.f_round()?;
        let places = steps.f_to_kind(Kind::Int64)?;
        let counts = Tensor::f_zeros([40_000], (Kind::Double, output.device()))?;
        MetricState::sum(&counts.f_index_add(
            0,
            &places,
            &steps.f_ones_like()?.f_to_kind(Kind::Double)?,
        )?)
    }

    fn reduction(&self) -> Reduction {
        Reduction::of(|tensors| {
            let steps = Tensor::f_arange(40_000, (Kind::Double, tensors[0].device()))?;
            Ok(((&tensors[0] * steps).f_sum(None)? / tensors[0].f_sum(None)? - 20_000) / 1000)
        })
    }
}

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(with = Centre, name = centre)]
#[metric(accuracy)]
#[optimizer(sgd, lr = 0.1)]
struct OfManyCounts {
    #[layer(linear(4, 3, bias = false))]
    head: Linear,
}

#[derive(LightningModule)]
#[loss(binary_cross_entropy_with_logits)]
#[metric(auroc)]
#[metric(average_precision, thresholds = 20, name = precision)]
#[metric(binary_f_beta, beta = 2.0, name = f2)]
#[metric(binary_recall, threshold = 0.6, name = recall)]
#[metric(rmse)]
#[metric(with = Largest, name = largest)]
#[optimizer(sgd, lr = 0.0)]
struct OfLabels {
    #[hparam(default = 100)]
    room: i64,
    #[layer(Room(room))]
    room_of: Room,
    #[layer(linear(4, 1, bias = false))]
    head: Linear,
}

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(recall, average = none, num_classes = 3)]
#[metric(f_beta, beta = 0.5, average = macro, ignore_index = 1)]
#[metric(confusion_matrix, name = confusion)]
#[metric(auroc, average = weighted, thresholds = 10)]
#[log(train_f_beta, on_step, on_epoch)]
#[optimizer(sgd, lr = 0.1)]
struct OfClasses {
    #[hparam(default = 100)]
    room: i64,
    #[layer(Room(room))]
    room_of: Room,
    #[layer(linear(4, 3, bias = false))]
    head: Linear,
}

fn rows() -> Result<Tensor> {
    let _section = seeded(11);
    Ok(Tensor::f_randn([12, 4], (Kind::Float, Device::Cpu))?)
}

fn labels() -> Result<Batch> {
    let target =
        Tensor::from_slice(&[0.0_f32, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]);
    Batch::new(rows()?, target.f_view([12, 1])?)
}

fn classes() -> Result<Batch> {
    Batch::new(rows()?, Tensor::from_slice(&[2_i64, 2, 0, 1, 2, -100, 1, 0, 2, 0, -100, 1]))
}

fn config(window: i64) -> TrainerConfig {
    TrainerConfig::new(Precision::F64True, device()).with(|config| {
        config.max_epochs = 1;
        config.optimization.accumulate_grad_batches = window;
    })
}

fn near(seen: f64, expected: f64, what: &str) {
    assert!((seen - expected).abs() < 1e-6, "{what}: {seen}, not {expected}");
}

fn value(record: &RunRecord, name: &str) -> f64 {
    record.epochs[0].value(name).unwrap_or_else(|| panic!("{name} is logged"))
}

#[rstest]
fn an_epochs_value_is_that_of_the_whole_set(
    #[values((12, 1, 100), (5, 1, 100), (2, 3, 100), (12, 1, 5))] (batch, window, room): (
        i64,
        i64,
        i64,
    ),
) -> Result<()> {
    let mut model = {
        let _section = seeded(3);
        OfLabels::builder().room(room).build()?
    };
    let record = Trainer::new(config(window))
        .fit(&mut model, &DataModule::new("rows", labels()?, labels()?, batch).in_order())?;
    let Batch { input, target } = labels()?;
    let output = input.to_kind(Kind::Double).matmul(&model.head.weight().to(Device::Cpu).tr());
    let precision = AveragePrecision { thresholds: Some(20), ..Default::default() };
    let recall = BinaryRecall { threshold: 0.6, ..Default::default() };
    let expected: [(&str, &dyn Metric); 6] = [
        ("auroc", &Auroc::default()),
        ("precision", &precision),
        ("f2", &BinaryFBeta { beta: 2.0, ..Default::default() }),
        ("recall", &recall),
        ("rmse", &Rmse),
        ("largest", &Largest),
    ];
    for (name, metric) in expected {
        let expected = metric.measure(&output, &target)?.double_value(&[]);
        for stage in ["train", "val"] {
            near(value(&record, &format!("{stage}_{name}")), expected, name);
        }
    }
    Ok(())
}

/// If a metric has several values, each is logged under the name of the metric followed by the
/// index of the value.
#[test]
fn several_values_are_logged_by_their_index() -> Result<()> {
    let mut model = OfClasses::builder().build()?;
    let data = DataModule::new("rows", classes()?, classes()?, 5).in_order();
    let record = Trainer::new(config(1)).validate(&mut model, &data)?;
    let value = |name: &str| {
        let found = record.iter().find(|logged| logged.name == name);
        found.unwrap_or_else(|| panic!("{name} in {record:?}")).value
    };
    let Batch { input, target } = classes()?;
    let output = input.to_kind(Kind::Double).matmul(&model.head.weight().to(Device::Cpu).tr());
    let recall = Recall { average: amp_core::metric::Average::None, ..Default::default() };
    let confusion = ConfusionMatrix::default().measure(&output, &target)?;
    let recall = recall.measure(&output, &target)?;
    for class in 0..3 {
        near(value(&format!("val_recall_{class}")), recall.double_value(&[class]), "recall");
        for other in 0..3 {
            let expected = confusion.double_value(&[class, other]);
            near(value(&format!("val_confusion_{class}_{other}")), expected, "confusion");
        }
    }
    let f = FBeta { beta: 0.5, ignore_index: 1, ..Default::default() }.measure(&output, &target)?;
    near(value("val_f_beta"), f.double_value(&[]), "f_beta");
    Ok(())
}

/// A callback that saves the run after every step.
struct EveryStep(PathBuf, usize);

fn file(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!("step-{step}.safetensors"))
}

impl Callback for EveryStep {
    fn name(&self) -> String {
        "EveryStep".into()
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&amp_core::precision::StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        self.1 += 1;
        Ok(vec![Action::Save { path: file(&self.0, self.1), weights_only: false }])
    }
}

type Build = fn() -> Result<Box<dyn LightningModule>>;

fn of_labels() -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(OfLabels::builder().build()?))
}

fn of_classes() -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(OfClasses::builder().build()?))
}

fn of_many_counts() -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(OfManyCounts::builder().build()?))
}

/// A resumed run logs the same values of the epoch as a run without interruption, because a
/// checkpoint contains the state of the metrics. This includes a checkpoint that is saved after the
/// last step of an epoch, when no batch follows.
#[rstest]
#[case::rows(of_labels as Build, labels as fn() -> Result<Batch>)]
#[case::counts(of_classes as Build, classes as fn() -> Result<Batch>)]
#[case::many_counts(of_many_counts as Build, classes as fn() -> Result<Batch>)]
fn a_resumed_run_has_the_epochs_values(
    #[case] build: Build,
    #[case] set: fn() -> Result<Batch>,
) -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let data = DataModule::new("rows", set()?, set()?, 5).in_order();
    let mut straight = {
        let _section = seeded(3);
        build()?
    };
    let mut callback = EveryStep(folder.path().to_owned(), 0);
    let expected = Trainer::new(config(1)).callback(&mut callback).fit(straight.as_mut(), &data)?;
    for step in 1..=3 {
        let mut resumed = build()?;
        let mut trainer = Trainer::new(config(1)).resume_from(file(folder.path(), step));
        let seen = trainer.fit(resumed.as_mut(), &data)?;
        assert_eq!(seen.epochs[0].train, expected.epochs[0].train, "after step {step}");
        assert_eq!(seen.epochs[0].val, expected.epochs[0].val, "after step {step}");
    }
    Ok(())
}

/// A model that logs a metric in its own training step. A checkpoint contains the state of such a
/// metric, but not the function that computes its value. If a run is resumed from a checkpoint
/// after the last batch of an epoch, no step provides this function, and the run ends with an
/// error.
#[derive(LightningModule)]
#[training_step(Self::step)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.0)]
struct ByHand {
    #[layer(linear(4, 3, bias = false))]
    head: Linear,
}

impl ByHand {
    fn step(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
        let output = self.forward(&batch.input, step.context())?;
        step.metric("own", &Recall::default(), &output, &batch.target, LogOptions::ON_EPOCH)?;
        loss::cross_entropy(&output, &batch.target)
    }
}

#[test]
fn a_metric_that_nothing_computes_is_an_error() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let data = DataModule::new("rows", classes()?, classes()?, 6).in_order();
    let mut callback = EveryStep(folder.path().to_owned(), 0);
    Trainer::new(config(1)).callback(&mut callback).fit(&mut ByHand::builder().build()?, &data)?;
    let resume = |step| {
        let mut trainer = Trainer::new(config(1)).resume_from(file(folder.path(), step));
        trainer.fit(&mut ByHand::builder().build()?, &data)
    };
    resume(1)?;
    let said = message(resume(2));
    assert!(said.contains("log `own`: the run was saved at the end of an epoch"), "{said}");
    Ok(())
}

/// With CUDA graphs, the metrics have the same values as without, even if a step overflows. The
/// CUDA graph itself sums the counts of metrics. Metrics that keep the scores of all examples copy
/// them after each replay.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_graph_keeps_the_same_state_as_eager_steps(
    #[values(
        (of_classes as Build, classes as fn() -> Result<Batch>),
        (of_labels as Build, labels as fn() -> Result<Batch>),
        (of_many_counts as Build, classes as fn() -> Result<Batch>)
    )]
    (build, set): (Build, fn() -> Result<Batch>),
    #[values((Precision::F32True, 1), (Precision::F32True, 3), (Precision::F16Mixed, 1))]
    (precision, window): (Precision, i64),
) -> Result<()> {
    needs_cuda();
    let run = |graph: Graph| -> Result<RunRecord> {
        let _section = seeded(3);
        // The set is repeated eight times so that the run has enough steps. The first steps of a
        // run do not run as CUDA graphs.
        let eight = |set: Batch| Batch::new(set.input.repeat([8, 1]), repeated(&set.target));
        let data = DataModule::new("rows", eight(set()?)?, set()?, 4).in_order();
        let config = TrainerConfig { graph, precision, ..config(window) }.with(|config| {
            config.numerics.scaler.growth_interval = 2;
            config.checks.shared_examples = true;
        });
        Trainer::new(config).fit(build()?.as_mut(), &data)
    };
    let (eager, graphed) = (run(Graph::Off)?, run(Graph::On)?);
    assert!(graphed.end.replayed > 0 && eager.end.replayed == 0);
    for (seen, expected) in graphed.epochs[0].train.iter().zip(&eager.epochs[0].train) {
        assert_eq!(seen.name, expected.name);
        near(seen.value, expected.value, &seen.name);
    }
    Ok(())
}

fn repeated(target: &Tensor) -> Tensor {
    let mut times = vec![1; target.dim()];
    times[0] = 8;
    target.repeat(times)
}
