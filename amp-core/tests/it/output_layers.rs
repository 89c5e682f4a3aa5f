//! Tests of models whose linear output layer is followed by a cross entropy. The loss then runs the
//! output layer itself, in chunks of rows. The derive macro allows this only if it can tell that
//! nothing else reads the output of the layer.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use amp_core::{
    Trainer, TrainerConfig,
    loss::ChunksOf,
    nn::{self, Call, DtypeProbe, ModuleOutput, Probe, named_tensors},
    precision::Policy,
    prelude::*,
    record::RunRecord,
    trainer::Graph,
};
use rstest::rstest;

use crate::support::{
    bits::{relative, sha256, wide},
    device, message, needs_cuda, seeded,
};

const CLASSES: i64 = 9;
const WIDTH: i64 = 6;

/// A function of the user that has the name and the arguments of `nn::linear`, but doubles the
/// result.
mod own {
    pub(super) mod nn {
        use amp_core::prelude::*;

        pub(crate) fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
            Ok(amp_core::nn::linear(x, w, b)?.f_mul_scalar(2.0)?)
        }
    }
}

/// Defines a language model with the given metrics, `forward` function and output layer.
macro_rules! model {
    ($name:ident, [$($metric:meta),*], [$($forward:meta)?], |$head:ident| $($layer:tt)*) => {
        #[derive(LightningModule)]
        $(#[$forward])?
        #[loss(cross_entropy, label_smoothing = 0.1, ignore_index = 3)]
        $(#[$metric])*
        #[log(train_loss, on_step, on_epoch)]
        #[optimizer(adamw, lr = 0.05)]
        struct $name {
            #[layer(embedding(CLASSES, WIDTH, std = 0.5))]
            token: Embedding,
            #[layer(layer_norm(WIDTH))]
            norm: LayerNorm,
            $($layer)*
            $head: Linear,
        }
    };
}

model!(InOrder, [], [], |head| #[layer(linear(WIDTH, CLASSES))]);
model!(Called, [], [forward(|ids| head(&norm(&token(ids)?)?))], |head| #[layer(linear(WIDTH, CLASSES))]);
model!(Unbiased, [], [forward(|ids| {
    let x = norm(&token(ids)?)?;
    head(&x)
})], |head| #[layer(linear(WIDTH, CLASSES, bias = false))]);
model!(Tied, [], [forward(|ids| {
    nn::linear(&inner(&norm(&token(ids)?)?)?, self.token.weight(), None)
})], |inner| #[layer(linear(WIDTH, WIDTH))]);
// The loss must not run the output layer of three of the following models. The output of `Capped`
// is tanh of the layer's result, `Foreign` calls its own function `nn::linear`, and the layer of
// `Narrow` is in a precision region.
model!(Capped, [], [forward(|ids| {
    let y = head(&norm(&token(ids)?)?)?;
    Ok(y.f_tanh()?)
})], |head| #[layer(linear(WIDTH, CLASSES))]);
model!(Measured, [metric(accuracy)], [], |head| #[layer(linear(WIDTH, CLASSES))]);
// AUROC keeps all rows of logits until the epoch ends, so the loss cannot run the output layer in
// chunks.
model!(MeasuredOtherwise, [metric(auroc)], [], |head| #[layer(linear(WIDTH, CLASSES))]);
model!(MeasuredByAll, [
    metric(accuracy),
    metric(top_k, k = 2),
    metric(f1, num_classes = 9),
    metric(precision, average = macro),
    metric(recall),
    metric(specificity),
    metric(jaccard),
    metric(f_beta, beta = 2.0),
    metric(confusion_matrix),
    metric(perplexity, ignore_index = 3)
], [], |head| #[layer(linear(WIDTH, CLASSES))]);
model!(Foreign, [], [forward(|ids| {
    own::nn::linear(&inner(&norm(&token(ids)?)?)?, self.token.weight(), None)
})], |inner| #[layer(linear(WIDTH, WIDTH))]);
model!(Narrow, [], [], |head| #[layer(linear(WIDTH, CLASSES))] #[precision(fp64)]);

type Build = fn() -> Result<Box<dyn LightningModule>>;

macro_rules! build {
    ($name:ident) => {
        (|| Ok(Box::new($name::builder().build()?) as Box<dyn LightningModule>)) as Build
    };
}

/// Returns eight sequences that consist of five random symbols each.
fn sequences() -> Result<Batch> {
    let draw = || Tensor::randint(CLASSES, [8, 5], (Kind::Int64, Device::Cpu));
    Batch::new(draw(), draw())
}

fn config(precision: Precision, device: Device, graph: Graph) -> TrainerConfig {
    TrainerConfig { max_epochs: 3, graph, ..TrainerConfig::new(precision, device) }.with(|config| {
        config.logging.log_every_n_steps = 1;
        config.recovery.provenance = false;
    })
}

/// Trains for six steps, with validation. If `chunked` is true, the loss runs the output layer in
/// chunks of seven rows.
fn train(build: Build, config: &TrainerConfig, chunked: bool) -> Result<(RunRecord, Vec<Tensor>)> {
    let _generator = seeded(21);
    let mut model = build()?;
    let data = DataModule::new("sequences", sequences()?, sequences()?, 4);
    let _chunks = chunked.then(|| ChunksOf::rows(7));
    let record = Trainer::new(config.clone()).fit(&mut *model, &data)?;
    Ok((record, named_tensors(&*model).into_iter().map(|(_, tensor, _)| tensor).collect()))
}

/// With chunks, losses and weights equal those with all logits at once, up to the rounding of sums.
#[rstest]
#[case::in_order(build!(InOrder))]
#[case::called(build!(Called))]
#[case::unbiased(build!(Unbiased))]
#[case::tied(build!(Tied))]
#[case::capped(build!(Capped))]
#[case::measured(build!(Measured))]
#[case::measured_otherwise(build!(MeasuredOtherwise))]
#[case::foreign(build!(Foreign))]
#[case::narrow(build!(Narrow))]
fn chunks_train_as_all_logits_at_once(#[case] build: Build) -> Result<()> {
    let config = config(Precision::F64True, device(), Graph::Auto);
    let ((whole, of_whole), (chunked, of_chunked)) =
        (train(build, &config, false)?, train(build, &config, true)?);
    for name in ["train_loss", "val_loss"] {
        let [one, other] = [&whole, &chunked].map(|record| record.last(name).expect("logged"));
        assert!(
            (one - other).abs() < 1e-12 * one.abs(),
            "{name}: {one} without chunks, {other} with chunks"
        );
    }
    for (one, other) in of_whole.iter().zip(&of_chunked) {
        assert!(relative(other, &wide(one)) < 1e-9);
    }
    Ok(())
}

/// Metrics that are computed from chunks of rows have the same values as if they were computed from
/// all logits at once, in training and in validation. In validation, the last chunk has fewer rows.
#[test]
fn metrics_of_chunks_are_those_of_all_logits() -> Result<()> {
    for precision in [Precision::F64True, Precision::Bf16Mixed] {
        let config = config(precision, device(), Graph::Auto);
        let of = |chunked| -> Result<Vec<(String, f64)>> {
            let (record, _) = train(build!(MeasuredByAll), &config, chunked)?;
            let end = record.epochs.last().expect("an epoch");
            let values = end.train.iter().chain(&end.val);
            let metrics = values.filter(|value| !value.name.contains("loss"));
            Ok(metrics.map(|value| (value.name.clone(), value.value)).collect())
        };
        let (whole, chunked) = (of(false)?, of(true)?);
        // In training and in validation, nine single values and a matrix of 9 × 9 are logged.
        assert_eq!(whole.len(), 2 * (9 + 81));
        for ((name, one), (other_name, other)) in whole.iter().zip(&chunked) {
            assert_eq!(name, other_name);
            // Because weights are rounded to 16 bits, the order of two nearly equal logits may
            // change.
            let bound = if precision == Precision::F64True { 1e-12 } else { 0.1 };
            let both_nan = one.is_nan() && other.is_nan();
            assert!(
                both_nan || (one - other).abs() <= bound * one.abs().max(1.0),
                "{name}: {one} without chunks, {other} with chunks"
            );
        }
    }
    Ok(())
}

/// If a target class is invalid, the error names the tensor that the loss has received. This is the
/// input of the output layer if the loss runs this layer, and otherwise the logits.
#[rstest]
#[case::in_order(build!(InOrder), true)]
#[case::called(build!(Called), true)]
#[case::unbiased(build!(Unbiased), true)]
#[case::tied(build!(Tied), true)]
#[case::capped(build!(Capped), false)]
#[case::measured(build!(Measured), true)]
#[case::measured_otherwise(build!(MeasuredOtherwise), false)]
#[case::foreign(build!(Foreign), false)]
#[case::narrow(build!(Narrow), false)]
fn the_loss_runs_the_layer_whose_output_is_the_models(
    #[case] build: Build,
    #[case] runs: bool,
) -> Result<()> {
    let _generator = seeded(22);
    let examples = sequences()?;
    let wrong = Batch::new(examples.input, examples.target + CLASSES)?;
    let data = DataModule::training("wrong", wrong, 4);
    let _chunks = ChunksOf::rows(7);
    let config = config(Precision::F32True, Device::Cpu, Graph::Off);
    let text = message(Trainer::new(config).fit(&mut *build()?, &data));
    assert!(text.contains("Classes are numbered from 0; the class 3 is ignored"), "{text}");
    assert_eq!(text.contains("the input of the output layer"), runs, "{text}");
    Ok(())
}

/// In a step, the forward pass may leave the output layer to the loss. After the step, even a
/// failed one, a forward pass returns the logits again.
#[rstest]
fn a_forward_pass_outside_of_a_step_returns_the_output() -> Result<()> {
    let _generator = seeded(23);
    let (model, _chunks) = (Tied::builder().build()?, ChunksOf::rows(7));
    let examples = sequences()?;
    let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
    let loss = loss::CrossEntropy::default();
    let failed = nn::loss_of_output(&model, &loss, || Err(Error::config("stop")), &examples.target);
    assert_eq!(message(failed), "stop");
    assert_eq!(model.forward(&examples.input, &cx)?.size(), [8, 5, CLASSES]);
    // Only the model of the step leaves its output layer to the loss. If the step calls another
    // model of the same type, that model returns its output.
    let own = Tied::builder().build()?;
    let of_both = || {
        assert_eq!(own.forward(&examples.input, &cx)?.size(), [8, 5, CLASSES]);
        model.forward(&examples.input, &cx)
    };
    assert!(nn::loss_of_output(&model, &loss, of_both, &examples.target)?.size().is_empty());
    Ok(())
}

/// A dtype probe that records the dtypes of modules' outputs.
#[derive(Default)]
struct Dtypes(RefCell<Vec<(String, Kind)>>);

impl DtypeProbe for Dtypes {
    fn module_output(&self, output: &ModuleOutput<'_>) {
        self.0.borrow_mut().push((output.path.to_owned(), output.kind));
    }
}

impl Probe for Dtypes {
    fn ran(&self, call: &Call<'_>) {
        self.0.borrow_mut().push((call.path.to_owned(), call.output.kind()));
    }
}

/// If a probe reads tensors, the output layer runs in the forward pass, and not in the loss,
/// because the probe must get its output. If a probe reads only dtypes, the loss runs the output
/// layer, and the probe gets the dtype of the logits.
#[rstest]
fn observers_see_the_output_layer(#[values(false, true)] reads: bool) -> Result<()> {
    let _generator = seeded(24);
    let (model, _chunks) = (Called::builder().build()?, ChunksOf::rows(7));
    let (examples, seen) = (sequences()?, Rc::new(Dtypes::default()));
    let policy = Policy::new(Precision::Bf16Mixed, Device::Cpu);
    let cx = Context::new(policy, true);
    let cx = if reads { cx.with_probe(seen.clone()) } else { cx.with_dtype_probe(seen.clone()) };
    let _region = policy.autocast()?;
    let forward = || {
        let output = model.forward(&examples.input, &cx)?;
        assert_eq!(output.defined(), reads);
        Ok(output)
    };
    let plain = loss::CrossEntropy::default();
    let loss = nn::loss_of_output(&model, &plain, forward, &examples.target)?;
    assert_eq!(loss.kind(), Kind::Float);
    assert_eq!(seen.0.borrow().last(), Some(&("head".to_owned(), Kind::BFloat16)));
    Ok(())
}

/// If the run sets a precision region for the output layer, the forward pass runs the layer in this
/// region, and does not leave it to the loss.
#[rstest]
fn an_output_layer_with_a_region_runs_in_it() -> Result<()> {
    let _generator = seeded(25);
    let (model, _chunks) = (Called::builder().build()?, ChunksOf::rows(7));
    let examples = sequences()?;
    let policy = Policy::new(Precision::Bf16Mixed, Device::Cpu);
    let regions = BTreeMap::from([("head".to_owned(), Region::Fp32)]);
    let cx = Context::new(policy, true).with_overrides(Rc::new(regions));
    let _region = policy.autocast()?;
    let forward = || {
        let output = model.forward(&examples.input, &cx)?;
        assert!(output.defined() && output.kind() == Kind::Float);
        Ok(output)
    };
    let plain = loss::CrossEntropy::default();
    assert_eq!(nn::loss_of_output(&model, &plain, forward, &examples.target)?.kind(), Kind::Float);
    Ok(())
}

/// Steps that run as CUDA graphs have the same bits as steps that do not.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn captured_steps_equal_eager_ones(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
    #[values(build!(InOrder), build!(Tied), build!(MeasuredByAll))] build: Build,
) -> Result<()> {
    needs_cuda();
    let run = |graph| train(build, &config(precision, device(), graph), true);
    let ((eager, of_eager), (captured, of_captured)) = (run(Graph::Off)?, run(Graph::Auto)?);
    assert_eq!((eager.end.replayed, captured.end.replayed > 0), (0, true));
    assert_eq!(eager.last("train_loss"), captured.last("train_loss"));
    let bits = |tensors: &[Tensor]| tensors.iter().map(sha256).collect::<Vec<_>>();
    assert_eq!(bits(&of_eager), bits(&of_captured));
    Ok(())
}
