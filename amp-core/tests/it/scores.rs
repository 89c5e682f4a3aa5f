//! Tests that metrics with their options have the values that torchmetrics computed, for any
//! division into batches, in f64 and under autocast.

use amp_core::{
    Result,
    metric::{
        Auroc, Average, AveragePrecision, BinaryConfusionMatrix, BinaryFBeta, BinaryJaccard,
        BinaryPrecision, BinaryRecall, BinarySpecificity, ConfusionMatrix, Dice, FBeta, Jaccard,
        Mae, Metric, MetricState, Mse, MultilabelAuroc, MultilabelAveragePrecision,
        MultilabelFBeta, MultilabelJaccard, MultilabelPrecision, MultilabelRecall,
        MultilabelSpecificity, Perplexity, Precision, Psnr, R2, Recall, RecallAtK, Reduction, Rmse,
        Specificity, Ssim,
    },
    precision::AutocastGuard,
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::from_bits,
    message,
    oracle::{integer, list, number, oracle, parsed, text},
};

fn tensor(value: &Value) -> Tensor {
    let shape: Vec<i64> = serde_json::from_value(value["shape"].clone()).expect("a shape");
    match value.get("integers") {
        Some(of) => {
            let of: Vec<i64> = serde_json::from_value(of.clone()).expect("integers");
            Tensor::from_slice(&of).reshape(shape)
        }
        None => from_bits(Kind::Double, text(value, "bits")).reshape(shape),
    }
}

/// Returns the metric of a recorded case.
fn metric(case: &Value, num_classes: i64) -> Box<dyn Metric> {
    let options = &case["options"];
    let average = match options.get("average").and_then(Value::as_str) {
        None | Some("macro") => Average::Macro,
        Some("micro") => Average::Micro,
        Some("weighted") => Average::Weighted,
        Some(_) => Average::None,
    };
    let ignore_index = options.get("ignore_index").map_or(-100, |of| of.as_i64().expect("a class"));
    let threshold = options.get("threshold").map_or(0.5, parsed);
    let thresholds = options.get("thresholds").map(|of| of.as_i64().expect("a number"));
    let num_classes = Some(num_classes);
    match text(case, "metric") {
        "precision" => Box::new(Precision { average, ignore_index, num_classes }),
        "recall" => Box::new(Recall { average, ignore_index, num_classes }),
        "specificity" => Box::new(Specificity { average, ignore_index, num_classes }),
        "jaccard" => Box::new(Jaccard { average, ignore_index, num_classes }),
        "f_beta" => {
            let beta = number(options, "beta");
            Box::new(FBeta { beta, average, ignore_index, num_classes })
        }
        "dice" => {
            let is = |key: &str| options[key].as_bool().expect("true or false");
            let (per_example, include_background) = (is("per_example"), is("include_background"));
            Box::new(Dice { average, per_example, include_background, ignore_index, num_classes })
        }
        "confusion_matrix" => Box::new(ConfusionMatrix { ignore_index, num_classes }),
        "binary_precision" => Box::new(BinaryPrecision { threshold, ignore_index }),
        "binary_recall" => Box::new(BinaryRecall { threshold, ignore_index }),
        "binary_specificity" => Box::new(BinarySpecificity { threshold, ignore_index }),
        "binary_jaccard" => Box::new(BinaryJaccard { threshold, ignore_index }),
        "binary_f_beta" => {
            Box::new(BinaryFBeta { beta: number(options, "beta"), threshold, ignore_index })
        }
        "binary_confusion_matrix" => Box::new(BinaryConfusionMatrix { threshold, ignore_index }),
        "multilabel_precision" => {
            Box::new(MultilabelPrecision { threshold, average, ignore_index })
        }
        "multilabel_recall" => Box::new(MultilabelRecall { threshold, average, ignore_index }),
        "multilabel_specificity" => {
            Box::new(MultilabelSpecificity { threshold, average, ignore_index })
        }
        "multilabel_jaccard" => Box::new(MultilabelJaccard { threshold, average, ignore_index }),
        "multilabel_f_beta" => {
            let beta = number(options, "beta");
            Box::new(MultilabelFBeta { beta, threshold, average, ignore_index })
        }
        "multilabel_auroc" => Box::new(MultilabelAuroc { average, thresholds }),
        "multilabel_average_precision" => {
            Box::new(MultilabelAveragePrecision { average, thresholds })
        }
        "auroc" => Box::new(Auroc { average, thresholds }),
        "average_precision" => Box::new(AveragePrecision { average, thresholds }),
        "mae" => Box::new(Mae),
        "mse" => Box::new(Mse),
        "rmse" => Box::new(Rmse),
        "r2" => Box::new(R2),
        "perplexity" => Box::new(Perplexity { ignore_index }),
        "psnr" => Box::new(Psnr { data_range: number(options, "data_range") }),
        "ssim" => Box::new(Ssim { data_range: number(options, "data_range") }),
        "recall_at_k" => Box::new(RecallAtK { k: integer(options, "k") }),
        other => panic!("no metric is called {other}"),
    }
}

fn values(value: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(value.reshape([-1])).expect("numbers")
}

/// Computes the metric of a set that is divided into batches of at most `size` examples.
fn measure(metric: &dyn Metric, output: &Tensor, target: &Tensor, size: i64) -> Result<Vec<f64>> {
    let count = output.size()[0];
    let mut merged = None::<MetricState>;
    for start in (0..count).step_by(size as usize) {
        let length = size.min(count - start);
        let batch =
            metric.update(&output.narrow(0, start, length), &target.narrow(0, start, length))?;
        match &mut merged {
            Some(merged) => merged.merge(&batch)?,
            None => merged = Some(batch),
        }
    }
    Ok(values(&metric.reduction().compute(&merged.expect("a batch"))?))
}

#[track_caller]
fn assert_near(seen: &[f64], expected: &[f64], what: &str) {
    let near = |(seen, expected): (&f64, &f64)| {
        seen.is_nan() && expected.is_nan()
            || (seen - expected).abs() < 2e-6 * expected.abs().max(1.0)
    };
    let all = seen.len() == expected.len() && seen.iter().zip(expected).all(near);
    assert!(all, "{what}: {seen:?}, not {expected:?}");
}

#[rstest]
fn metrics_equal_torchmetrics(
    #[values(
        "precision",
        "recall",
        "specificity",
        "jaccard",
        "f_beta",
        "confusion_matrix",
        "dice",
        "binary_precision",
        "binary_recall",
        "binary_specificity",
        "binary_jaccard",
        "binary_f_beta",
        "binary_confusion_matrix",
        "multilabel_precision",
        "multilabel_recall",
        "multilabel_f_beta",
        "multilabel_specificity",
        "multilabel_jaccard",
        "multilabel_auroc",
        "multilabel_average_precision",
        "auroc",
        "average_precision",
        "mae",
        "mse",
        "rmse",
        "r2",
        "perplexity",
        "psnr",
        "ssim",
        "recall_at_k"
    )]
    name: &str,
) -> Result<()> {
    let oracle = oracle!("scores.json");
    let cases = list(&oracle, "cases").iter().filter(|case| text(case, "metric") == name);
    let mut count = 0;
    for case in cases {
        count += 1;
        let (output, target) = (tensor(&case["output"]), tensor(&case["target"]));
        let metric = metric(case, output.size().get(1).copied().unwrap_or(1));
        let expected: Vec<f64> = list(case, "value").iter().map(parsed).collect();
        let what = format!("{name} of {} with {}", text(case, "name"), case["options"]);
        for size in [output.size()[0], 4, 1] {
            let seen = measure(metric.as_ref(), &output, &target, size)?;
            assert_near(&seen, &expected, &format!("{what} in batches of {size}"));
        }
        let (output, target) = (output.to_kind(Kind::Float), target.shallow_clone());
        let _autocast = AutocastGuard::enter(Device::Cpu, Kind::BFloat16)?;
        assert_near(&measure(metric.as_ref(), &output, &target, 4)?, &expected, &what);
    }
    assert!(count > 0, "no case of {name}");
    Ok(())
}

fn zeros(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::zeros(shape, (kind, Device::Cpu))
}

/// The value of a metric without examples is NaN. torchmetrics returns 0, as for a model that is
/// always wrong.
#[rstest]
#[case::precision(&Precision::default(), "precision of nothing")]
#[case::recall(&Recall { average: Average::Micro, ..Default::default() }, "recall of nothing")]
#[case::each(&Recall { average: Average::None, ..Default::default() }, "recall of nothing")]
#[case::weighted(&FBeta { average: Average::Weighted, ..Default::default() }, "recall of nothing")]
#[case::auroc(&Auroc::default(), "recall of nothing")]
#[case::binned(&Auroc { thresholds: Some(5), ..Default::default() }, "recall of nothing")]
fn a_metric_of_nothing_is_nan(#[case] metric: &dyn Metric, #[case] theirs: &str) -> Result<()> {
    let oracle = oracle!("scores.json");
    assert_eq!(number(&oracle["nothing"], theirs), 0.0);
    let target = Tensor::from_slice(&[-100_i64; 5]);
    let seen = values(&metric.measure(&zeros(&[5, 3], Kind::Float), &target)?);
    assert!(seen.iter().all(|value| value.is_nan()), "{seen:?}");
    Ok(())
}

#[rstest]
fn a_curve_of_positives_alone(#[values(None, Some(7))] thresholds: Option<i64>) -> Result<()> {
    let oracle = oracle!("scores.json");
    assert_eq!(number(&oracle["nothing"], "auroc of positives"), 0.0);
    let (logits, ones) =
        (Tensor::from_slice(&[0.5_f32, -1.0, 2.0]), Tensor::from_slice(&[1_i64, 1, 1]));
    let average = Average::Macro;
    assert!(Auroc { average, thresholds }.measure(&logits, &ones)?.double_value(&[]).is_nan());
    // All labels are 1, so the precision is 1 at every threshold.
    let precision = AveragePrecision { average, thresholds }.measure(&logits, &ones)?;
    assert_eq!(precision.double_value(&[]), 1.0);
    Ok(())
}

/// If a score is NaN, the metric is NaN, unless the example of this score is ignored.
#[rstest]
#[case::auroc(&Auroc::default())]
#[case::auroc_in_bins(&Auroc { thresholds: Some(9), ..Default::default() })]
#[case::average_precision(&AveragePrecision::default())]
#[case::recall(&BinaryRecall::default())]
fn a_nan_score_makes_the_metric_nan(#[case] metric: &dyn Metric) -> Result<()> {
    let logits = Tensor::from_slice(&[0.5_f32, f32::NAN, 2.0, -1.0]);
    let kept = Tensor::from_slice(&[1_i64, 0, 1, 0]);
    assert!(metric.measure(&logits, &kept)?.double_value(&[]).is_nan());
    let left_out = Tensor::from_slice(&[1_i64, -100, 1, 0]);
    assert_eq!(metric.measure(&logits, &left_out)?.double_value(&[]), 1.0);
    Ok(())
}

/// For recall@k, the right answer counts as retrieved only if its score is higher than those of the
/// wrong answers. If all scores are equal, recall@k is therefore 0.
#[test]
fn ties_count_as_not_retrieved() -> Result<()> {
    let alike = Tensor::ones([6, 3], (Kind::Float, Device::Cpu));
    assert_eq!(RecallAtK { k: 5 }.measure(&alike, &alike)?.double_value(&[]), 0.0);
    let eye = Tensor::eye(4, (Kind::Float, Device::Cpu));
    let both = Tensor::stack(&[&eye, &eye], 1);
    let target = zeros(&[4], Kind::Int64);
    assert_eq!(RecallAtK { k: 1 }.measure(&both, &target)?.double_value(&[]), 1.0);
    Ok(())
}

#[rstest]
#[case::missed(&[3.0, 3.0, 3.0], &[1.0, 1.0, 1.0], 0.0)]
#[case::found(&[1.0, 1.0, 1.0], &[1.0, 1.0, 1.0], 1.0)]
#[case::found_far_from_zero(&[1e6 + 0.1, 1e6 + 0.1], &[1e6 + 0.1, 1e6 + 0.1], 1.0)]
fn r2_of_a_constant(
    #[case] output: &[f64],
    #[case] target: &[f64],
    #[case] expected: f64,
) -> Result<()> {
    let seen = R2.measure(&Tensor::from_slice(output), &Tensor::from_slice(target))?;
    assert_eq!(seen.double_value(&[]), expected);
    let one = Tensor::from_slice(&[1.0_f64]);
    assert!(R2.measure(&one, &one)?.double_value(&[]).is_nan(), "R2 of one example is NaN");
    Ok(())
}

#[rstest]
#[case::classes(&Precision::default(), &[4, 3], &[5], Kind::Int64, "precision: the output is float32 [4, 3]")]
#[case::number_of_classes(
    &Recall { num_classes: Some(4), ..Default::default() }, &[4, 3], &[4], Kind::Int64,
    "num_classes is 4, but the output has 3 classes"
)]
#[case::labels(&BinaryJaccard::default(), &[4, 1], &[4], Kind::Int64, "`output.view([4])`")]
#[case::several_labels(&MultilabelRecall::default(), &[4], &[4], Kind::Int64, "both must be [N, C, …]")]
#[case::curve_of_several_labels(
    &MultilabelAuroc::default(), &[4], &[4], Kind::Int64, "both must be [N, C, …]"
)]
#[case::labels_for_classes(
    &Precision::default(), &[4, 3], &[4, 3], Kind::Float, "several labels per example use multilabel_"
)]
#[case::threshold(
    &BinaryRecall { threshold: 1.0, ..Default::default() }, &[4], &[4], Kind::Int64,
    "threshold is 1, but must be a probability between 0 and 1"
)]
#[case::curve(&Auroc::default(), &[4, 1], &[4], Kind::Float, "`output.view([4])`")]
#[case::curve_of_one_logit(&Auroc::default(), &[4, 1], &[4], Kind::Int64, "one logit for each example")]
#[case::micro(
    &Auroc { average: Average::Micro, thresholds: None }, &[4, 3], &[4], Kind::Int64,
    "average is micro, but must be macro, weighted or none"
)]
#[case::one_threshold(
    &AveragePrecision { thresholds: Some(1), ..Default::default() }, &[4], &[4], Kind::Int64,
    "thresholds is 1, but must be at least 2"
)]
#[case::numbers(&Mae, &[4, 1], &[4], Kind::Float, "mae: the output is float32 [4, 1]")]
#[case::r2(&R2, &[4, 1, 2], &[4, 1, 2], Kind::Float, "both must be [N] or [N, D]")]
#[case::range(&Psnr { data_range: 0.0 }, &[4], &[4], Kind::Float, "data_range is 0, but must be above 0")]
#[case::small_images(&Ssim::default(), &[1, 1, 5, 12], &[1, 1, 5, 12], Kind::Float, "H and W at least 6")]
#[case::pairs(&RecallAtK { k: 1 }, &[4], &[4], Kind::Float, "must both be [N, D]")]
#[case::no_key(&RecallAtK { k: 0 }, &[4, 2], &[4, 2], Kind::Float, "k is 0, but must be at least 1")]
#[case::perplexity(&Perplexity::default(), &[4, 3], &[4], Kind::Float, "classes must be int64")]
fn shapes_that_do_not_fit_are_refused(
    #[case] metric: &dyn Metric,
    #[case] output: &[i64],
    #[case] target: &[i64],
    #[case] kind: Kind,
    #[case] why: &str,
) {
    let said = message(metric.update(&zeros(output, Kind::Float), &zeros(target, kind)));
    assert!(said.contains(why) && said.contains("the target"), "{said}");
}

/// A class out of range is an error, not a wrong prediction.
#[rstest]
#[case(&Precision::default())]
#[case(&ConfusionMatrix::default())]
#[case(&Auroc::default())]
#[case(&Perplexity::default())]
fn a_class_out_of_range_is_refused(#[case] metric: &dyn Metric) {
    let said =
        message(metric.update(&zeros(&[2, 3], Kind::Float), &Tensor::from_slice(&[0_i64, 3])));
    assert!(said.contains("float32 [2, 3]") && said.contains('3'), "{said}");
}

/// Metric states of different shapes or kinds cannot be merged. A reduction refuses a state with
/// the wrong number of tensors or values.
#[test]
fn states_that_do_not_merge_are_refused() -> Result<()> {
    let counts = |size: i64| MetricState::sum(&zeros(&[size], Kind::Double));
    let said = message(counts(2)?.merge(&counts(3)?));
    assert_eq!(
        said,
        "the counts of earlier batches have the shape [[2]], but those of this batch have the shape [[3]]"
    );
    let said = message(counts(2)?.merge(&MetricState::concat(&zeros(&[2], Kind::Double))));
    assert!(said.contains("the counts of earlier batches have the shape"), "{said}");
    let said = message(Reduction::Ratio.compute(&counts(3)?));
    assert_eq!(
        said,
        "a ratio needs a tensor of two sums, but the state's tensor has the shape [3]"
    );
    let said = message(RecallAtK { k: 1 }.reduction().compute(&counts(3)?));
    assert!(said.contains("computed from 2 tensors, but its state has 1"), "{said}");
    Ok(())
}
