//! Compares the metric with known sums, for single batches and for an epoch with batches of unequal
//! size.

use amp_core::{metric::Metric, nn::named_tensors, optim::Sgd, prelude::*, tch::no_grad};
use amp_verify::{DataSet, Registry, model, project};
use own_metric::MeanAbsoluteError;

fn counts(output: &Tensor, target: &Tensor) -> (f64, f64) {
    let state = MeanAbsoluteError.update(output, target).expect("counts");
    let [sum] = state.tensors().expect("tensors").try_into().expect("one sum");
    assert_eq!((sum.kind(), sum.numel()), (Kind::Double, 1));
    (sum.double_value(&[]), state.weight())
}

#[test]
fn counts_are_the_sum_and_the_number_of_elements() {
    let output = Tensor::from_slice(&[1.0_f32, -2.0, 0.5, 4.0]).view([2, 2]);
    let target = Tensor::from_slice(&[0.5_f32, -4.0, 0.5, 7.0]).view([2, 2]);
    assert_eq!(counts(&output, &target), (0.5 + 2.0 + 0.0 + 3.0, 4.0));
}

/// The differences 2048 − 1 and 2048 + 1 are computed exactly. float16 cannot represent 2049, so
/// computing in float16 would round the second difference to 2048.
#[test]
fn a_difference_of_16_bit_numbers_is_not_rounded() {
    let half = |values: &[f32]| Tensor::from_slice(values).to_kind(Kind::Half);
    let (sum, weight) = counts(&half(&[2048.0, 2048.0]), &half(&[1.0, -1.0]));
    assert_eq!((sum, weight), (2047.0 + 2049.0, 2.0));
}

#[test]
fn shapes_that_would_broadcast_are_refused() {
    let tensor = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let error = MeanAbsoluteError.update(&tensor(&[4, 1]), &tensor(&[4])).expect_err("shapes");
    assert!(error.to_string().ends_with("the output has shape [4, 1], the target [4]"), "{error}");
}

/// The model y = w·x + b. Its learning rate is zero, so that training does not change it.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[metric(with = MeanAbsoluteError, name = mae)]
#[configure_optimizers(Self::nothing_moves)]
struct Line {
    #[layer(linear(1, 1))]
    line: Linear,
}

impl Line {
    fn nothing_moves(&self, _: &TrainingPlan) -> Result<OptimizerConfig> {
        Ok(OptimizerConfig::new(Sgd { lr: 0.0, ..Default::default() }))
    }

    /// Returns a model with the weights of the line y = 2·x + 1.
    fn known() -> Self {
        let model = Self::builder().build().expect("a model");
        for (name, mut tensor, _) in named_tensors(&model) {
            let value = if name == "line.weight" { 2.0 } else { 1.0 };
            let _ = no_grad(|| tensor.fill_(value));
        }
        model
    }
}

/// Returns how far the target of the example at `at` is above the line.
fn error(at: i64) -> f32 {
    [0.0, 1.0, -0.5, 3.0, 0.25][(at % 5) as usize]
}

fn examples(count: i64) -> Result<Batch> {
    let column = |of: &dyn Fn(i64) -> f32| -> Result<Tensor> {
        let values: Vec<f32> = (0..count).map(of).collect();
        Ok(Tensor::f_from_slice(&values)?.f_view([count, 1])?)
    };
    let x = |at: i64| at as f32 / 8.0;
    Batch::new(column(&x)?, column(&|at| 2.0 * x(at) + 1.0 + error(at))?)
}

fn line(batch_size: i64) -> Result<DataModule> {
    Ok(DataModule::new("line", examples(40)?, examples(13)?, batch_size))
}

/// The epoch's value is the mean over all 13 validation examples, and not the mean of the means of
/// the two batches (8 and 5 examples).
#[test]
fn an_epochs_value_is_the_mean_over_its_examples() {
    let mut model = Line::known();
    let mut config = TrainerConfig::new(Precision::F32True, Device::Cpu);
    config.max_epochs = 1;
    let record = Trainer::new(config).fit(&mut model, &line(8).expect("data")).expect("a run");
    let mean = |range: std::ops::Range<i64>| {
        let count = (range.end - range.start) as f64;
        range.map(|at| f64::from(error(at).abs())).sum::<f64>() / count
    };
    let (whole, of_means) = (mean(0..13), (mean(0..8) + mean(8..13)) / 2.0);
    let found = record.last("val_mae").expect("val_mae");
    assert!((found - whole).abs() < 1e-6, "{found} is not {whole}");
    assert!((whole - of_means).abs() > 0.01, "the mean of the batches' means is another value");
    let train = record.last("train_mae").expect("train_mae");
    assert!((train - mean(0..40)).abs() < 1e-6, "{train}");
}

/// If a model in the registry has this metric, the gate compares the model by it. Lower values are
/// better.
#[test]
fn a_registered_model_is_judged_by_it() {
    let registry = Registry::new(project!())
        .data_set(DataSet::new("line", line))
        .model(model!(Line).error_metric("val_mae"));
    registry.check().expect("a registry");
    let judge = registry.find(Some("Line")).expect("the model").judge();
    assert_eq!((judge.name, judge.direction.is_higher()), ("val_mae", false));
    assert_eq!(judge.direction.regression(0.5, 0.75), 0.25, "how much worse 0.75 is than 0.5");
}

/// The code in the README equals the crate's code.
#[test]
fn the_page_shows_the_code() {
    let (page, code) = (include_str!("../README.md"), include_str!("../src/lib.rs"));
    let block = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    assert!(code.contains(block.expect("a block of Rust")), "src/lib.rs has other code");
}
