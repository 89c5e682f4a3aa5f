//! Tests of the values that steps log, and of how these values are reduced to one value per step or
//! epoch.

use amp_core::{
    Result,
    log::{Log, LogOptions, Logged},
    metric::{Accuracy, Metric, MetricState, Reduction},
    tch::{Device, Kind, Tensor},
};

use crate::support::message;

const BOTH: LogOptions = LogOptions { on_step: true, on_epoch: true, prog_bar: false };

fn only(values: Vec<Logged>) -> f64 {
    assert_eq!(values.len(), 1);
    values[0].value
}

/// The value of an epoch is the mean over its examples, so a smaller last batch has a smaller
/// weight.
#[test]
fn the_epochs_mean_weighs_batches_by_their_examples() -> Result<()> {
    let mut log = Log::default();
    log.value("loss", &Tensor::from(1.0_f32), 30, BOTH)?;
    log.value("loss", &Tensor::from(5.0_f32), 10, BOTH)?;
    assert_eq!(only(log.epoch_values()?), 2.0);
    assert_eq!(only(log.step_values()?), 5.0, "a step's value is the value of its batch");
    Ok(())
}

/// `on_step` and `on_epoch` decide where a value is reported. `prog_bar` is stored with the value.
/// Values are reported in the order in which they were first logged.
#[test]
fn options_choose_where_a_value_appears() -> Result<()> {
    let mut log = Log::default();
    let one = Tensor::from(1.0_f32);
    log.value("step", &one, 1, LogOptions { on_epoch: false, ..BOTH })?;
    log.value("epoch", &one, 1, LogOptions { on_step: false, ..BOTH })?;
    log.value("bar", &one, 1, LogOptions { prog_bar: true, ..BOTH })?;
    let names = |values: Vec<Logged>| -> Vec<(String, bool)> {
        values.into_iter().map(|logged| (logged.name, logged.prog_bar)).collect()
    };
    assert_eq!(names(log.step_values()?), [("step".into(), false), ("bar".into(), true)]);
    assert_eq!(names(log.epoch_values()?), [("epoch".into(), false), ("bar".into(), true)]);
    Ok(())
}

/// Rule 18 of docs/SEMANTICS.md: values are summed in a wider dtype than the dtype of the values.
/// In f16, a sum of ones would stop at 2048.
#[test]
fn f16_values_are_summed_in_f64() -> Result<()> {
    let mut log = Log::default();
    let third = Tensor::from(1.0_f32 / 3.0).to_kind(Kind::Half);
    for _ in 0..5000 {
        log.value("loss", &third, 7, BOTH)?;
    }
    assert!((only(log.epoch_values()?) - third.double_value(&[])).abs() < 1e-12);
    Ok(())
}

/// A logged loss is a copy without the autograd graph, so later changes of the model do not change
/// it.
#[test]
fn a_logged_value_is_a_copy_without_a_graph() -> Result<()> {
    let mut log = Log::default();
    let loss = Tensor::from_slice(&[2.0_f64]).set_requires_grad(true);
    log.value("loss", &loss, 1, BOTH)?;
    let _ = amp_core::tch::no_grad(|| loss.shallow_clone().fill_(9.0));
    assert_eq!(only(log.step_values()?), 2.0);
    assert_eq!(only(log.epoch_values()?), 2.0);
    Ok(())
}

#[test]
fn only_scalars_can_be_logged() {
    let mut log = Log::default();
    let two = Tensor::zeros([2], (Kind::Float, Device::Cpu));
    let said = message(log.value("activation", &two, 1, BOTH));
    assert_eq!(
        said,
        "log `activation`: a logged value must be a scalar, but has shape [2]: take the mean, as with \
         `value.f_mean(Kind::Float)?`"
    );
}

/// A metric sums its counts over all batches of an epoch. The value for the epoch is computed from
/// these sums, and is not a mean of the values of batches.
#[test]
fn metrics_add_up_their_counts() -> Result<()> {
    let mut log = Log::default();
    let logits = Tensor::from_slice(&[1.0_f32, 0.0]).reshape([1, 2]);
    let label = |class: i64| Tensor::from_slice(&[class]);
    log.metric("acc", &Accuracy, &logits, &label(0), BOTH)?;
    let three = logits.repeat([3, 1]);
    log.metric("acc", &Accuracy, &three, &label(1).repeat([3]), BOTH)?;
    assert_eq!(only(log.epoch_values()?), 0.25);
    assert_eq!(only(log.step_values()?), 0.0);
    Ok(())
}

#[test]
fn an_empty_log_has_no_values() -> Result<()> {
    assert!(Log::default().epoch_values()?.is_empty());
    Ok(())
}

/// A metric whose value is a 2 × 3 tensor.
struct Table;

impl Metric for Table {
    fn update(&self, output: &Tensor, _: &Tensor) -> Result<MetricState> {
        MetricState::sum(output)
    }

    fn reduction(&self) -> Reduction {
        Reduction::of(|tensors| Ok(tensors[0].f_reshape([2, 3])?))
    }
}

/// If the value of a metric is a matrix, each element is logged under a name of its own: the name
/// of the metric, followed by the element's row and column, counted from 0.
#[test]
fn several_values_are_named_by_their_index() -> Result<()> {
    let mut log = Log::default();
    let counts = Tensor::arange(6, (Kind::Double, Device::Cpu));
    log.metric("t", &Table, &counts, &counts, BOTH)?;
    let values = log.epoch_values()?;
    let seen: Vec<_> = values.iter().map(|logged| (logged.name.as_str(), logged.value)).collect();
    let names = ["t_0_0", "t_0_1", "t_0_2", "t_1_0", "t_1_1", "t_1_2"];
    assert_eq!(seen, names.into_iter().zip([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).collect::<Vec<_>>());
    Ok(())
}

/// A metric sums counts over batches. If the counts of a batch have another shape than before, they
/// are refused, because they must belong to another metric.
#[test]
fn counts_of_another_shape_are_refused() -> Result<()> {
    let mut log = Log::default();
    let counts = |size| Tensor::zeros([size], (Kind::Double, Device::Cpu));
    log.metric("t", &Table, &counts(6), &counts(6), BOTH)?;
    let said = message(log.metric("t", &Table, &counts(4), &counts(4), BOTH));
    assert_eq!(
        said,
        "log `t`: the counts of earlier batches have the shape [[6]], but those of this batch have the shape [[4]]"
    );
    Ok(())
}
