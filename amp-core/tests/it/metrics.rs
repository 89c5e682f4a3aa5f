//! Tests accuracy, top-k and macro F1 against exact fractions that plain Python has computed.

use amp_core::{
    Result,
    metric::{Accuracy, F1, Metric, MetricState, TopK},
    tch::{Device, Kind, Tensor},
};
use serde_json::Value;

use crate::support::oracle::{list, oracle, text};

/// Returns the value of a fraction that is written as text, for example `"11/15"`.
fn fraction(text: &str) -> f64 {
    let (part, whole) = text.split_once('/').expect("a fraction");
    let number = |text: &str| text.parse::<f64>().expect("an integer");
    number(part) / number(whole)
}

fn logits_and_labels(case: &Value) -> (Tensor, Tensor) {
    let rows: Vec<Vec<f64>> =
        serde_json::from_value(case["logits"].clone()).expect("rows of integers");
    let labels: Vec<i64> = serde_json::from_value(case["labels"].clone()).expect("classes");
    let flat: Vec<f64> = rows.concat();
    let logits = Tensor::from_slice(&flat).reshape([rows.len() as i64, -1]).to_kind(Kind::Float);
    (logits, Tensor::from_slice(&labels))
}

/// Computes the metric of these batches as the trainer does. The counts of all batches are summed
/// first, and the metric is computed from the sums.
fn measure(metric: &dyn Metric, batches: &[(Tensor, Tensor)]) -> Result<f64> {
    let mut merged = None::<MetricState>;
    for (logits, labels) in batches {
        let more = metric.update(logits, labels)?;
        assert_eq!(more.tensors()?[0].kind(), Kind::Double, "counts are f64");
        match &mut merged {
            Some(merged) => merged.merge(&more)?,
            None => merged = Some(more),
        }
    }
    Ok(metric.reduction().compute(&merged.expect("a batch"))?.double_value(&[]))
}

/// Asserts that the metric has the expected value. The metric is computed from the whole set at
/// once and from its rows one by one, because its value must not depend on the batches.
#[track_caller]
fn assert_metric(metric: &dyn Metric, case: &Value, expected: &str, what: &str) -> Result<()> {
    let (logits, labels) = logits_and_labels(case);
    let rows = labels.size()[0];
    let single = |at| (logits.narrow(0, at, 1), labels.narrow(0, at, 1));
    let singles: Vec<_> = (0..rows).map(single).collect();
    for batches in [vec![(logits.shallow_clone(), labels.shallow_clone())], singles] {
        let seen = measure(metric, &batches)?;
        let expected = fraction(expected);
        assert!((seen - expected).abs() < 1e-12, "{what} of {}: {seen}", text(case, "name"));
    }
    Ok(())
}

/// Metrics equal the exact fractions, however the examples are divided into batches. Averages are
/// taken over the classes that occur among labels or predictions, as in torchmetrics. In some cases
/// a class is absent, or only one class is predicted.
#[test]
fn metrics_are_exact_however_the_set_is_cut() -> Result<()> {
    let oracle = oracle!("metrics.json");
    let cases = list(&oracle, "cases");
    assert_eq!(cases.len(), 8);
    for case in cases {
        let expected = &case["expected"];
        let classes = case["logits"][0].as_array().expect("a row").len() as i64;
        assert_metric(&Accuracy, case, text(expected, "accuracy"), "accuracy")?;
        assert_metric(&F1 { num_classes: classes }, case, text(expected, "f1_macro"), "F1")?;
        for k in 1..=classes {
            let top = text(&expected["top_k"], &k.to_string());
            assert_metric(&TopK { k }, case, top, &format!("top-{k}"))?;
        }
    }
    Ok(())
}

/// If batches have unequal sizes, each batch is weighted by the number of its examples. A plain
/// mean of the batches' accuracies would be another number.
#[test]
fn unequal_batches_weigh_by_their_examples() -> Result<()> {
    let oracle = oracle!("metrics.json");
    let batched = &oracle["batched"];
    let case = list(&oracle, "cases").iter().find(|case| case["name"] == batched["case"]);
    let (logits, labels) = logits_and_labels(case.expect("recorded"));
    let (mut start, mut batches, mut means) = (0, Vec::new(), Vec::new());
    for size in list(batched, "batches").iter().map(|size| size.as_i64().expect("a size")) {
        let batch = (logits.narrow(0, start, size), labels.narrow(0, start, size));
        means.push(measure(&Accuracy, std::slice::from_ref(&batch))?);
        batches.push(batch);
        start += size;
    }
    let expected = fraction(text(batched, "accuracy"));
    let seen = measure(&Accuracy, &batches)?;
    assert_eq!(seen, expected);
    let mean_of_means = means.iter().sum::<f64>() / means.len() as f64;
    assert!((mean_of_means - expected).abs() > 1e-3, "the two means differ in this example");
    Ok(())
}

/// In the logits of a language model, the classes are the last dimension. Logits `[N, L, C]` with
/// labels `[N, L]` give the same metric as logits `[N·L, C]` with labels `[N·L]`.
#[test]
fn sequences_count_every_position() -> Result<()> {
    let logits =
        Tensor::from_slice(&[2.0_f32, 1.0, 1.0, 2.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0]);
    let labels = Tensor::from_slice(&[0_i64, 1, 1, 0, 1, 0]).reshape([2, 3]);
    let batch = [(logits.reshape([2, 3, 2]), labels)];
    assert_eq!(measure(&Accuracy, &batch)?, 0.5);
    assert_eq!(measure(&TopK { k: 2 }, &batch)?, 1.0);
    Ok(())
}

/// Metrics of f16 logits count exactly, because the counts are f64. In f16, a count would stop at
/// 2048.
#[test]
fn f16_logits_are_counted_exactly() -> Result<()> {
    let rows = 5000;
    let logits = Tensor::from_slice(&[1.0_f32, 0.0]).repeat([rows, 1]).to_kind(Kind::Half);
    let labels = Tensor::zeros([rows], (Kind::Int64, Device::Cpu));
    let [counts] = Accuracy.update(&logits, &labels)?.tensors()?.try_into().expect("a sum");
    assert_eq!(Vec::<f64>::try_from(counts)?, [5000.0, 5000.0]);
    Ok(())
}

/// The metric `Mean` is the mean over all values that its function returns in an epoch, not the
/// mean of the means of batches.
#[test]
fn a_mean_is_over_values_and_not_over_batches() -> amp_core::Result<()> {
    use amp_core::metric::Mean;

    let first = |output: &Tensor, _: &Tensor| Ok(output.f_select(1, 0)?);
    let mut log = amp_core::log::Log::default();
    for rows in [vec![1.0_f64, 0.0, 2.0, 0.0, 6.0, 0.0], vec![11.0, 0.0]] {
        let output = Tensor::from_slice(&rows).reshape([-1, 2]);
        let target = Tensor::zeros([output.size()[0]], (Kind::Int64, Device::Cpu));
        let options = amp_core::log::LogOptions::ON_EPOCH;
        log.metric("first", &Mean { of: first }, &output, &target, options)?;
    }
    assert_eq!(log.epoch_values()?[0].value, (1.0 + 2.0 + 6.0 + 11.0) / 4.0);
    Ok(())
}
