//! Every model trains under every precision, on the device in `AMP_DEVICE` or on the CPU.

use amp_core::{
    data::Limit,
    event::Event,
    hardware::parse_device,
    precision::{Precision, dtype_name},
};
use amp_verify::{
    case::{Case, Choices},
    registry::Length,
    runner::{self, Extras},
};
use fixtures::{own_process, registry, without_projects};
use rstest::rstest;

const NAMES: [&str; 13] = [
    "MixedPrecisionDemo",
    "AdvancedAMPModel",
    "ManualAMPModel",
    "DebuggingAMPModel",
    "ProductionAMPModel",
    "PrecisionTestModel",
    "MemoryEfficientModel",
    "GradientAccumulationModel",
    "RobustAMPModel",
    "ProfilingAMPModel",
    "DigitsConvNet",
    "CharTransformer",
    "GPT2LMHeadModel",
];

#[test]
fn no_model_is_left_out() {
    let registry = without_projects();
    assert_eq!(registry.models().map(|model| model.name()).collect::<Vec<_>>(), NAMES);
}

/// The validation loss falls within two epochs of at most 60 steps, no step is skipped, and the matrix products run in
/// the dtype of the precision.
#[rstest]
#[case::mixed_precision_demo("MixedPrecisionDemo")]
#[case::advanced("AdvancedAMPModel")]
#[case::manual("ManualAMPModel")]
#[case::debugging("DebuggingAMPModel")]
#[case::production("ProductionAMPModel")]
#[case::precision_test("PrecisionTestModel")]
#[case::memory_efficient("MemoryEfficientModel")]
#[case::gradient_accumulation("GradientAccumulationModel")]
#[case::robust("RobustAMPModel")]
#[case::profiling("ProfilingAMPModel")]
#[case::digits_conv_net("DigitsConvNet")]
#[case::char_transformer("CharTransformer")]
#[case::gpt2("GPT2LMHeadModel")]
fn trains_under_every_precision(#[case] name: &str) {
    if own_process::passed() {
        return;
    }
    let device = std::env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let device = parse_device(&device).expect("AMP_DEVICE names a device of this machine");
    let registry = registry();
    let model = registry.find(Some(name)).expect("a model of this name");
    let choices = Choices { length: Some(Length::Epochs(2)), seed: 1, ..Choices::default() };
    let mut case = Case::new(&registry, model, choices, device).expect("a case");
    case.trainer.loops.limit_train_batches = Limit::Batches(60);
    for precision in Precision::ALL {
        let mut ignore = |_: &Event| Ok(());
        let record = runner::run(&case, precision, Extras::default(), &mut ignore).expect("a run");
        let losses: Vec<f64> = record
            .epochs
            .iter()
            .flat_map(|epoch| epoch.val.iter().filter(|logged| logged.name == "val_loss"))
            .map(|logged| logged.value)
            .collect();
        assert_eq!(losses.len(), 2, "{precision}");
        assert!(losses[1] < losses[0], "{precision}: validation loss {losses:?} did not fall");
        assert_eq!(record.end.skipped, 0, "{precision}");
        let seen: Vec<&str> = record.observed.matmul.iter().map(String::as_str).collect();
        assert_eq!(seen, [dtype_name(precision.compute())], "{precision}");
        assert!(record.last(model.judge().name).is_some_and(|value| value > 0.0), "{precision}");
    }
}
