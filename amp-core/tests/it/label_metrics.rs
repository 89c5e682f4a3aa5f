//! Tests of binary metrics, whose labels are 0 or 1: examples with several labels (multilabel), and
//! ignored labels.

use amp_core::{
    Result,
    metric::{Auroc, Average, AveragePrecision, BinaryRecall, Metric, MultilabelAuroc, ReadAs},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::message;

fn values(value: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(value.reshape([-1])).expect("numbers")
}

/// `Auroc` and `AveragePrecision` refuse examples with several labels, because each label has its
/// own area under the curve. With `Average::Micro`, `Auroc` computes one area from all labels. If
/// each example has a single label, `average` has no effect.
#[rstest]
fn curves_of_several_labels_are_not_joined_in_silence(
    #[values(None, Some(7))] thresholds: Option<i64>,
    #[values(Average::Macro, Average::Weighted, Average::None)] average: Average,
) -> Result<()> {
    let logits = Tensor::from_slice(&[3.0_f32, -2.0, 1.0, -1.0, 2.0, -3.0]).reshape([3, 2]);
    let labels = Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 1.0, 1.0, 0.0]).reshape([3, 2]);
    let said = message(AveragePrecision { average, thresholds }.update(&logits, &labels));
    assert!(said.contains("each example has 2 labels: use multilabel_average_precision"), "{said}");
    let said = message(Auroc { average, thresholds }.update(&logits, &labels));
    assert!(said.contains("average = micro for one area of all labels together"), "{said}");
    let micro = Auroc { average: Average::Micro, thresholds };
    let flat = Auroc { average, thresholds };
    let (column, row) = ([6, 1].as_slice(), [6].as_slice());
    let joined = values(&micro.measure(&logits, &labels)?);
    for shape in [column, row] {
        assert_eq!(values(&flat.measure(&logits.view(shape), &labels.view(shape))?), joined);
    }
    Ok(())
}

/// For a label without positive examples, the area under the ROC curve is NaN. The average over
/// labels leaves it out.
#[rstest]
fn a_label_without_positives_is_left_out(
    #[values(None, Some(7))] thresholds: Option<i64>,
) -> Result<()> {
    let logits = Tensor::from_slice(&[3.0_f32, -2.0, 1.0, -1.0, 2.0, -3.0]).reshape([3, 2]);
    let labels = Tensor::from_slice(&[1_i64, 0, 0, 0, 1, 0]).reshape([3, 2]);
    let of = |average| {
        Ok::<_, amp_core::Error>(values(
            &MultilabelAuroc { average, thresholds }.measure(&logits, &labels)?,
        ))
    };
    assert_eq!((of(Average::Macro)?, of(Average::Weighted)?), (vec![1.0], vec![1.0]));
    let each = of(Average::None)?;
    assert!(each[0] == 1.0 && each[1].is_nan(), "{each:?}");
    Ok(())
}

/// `ignore_index` has an effect on labels of every dtype.
#[rstest]
#[case::curve(&ReadAs { ignore_index: 3, ..ReadAs::from(Auroc::default()) })]
#[case::labels(&BinaryRecall { ignore_index: 3, ..Default::default() })]
fn an_ignored_label_of_any_dtype_is_left_out(
    #[case] metric: &dyn Metric,
    #[values(Kind::Float, Kind::Double, Kind::Int64, Kind::Int, Kind::Uint8)] kind: Kind,
) -> Result<()> {
    let logits = Tensor::from_slice(&[0.5_f32, -1.0, 2.0, -3.0]);
    let labels = Tensor::from_slice(&[1_i64, 0, 1, 3]).to_kind(kind);
    assert_eq!(metric.measure(&logits, &labels)?.double_value(&[]), 1.0);
    Ok(())
}
