//! Tests that a NaN in the output or the target makes each metric NaN. A metric that reads a NaN as
//! a class or a rank would have a plausible value for a model that has diverged.

use amp_core::{
    Result,
    metric::{
        Accuracy, Auroc, Average, AveragePrecision, BinaryAccuracy, BinaryConfusionMatrix,
        BinaryFBeta, BinaryJaccard, BinaryPrecision, BinaryRecall, BinarySpecificity,
        ConfusionMatrix, Dice, F1, FBeta, Jaccard, Mae, Metric, Mse, MultilabelAuroc,
        MultilabelAveragePrecision, MultilabelFBeta, MultilabelJaccard, MultilabelPrecision,
        MultilabelRecall, MultilabelSpecificity, Perplexity, Precision, Psnr, R2, Recall,
        RecallAtK, Rmse, SoftAccuracy, Specificity, Ssim, TopK,
    },
    tch::{Device, Kind, Tensor},
};

use crate::support::seeded;

type Named = (String, Box<dyn Metric>);

fn named(name: &str, metric: impl Metric + 'static) -> Named {
    (name.to_owned(), Box::new(metric))
}

const AVERAGES: [Average; 4] = [Average::Micro, Average::Macro, Average::Weighted, Average::None];

/// Returns the metrics that compare logits of three classes with classes.
fn of_classes() -> Vec<Named> {
    let mut all = vec![
        named("accuracy", Accuracy),
        named("top_1", TopK { k: 1 }),
        named("top_2", TopK { k: 2 }),
        named("f1", F1 { num_classes: 3 }),
        named("confusion matrix", ConfusionMatrix::default()),
        named("perplexity", Perplexity::default()),
    ];
    for average in AVERAGES {
        let of = |what: &str| format!("{what}, {average:?}");
        all.extend([
            named(&of("precision"), Precision { average, ..Default::default() }),
            named(&of("recall"), Recall { average, ..Default::default() }),
            named(&of("specificity"), Specificity { average, ..Default::default() }),
            named(&of("f_beta"), FBeta { average, ..Default::default() }),
            named(&of("jaccard"), Jaccard { average, ..Default::default() }),
        ]);
        for (per_example, include_background) in
            [(true, true), (true, false), (false, true), (false, false)]
        {
            let dice = Dice { average, per_example, include_background, ..Default::default() };
            all.push(named(&format!("{dice:?}"), dice));
        }
        for thresholds in [None, Some(2), Some(9)].into_iter().filter(|_| average != AVERAGES[0]) {
            let of = |what: &str| format!("{what}, {average:?}, {thresholds:?}");
            all.push(named(&of("auroc"), Auroc { average, thresholds }));
            all.push(named(&of("average precision"), AveragePrecision { average, thresholds }));
        }
    }
    all
}

/// Returns the metrics that compare logits with labels 0 and 1.
fn of_labels() -> Vec<Named> {
    let mut all = vec![
        named("binary accuracy", BinaryAccuracy),
        named("binary precision", BinaryPrecision::default()),
        named("binary recall", BinaryRecall::default()),
        named("binary specificity", BinarySpecificity::default()),
        named("binary f_beta", BinaryFBeta::default()),
        named("binary jaccard", BinaryJaccard::default()),
        named("binary confusion matrix", BinaryConfusionMatrix::default()),
    ];
    for thresholds in [None, Some(2), Some(9)] {
        let average = Average::Macro;
        let of = |what: &str| format!("{what}, {thresholds:?}");
        all.push(named(&of("auroc"), Auroc { average, thresholds }));
        all.push(named(&of("average precision"), AveragePrecision { average, thresholds }));
    }
    all
}

/// Returns the multilabel metrics, which compare several logits per example with as many labels of
/// 0 or 1.
fn of_several_labels() -> Vec<Named> {
    let mut all = Vec::new();
    for average in AVERAGES {
        let of = |what: &str| format!("multilabel {what}, {average:?}");
        all.extend([
            named(&of("precision"), MultilabelPrecision { average, ..Default::default() }),
            named(&of("recall"), MultilabelRecall { average, ..Default::default() }),
            named(&of("specificity"), MultilabelSpecificity { average, ..Default::default() }),
            named(&of("f_beta"), MultilabelFBeta { average, ..Default::default() }),
            named(&of("jaccard"), MultilabelJaccard { average, ..Default::default() }),
        ]);
        // With `Average::None`, these metrics are left out: each label has its own area, and a NaN
        // logit makes only the area of its label NaN.
        for thresholds in [None, Some(2), Some(9)].into_iter().filter(|_| average != AVERAGES[3]) {
            let of = |what: &str| format!("multilabel {what}, {average:?}, {thresholds:?}");
            all.push(named(&of("auroc"), MultilabelAuroc { average, thresholds }));
            let precision = MultilabelAveragePrecision { average, thresholds };
            all.push(named(&of("average precision"), precision));
        }
    }
    all
}

/// Returns the metrics that compare tensors of numbers.
fn of_numbers() -> Vec<Named> {
    vec![
        named("mae", Mae),
        named("mse", Mse),
        named("rmse", Rmse),
        named("r2", R2),
        named("psnr", Psnr::default()),
    ]
}

fn values(value: &Tensor) -> Vec<f64> {
    Vec::try_from(&value.reshape([-1]).to_kind(Kind::Double)).expect("numbers")
}

/// Returns a copy of `tensor` whose element at `at` is NaN.
fn with_nan(tensor: &Tensor, at: i64) -> Tensor {
    let copy = tensor.copy();
    let _ = copy.view([-1]).get(at).fill_(f64::NAN);
    copy
}

/// Replaces one element by NaN, and computes the metrics for this batch alone and together with a
/// batch without NaN. Repeats this for each element of the output and, if the target is
/// floating-point, of the target. Returns one line for each metric and element for which a value of
/// the metric is not NaN.
fn silent(metrics: &[Named], output: &Tensor, target: &Tensor) -> Result<Vec<String>> {
    let mut silent = Vec::new();
    for (name, metric) in metrics {
        let clean = metric.update(output, target)?;
        assert!(!values(&metric.reduction().compute(&clean)?).iter().all(|one| one.is_nan()));
        let mut check = |what: &str, output: &Tensor, target: &Tensor| -> Result<()> {
            let mut state = metric.update(output, target)?;
            let alone = values(&metric.reduction().compute(&state)?);
            state.merge(&clean)?;
            let merged = values(&metric.reduction().compute(&state)?);
            if !alone.iter().chain(&merged).all(|one| one.is_nan()) {
                silent.push(format!("{name}, {what}: {alone:?}, {merged:?}"));
            }
            Ok(())
        };
        for at in 0..output.numel() as i64 {
            check(&format!("output {at}"), &with_nan(output, at), target)?;
        }
        for at in 0..target.numel() as i64 * i64::from(target.kind() != Kind::Int64) {
            check(&format!("target {at}"), output, &with_nan(target, at))?;
        }
    }
    Ok(silent)
}

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn a_nan_logit_of_a_class_makes_each_metric_nan() -> Result<()> {
    let _generator = seeded(0);
    let classes = Tensor::from_slice(&[0_i64, 1, 2, 0]);
    let silent = silent(&of_classes(), &random(&[4, 3]), &classes)?;
    assert_eq!(silent, [""; 0]);
    Ok(())
}

#[test]
fn a_nan_logit_or_label_makes_each_metric_nan() -> Result<()> {
    let _generator = seeded(0);
    let labels = Tensor::from_slice(&[1.0_f32, 0.0, 1.0, 0.0]);
    let silent = silent(&of_labels(), &random(&[4]), &labels)?;
    assert_eq!(silent, [""; 0]);
    Ok(())
}

#[test]
fn a_nan_among_several_labels_makes_each_metric_nan() -> Result<()> {
    let _generator = seeded(0);
    let labels = Tensor::from_slice(&[1.0_f32, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]).view([4, 2]);
    let silent = silent(&of_several_labels(), &random(&[4, 2]), &labels)?;
    assert_eq!(silent, [""; 0]);
    Ok(())
}

#[test]
fn a_nan_number_makes_each_metric_nan() -> Result<()> {
    let _generator = seeded(0);
    let mut all = silent(&of_numbers(), &random(&[4]), &random(&[4]))?;
    // R2 divides by the variance of the targets, which is 0 here. A NaN must make the value NaN in
    // this case too.
    let constant = Tensor::ones([4], (Kind::Float, Device::Cpu));
    all.extend(silent(&of_numbers(), &random(&[4]), &constant)?);
    all.extend(silent(&of_numbers(), &random(&[3, 2]), &random(&[3, 2]))?);
    let images = || random(&[1, 1, 6, 6]).sigmoid();
    all.extend(silent(&[named("ssim", Ssim::default())], &images(), &images())?);
    let soft = [named("soft_accuracy", SoftAccuracy)];
    all.extend(silent(&soft, &random(&[4, 3]), &random(&[4, 3]).softmax(1, Kind::Float))?);
    let recall = [named("recall_at_1", RecallAtK { k: 1 }), named("at_9", RecallAtK { k: 9 })];
    all.extend(silent(&recall, &random(&[4, 3]), &random(&[4, 3]))?);
    assert_eq!(all, [""; 0]);
    Ok(())
}

/// If the logits of an ignored example are NaN, no metric changes.
#[test]
fn a_nan_logit_of_an_ignored_example_changes_nothing() -> Result<()> {
    let _generator = seeded(0);
    let (logits, classes) = (random(&[4, 3]), Tensor::from_slice(&[0_i64, -100, 2, 1]));
    let (scores, labels) = (random(&[4]), Tensor::from_slice(&[1.0_f32, -100.0, 1.0, 0.0]));
    let several = Tensor::from_slice(&[1.0_f32, -100.0, 0.0, 1.0, 1.0, 0.0]).view([3, 2]);
    let cases = [
        (of_classes(), logits, classes, 3),
        (of_several_labels(), random(&[3, 2]), several, 1),
        (of_labels(), scores, labels, 1),
    ];
    for (metrics, output, target, at) in cases {
        for (name, metric) in metrics {
            let expected = values(&metric.measure(&output, &target)?);
            assert_eq!(
                values(&metric.measure(&with_nan(&output, at), &target)?),
                expected,
                "{name}"
            );
        }
    }
    Ok(())
}
