//! Counts of predictions and targets, from which metrics of classes and of labels are computed.

use tch::{Kind, Tensor};

use crate::{
    Result, ffi,
    loss::{IGNORED, classes, elementwise, misfit},
    precision::is_floating,
};

/// Counts the correct predictions, the predictions and the targets of each class. The result is f64
/// of shape `[3, C]`. On CUDA all counts are NaN if a class is out of range.
pub(super) fn class_counts(
    what: &str,
    output: &Tensor,
    target: &Tensor,
    num_classes: Option<i64>,
    ignored: i64,
) -> Result<Tensor> {
    let (predicted, of, kept, classes) = predictions(what, output, target, num_classes, ignored)?;
    let one_for_each = |places: &Tensor, counts: &Tensor| {
        Tensor::f_zeros([classes], (Kind::Double, places.device()))?.f_index_add(0, places, counts)
    };
    let hits = predicted.f_eq_tensor(&of)?.f_to_kind(Kind::Double)?.f_mul(&kept)?;
    let counts =
        [one_for_each(&of, &hits)?, one_for_each(&predicted, &kept)?, one_for_each(&of, &kept)?];
    Ok(Tensor::f_stack(&counts, 0)?)
}

/// Returns three flat tensors with one element per target, and the number of classes. The tensors
/// are the predicted classes, the target classes and the weights of the targets. The weight is 0
/// for an ignored target, NaN for a target out of range or with a NaN logit, and otherwise 1. In
/// the returned target classes, an ignored target is class 0.
pub(super) fn predictions(
    what: &str,
    output: &Tensor,
    target: &Tensor,
    num_classes: Option<i64>,
    ignored: i64,
) -> Result<(Tensor, Tensor, Tensor, i64)> {
    if output.dim() > 1 && output.size() == target.size() {
        let why = "targets must be class indices, with one dimension less than the logits: for \
                   several labels per example use multilabel_ metrics, and for masks binary_ metrics";
        return Err(misfit(what, output, target, why));
    }
    let (logits, of) = classes(what, output, target)?;
    let count = logits.size()[1];
    if let Some(expected) = num_classes.filter(|expected| *expected != count) {
        let why = format!("num_classes is {expected}, but the output has {count} classes");
        return Err(misfit(what, output, target, &why));
    }
    let of = match ignored {
        IGNORED => of,
        own => of.f_masked_fill(&of.f_eq(own)?, IGNORED)?,
    };
    let counted = ffi::counted_classes(&of, count);
    let counted = counted.map_err(|error| misfit(what, output, target, &error.to_string()))?;
    let kept = of.f_ne(IGNORED)?.f_to_kind(Kind::Double)?.f_add(&counted.f_mul_scalar(0.0)?)?;
    // A NaN logit makes the metric NaN.
    let kept = kept.f_masked_fill(&have_nan(&logits, &of)?, f64::NAN)?;
    let of = of.f_clamp(0, count - 1)?.f_reshape([-1])?;
    let predicted = logits.f_argmax(1, false)?.f_reshape([-1])?;
    Ok((predicted, of, kept.f_reshape([-1])?, count))
}

/// Returns a mask that is true for the examples with a NaN logit, unless they are ignored.
pub(super) fn have_nan(logits: &Tensor, of: &Tensor) -> Result<Tensor> {
    let nan = logits.f_amax([1].as_slice(), false)?.f_isnan()?;
    Ok(nan.f_logical_and(&of.f_ne(IGNORED)?)?)
}

/// Returns the weights of elements, as f64: 1 where `counted` is true and 0 elsewhere. The weight of
/// a counted element is NaN if its logit or its label is NaN, which makes the metric NaN.
pub(super) fn weights_of_elements(
    logits: &Tensor,
    of: &Tensor,
    counted: &Tensor,
) -> Result<Tensor> {
    let nan = logits.f_isnan()?.f_logical_or(&of.f_isnan()?)?.f_logical_and(counted)?;
    Ok(counted.f_to_kind(Kind::Double)?.f_masked_fill(&nan, f64::NAN)?)
}

/// Returns the numbers of true positives, false positives, true negatives and false negatives, as
/// f64 of shape `[4]`. Logits and labels, which are 0 and 1, have the same shape.
pub(super) fn binary_counts(
    what: &str,
    output: &Tensor,
    target: &Tensor,
    threshold: f64,
    ignored: i64,
) -> Result<Tensor> {
    let outcomes = outcomes(what, output, target, threshold, ignored)?;
    let sums = outcomes.iter().map(|outcome| outcome.f_sum(Kind::Double));
    Ok(Tensor::f_stack(&sums.collect::<Result<Vec<_>, _>>()?, 0)?)
}

/// Returns the counts of [`binary_counts`] for each label, of shape `[4, C]`. Logits and labels have
/// the shape `[N, C, …]`.
pub(super) fn counts_of_labels(
    what: &str,
    output: &Tensor,
    target: &Tensor,
    threshold: f64,
    ignored: i64,
) -> Result<Tensor> {
    let outcomes = outcomes(what, output, target, threshold, ignored)?;
    let sums = outcomes.iter().map(|outcome| {
        let rows = rows_of_labels(what, output, target, outcome)?;
        Ok(rows.f_sum_dim_intlist([0].as_slice(), false, Kind::Double)?)
    });
    Ok(Tensor::f_stack(&sums.collect::<Result<Vec<_>>>()?, 0)?)
}

/// Returns `values`, which has the shape `[N, C, …]` of the output, as a matrix with a column for
/// each of the C labels.
pub(super) fn rows_of_labels(
    what: &str,
    output: &Tensor,
    target: &Tensor,
    values: &Tensor,
) -> Result<Tensor> {
    let shape = values.size();
    let [_, labels, ..] = shape.as_slice() else {
        return Err(misfit(what, output, target, "both must be [N, C, …], with C labels"));
    };
    Ok(values.f_movedim([1].as_slice(), [-1].as_slice())?.f_reshape([-1, *labels])?)
}

/// Returns four f64 tensors in the shape of the logits, which mark the true positives, the false
/// positives, the true negatives and the false negatives with 1, and all other elements with 0. For
/// an ignored element all four are 0, and for a NaN logit or label all four are NaN.
fn outcomes(
    what: &str,
    output: &Tensor,
    target: &Tensor,
    threshold: f64,
    ignored: i64,
) -> Result<[Tensor; 4]> {
    if !(threshold > 0.0 && threshold < 1.0) {
        let why = format!("threshold is {threshold}, but must be a probability between 0 and 1");
        return Err(misfit(what, output, target, &why));
    }
    let (logits, of) = elementwise(what, output, &as_floating(target)?)?;
    let kept = of.f_ne(IGNORED)?.f_logical_and(&of.f_ne(ignored)?)?;
    let kept = weights_of_elements(&logits, &of, &kept)?;
    let predicted = logits.f_gt((threshold / (1.0 - threshold)).ln())?;
    let actual = of.f_gt(0.5)?;
    let both = predicted.f_eq_tensor(&actual)?;
    let weighted = |of: Tensor| -> Result<Tensor> { Ok(of.f_to_kind(Kind::Double)?.f_mul(&kept)?) };
    Ok([
        weighted(both.f_logical_and(&actual)?)?,
        weighted(predicted.f_logical_and(&actual.f_logical_not()?)?)?,
        weighted(both.f_logical_and(&actual.f_logical_not()?)?)?,
        weighted(actual.f_logical_and(&predicted.f_logical_not()?)?)?,
    ])
}

/// Converts labels to a floating-point dtype.
pub(super) fn as_floating(target: &Tensor) -> Result<Tensor> {
    match is_floating(target.kind()) {
        true => Ok(target.shallow_clone()),
        false => Ok(target.f_to_kind(Kind::Float)?),
    }
}
