//! Tests of losses and metrics with targets of different shapes and with ignored targets. The
//! values equal those of torch and torchmetrics. If output and target do not fit together, the
//! error contains the name of the loss, both shapes and the remedy.

use amp_core::{
    Result, loss,
    metric::{Accuracy, BinaryAccuracy, F1, Mean, Metric, SoftAccuracy, TopK},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::{from_bits, relative, wide},
    message,
    oracle::{integer, list, number, oracle, text},
};

fn shape(case: &Value) -> Vec<i64> {
    serde_json::from_value(case["shape"].clone()).expect("a shape")
}

/// Returns a recorded tensor as f64.
fn tensor(case: &Value, key: &str, shape: &[i64]) -> Tensor {
    let (bits, count) = (text(case, key), shape.iter().product::<i64>() as usize);
    let kind = if bits.len() == 8 * count { Kind::Float } else { Kind::Double };
    from_bits(kind, bits).to_kind(Kind::Double).reshape(shape)
}

/// Returns the recorded integer targets. If `classes` is true, they have the shape of the logits
/// without the dimension of the classes, and otherwise the shape of the logits.
fn target(case: &Value, classes: bool) -> Tensor {
    let mut shape = shape(case);
    if classes {
        shape.remove(1);
    }
    let of: Vec<i64> = serde_json::from_value(case["target"].clone()).expect("integers");
    Tensor::from_slice(&of).reshape(shape)
}

/// Returns the value of the metric for one batch.
fn measure(metric: &dyn Metric, output: &Tensor, target: &Tensor) -> Result<f64> {
    Ok(metric.measure(output, target)?.double_value(&[]))
}

/// Asserts that the metric has the expected value. The tolerance allows for the rounding of
/// torchmetrics, which divides in f32.
#[track_caller]
fn assert_metric(
    metric: &dyn Metric,
    output: &Tensor,
    target: &Tensor,
    expected: f64,
) -> Result<()> {
    let seen = measure(metric, output, target)?;
    assert!((seen - expected).abs() < 1e-6, "{seen}, not {expected}");
    Ok(())
}

#[track_caller]
fn assert_near(seen: &Tensor, expected: f64) {
    let seen = seen.double_value(&[]);
    assert!((seen - expected).abs() < 1e-12 * expected.abs().max(1.0), "{seen}, not {expected}");
}

#[test]
fn classes_of_every_shape_equal_torchs() -> Result<()> {
    let oracle = oracle!("classes.json");
    for case in list(&oracle, "classes") {
        let (logits, of) = (tensor(case, "logits", &shape(case)), target(case, true));
        let leaf = logits.detach().copy().set_requires_grad(true);
        let loss = loss::cross_entropy(&leaf, &of)?;
        assert_near(&loss, number(case, "cross_entropy"));
        loss.backward();
        let expected = tensor(case, "grad", &shape(case));
        assert!(relative(&leaf.grad(), &wide(&expected)) < 1e-12, "{}", text(case, "name"));
        let log_probabilities = logits.log_softmax(1, Kind::Double);
        assert_near(&loss::nll_loss(&log_probabilities, &of)?, number(case, "nll_loss"));

        let (num_classes, k) = (logits.size()[1], integer(case, "k"));
        assert_metric(&Accuracy, &logits, &of, number(case, "accuracy"))?;
        assert_metric(&TopK { k }, &logits, &of, number(case, "top_k"))?;
        assert_metric(&F1 { num_classes }, &logits, &of, number(case, "f1"))?;
    }
    Ok(())
}

/// Logits whose last dimension contains the classes give the same loss and metrics as torch
/// computes from logits whose second dimension contains the classes.
#[test]
fn classes_last_are_flattened() -> Result<()> {
    let oracle = oracle!("classes.json");
    for case in list(&oracle, "classes") {
        let (logits, of) = (tensor(case, "logits", &shape(case)), target(case, true));
        let last = logits.movedim([1].as_slice(), [-1].as_slice());
        assert_near(&loss::cross_entropy(&last, &of)?, number(case, "cross_entropy"));
        assert_metric(&Accuracy, &last, &of, number(case, "accuracy"))?;
        let num_classes = logits.size()[1];
        assert_metric(&F1 { num_classes }, &last, &of, number(case, "f1"))?;
    }
    Ok(())
}

#[test]
fn binary_targets_equal_torchs() -> Result<()> {
    let oracle = oracle!("classes.json");
    for case in list(&oracle, "binary") {
        let (logits, of) = (tensor(case, "logits", &shape(case)), target(case, false));
        let floating = of.clamp_min(0).to_kind(Kind::Double);
        let loss = loss::binary_cross_entropy_with_logits(&logits, &floating)?;
        assert_near(&loss, number(case, "loss"));
        assert_metric(&BinaryAccuracy, &logits, &of, number(case, "accuracy"))?;
        let floating = of.to_kind(Kind::Float);
        assert_metric(&BinaryAccuracy, &logits, &floating, number(case, "accuracy"))?;
    }
    Ok(())
}

#[test]
fn probabilities_of_classes_equal_torchs() -> Result<()> {
    let oracle = oracle!("classes.json");
    for case in list(&oracle, "soft") {
        let (logits, of) =
            (tensor(case, "logits", &shape(case)), tensor(case, "target", &shape(case)));
        let leaf = logits.detach().copy().set_requires_grad(true);
        let loss = loss::cross_entropy(&leaf, &of)?;
        assert_near(&loss, number(case, "cross_entropy"));
        loss.backward();
        assert!(relative(&leaf.grad(), &wide(&tensor(case, "grad", &shape(case)))) < 1e-12);
        assert_metric(&SoftAccuracy, &logits, &of, number(case, "accuracy"))?;
    }
    Ok(())
}

#[test]
fn losses_of_elements_equal_torchs() -> Result<()> {
    let oracle = oracle!("classes.json");
    for case in list(&oracle, "regression") {
        let (output, target) =
            (tensor(case, "output", &shape(case)), tensor(case, "target", &shape(case)));
        assert_near(&loss::mse_loss(&output, &target)?, number(case, "mse_loss"));
        assert_near(&loss::l1_loss(&output, &target)?, number(case, "l1_loss"));
        assert_near(&loss::huber_loss(&output, &target)?, number(case, "huber_loss"));
    }
    Ok(())
}

type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;

fn zeros(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::zeros(shape, (kind, Device::Cpu))
}

/// Element-wise losses refuse an output and a target of different shapes instead of broadcasting
/// them. They also refuse integer targets.
#[rstest]
fn losses_of_elements_refuse_other_shapes_and_dtypes(
    #[values(
        ("mse_loss", loss::mse_loss as Loss),
        ("l1_loss", loss::l1_loss as Loss),
        ("huber_loss", loss::huber_loss as Loss),
        ("binary_cross_entropy", loss::binary_cross_entropy as Loss),
        ("binary_cross_entropy_with_logits", loss::binary_cross_entropy_with_logits as Loss)
    )]
    (name, loss): (&str, Loss),
) {
    let said = message(loss(&zeros(&[4, 1], Kind::Float), &zeros(&[4], Kind::Float)));
    let start = format!("{name}: the output is float32 [4, 1] and the target float32 [4]: ");
    assert!(said.starts_with(&start) && said.contains("`output.view([4])`"), "{said}");
    let said = message(loss(&zeros(&[4, 3], Kind::Float), &zeros(&[3], Kind::Float)));
    assert!(said.ends_with("both must have the same shape"), "{said}");
    let said = message(loss(&zeros(&[4, 3], Kind::Float), &zeros(&[1], Kind::Float)));
    assert!(said.ends_with("both must have the same shape"), "{said}");
    for kind in [Kind::Int64, Kind::Int, Kind::Bool] {
        let said = message(loss(&zeros(&[4], Kind::Half), &zeros(&[4], kind)));
        assert!(said.contains("float16 [4]") && said.contains("`target.to_kind("), "{said}");
    }
}

/// If target and output have different dtypes, the loss is computed in the wider dtype. libtorch
/// would compute such a loss and then refuse to compute its gradient.
#[rstest]
#[case(Kind::Float, Kind::BFloat16, Kind::Float)]
#[case(Kind::BFloat16, Kind::Float, Kind::Float)]
#[case(Kind::Half, Kind::BFloat16, Kind::Float)]
#[case(Kind::Float, Kind::Double, Kind::Double)]
fn targets_of_another_dtype_use_the_wider_one(
    #[case] output: Kind,
    #[case] target: Kind,
    #[case] expected: Kind,
) -> Result<()> {
    for loss in [loss::mse_loss as Loss, loss::l1_loss as Loss, loss::huber_loss as Loss] {
        let leaf = Tensor::from_slice(&[1.0, -2.0]).to_kind(output).set_requires_grad(true);
        let loss = loss(&leaf, &Tensor::from_slice(&[0.5, 0.5]).to_kind(target))?;
        assert_eq!(loss.kind(), expected);
        loss.backward();
        assert_eq!(leaf.grad().kind(), output);
    }
    Ok(())
}

#[rstest]
#[case::integers_of_32_bits(&[4, 3], &[4], Kind::Int, "classes must be int64: convert")]
#[case::floats(&[4, 3], &[4], Kind::Float, "classes must be int64, as `target.to_kind(Kind::Int64)`")]
#[case::a_column(&[4, 3], &[4, 1], Kind::Int64, "logits must be [N, C, …] for classes [N, …]")]
#[case::one_logit(&[4, 1], &[4], Kind::Int64, "use binary_cross_entropy_with_logits, and binary_accuracy")]
#[case::one_logit_flat(&[4], &[4], Kind::Int64, "a dimension for examples and one for classes")]
#[case::other_examples(&[4, 3], &[5], Kind::Int64, "logits must be [N, C, …]")]
#[case::both_ways(&[4, 5, 5], &[4, 5], Kind::Int64, "or `classes = last` in the attribute")]
#[case::images_both_ways(&[2, 3, 3, 3], &[2, 3, 3], Kind::Int64, "or `classes = last` in the attribute")]
fn classes_that_do_not_fit_are_refused(
    #[case] of_output: &[i64],
    #[case] of_target: &[i64],
    #[case] kind: Kind,
    #[case] why: &str,
) {
    let (output, target) = (zeros(of_output, Kind::Float), zeros(of_target, kind));
    let num_classes = 3;
    let said = [
        message(loss::cross_entropy(&output, &target)),
        message(loss::nll_loss(&output, &target)),
        message(Accuracy.update(&output, &target)),
        message(TopK { k: 1 }.update(&output, &target)),
        message(F1 { num_classes }.update(&output, &target)),
    ];
    let names = ["cross_entropy", "nll_loss", "accuracy", "top_k", "f1"];
    for (said, name) in said.iter().zip(names) {
        let shapes = format!("{name}: the output is float32 {of_output:?} and the target");
        assert!(said.starts_with(&shapes) && said.contains(why), "{said}");
    }
}

/// Targets with a class number that is out of range are refused. torch's error for such a target is
/// unclear, and metrics would count the example as a wrong prediction.
#[rstest]
#[case(3)]
#[case(-1)]
fn classes_out_of_range_are_refused(#[case] class: i64) {
    let (output, target) = (zeros(&[2, 3], Kind::Float), Tensor::from_slice(&[0, class]));
    let said = [
        message(loss::cross_entropy(&output, &target)),
        message(loss::nll_loss(&output, &target)),
        message(Accuracy.update(&output, &target)),
        message(TopK { k: 1 }.update(&output, &target)),
        message(F1 { num_classes: 3 }.update(&output, &target)),
    ];
    for said in said {
        let class = class.to_string();
        assert!(said.contains("float32 [2, 3]") && said.contains(&class), "{said}");
    }
}

#[test]
fn metrics_refuse_targets_of_another_kind() {
    let (logits, mask) = (zeros(&[3, 3], Kind::Float), zeros(&[3, 3], Kind::Float));
    let said = message(Accuracy.update(&logits, &mask));
    assert!(said.contains("use soft_accuracy, and for masks"), "{said}");
    let said =
        message(BinaryAccuracy.update(&zeros(&[3, 1], Kind::Float), &zeros(&[3], Kind::Float)));
    assert!(said.contains("`output.view([3])`"), "{said}");
    let said =
        message(SoftAccuracy.update(&zeros(&[3, 1], Kind::Float), &zeros(&[3, 1], Kind::Float)));
    assert!(said.contains("at least two classes"), "{said}");
    let classes = zeros(&[3], Kind::Int64);
    let said = message(SoftAccuracy.update(&logits, &classes));
    assert!(said.ends_with("for targets that are classes use accuracy"), "{said}");
    let said = message(TopK { k: 4 }.update(&logits, &classes));
    assert!(said.contains("k is 4, but there are 3 classes"), "{said}");
    let said = message(F1 { num_classes: 4 }.update(&logits, &classes));
    assert!(said.contains("num_classes is 4, but the output has 3 classes"), "{said}");
}

/// Checks that code can create a metric without options by its type alone.
#[test]
fn metrics_without_options_have_a_default() -> Result<()> {
    fn of<M: Metric + Default>(target: &Tensor) -> Result<f64> {
        measure(&M::default(), &Tensor::from_slice2(&[[2.0, 1.0], [2.0, 1.0]]), target)
    }
    assert_eq!(of::<Accuracy>(&Tensor::from_slice(&[0_i64, 1]))?, 0.5);
    assert_eq!(of::<SoftAccuracy>(&Tensor::from_slice2(&[[0.9, 0.1], [0.2, 0.8]]))?, 0.5);
    assert_eq!(of::<BinaryAccuracy>(&Tensor::from_slice2(&[[1.0, 1.0], [1.0, 0.0]]))?, 0.75);
    Ok(())
}

/// Binary targets below 0 or above 1 are refused. Labels of -1 and 1 are a common mistake, with
/// which the loss has no minimum.
#[rstest]
#[case(&[-1.0, 1.0])]
#[case(&[0.0, 2.0])]
fn binary_targets_are_probabilities(#[case] target: &[f64]) {
    let said = message(loss::binary_cross_entropy_with_logits(
        &zeros(&[2], Kind::Double),
        &Tensor::from_slice(target),
    ));
    assert!(said.contains("targets must be from 0 to 1"), "{said}");
}

/// The function of a `Mean` must return one value for each example. If it returned one value per
/// batch, small batches would have the same weight as large ones.
#[test]
fn a_mean_takes_a_value_for_each_example() -> Result<()> {
    let (output, target) = (zeros(&[3, 2], Kind::Float), zeros(&[3], Kind::Int64));
    let whole = |output: &Tensor, _: &Tensor| Ok(output.f_mean(Kind::Float)?);
    let said = message(Mean { of: whole }.update(&output, &target));
    assert!(said.contains("the function returned []"), "{said}");
    let two = |output: &Tensor, _: &Tensor| Ok(output.f_narrow(0, 0, 2)?.f_select(1, 0)?);
    let said = message(Mean { of: two }.update(&output, &target));
    assert!(said.contains("the function returned [2]"), "{said}");
    let each = |output: &Tensor, _: &Tensor| Ok(output.f_flatten(0, 1)?);
    assert_eq!(measure(&Mean { of: each }, &output, &target)?, 0.0);
    Ok(())
}
