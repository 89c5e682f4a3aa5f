//! Every project trains under every precision, on the device of `AMP_DEVICE` or the CPU.

use amp_core::{
    event::{EpochEnd, Event},
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
use serde_json::{Value, json};

/// In the order of the registry. Each has its PyTorch twin.
const NAMES: [&str; 10] = [
    "LstmForecaster",
    "ResNet",
    "TabularNet",
    "TwoTower",
    "WganGp",
    "UNet",
    "Bert",
    "Diffusion",
    "VisionTransformer",
    "Gpt2",
];

#[test]
fn no_project_is_left_out() {
    let (all, others) = (registry(), without_projects().models().count());
    assert_eq!(all.models().skip(others).map(|model| model.name()).collect::<Vec<_>>(), NAMES);
}

/// The loss falls from the first to the last epoch, and the matrix products run in the dtype of the
/// precision.
#[rstest]
#[case::lstm("LstmForecaster", 2, json!({}))]
// The registered width takes 45 seconds of CPU time, nearly all of them in convolutions in f16. The diffusion
// and the GPT-2 are small for the same reason.
#[case::image_folder("ResNet", 4, json!({ "width": 8 }))]
#[case::tabular("TabularNet", 2, json!({}))]
#[case::two_tower("TwoTower", 2, json!({}))]
#[case::wgan("WganGp", 2, json!({}))]
#[case::unet("UNet", 2, json!({}))]
#[case::bert("Bert", 2, json!({}))]
#[case::diffusion("Diffusion", 2, json!({ "width": 8 }))]
#[case::vit("VisionTransformer", 2, json!({}))]
#[case::gpt2("Gpt2", 2, json!({ "n_embd": 32, "n_head": 2, "n_layer": 1 }))]
fn trains_under_every_precision(#[case] name: &str, #[case] epochs: i64, #[case] changes: Value) {
    if own_process::passed() {
        return;
    }
    let device = std::env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let device = parse_device(&device).expect("AMP_DEVICE names a device of this machine");
    let registry = registry();
    let model = registry.find(Some(name)).expect("a model of this name");
    let set = serde_json::from_value(changes).expect("hyperparameters");
    let length = Some(Length::Epochs(epochs));
    let choices = Choices { length, set, seed: 1, ..Choices::default() };
    let case = Case::new(&registry, model, choices, device).expect("a case");
    for precision in Precision::ALL {
        let mut ignore = |_: &Event| Ok(());
        let record = runner::run(&case, precision, Extras::default(), &mut ignore).expect("a run");
        // The mean over an epoch's batches; models that optimize manually log their validation
        // loss.
        let loss = |epoch: &EpochEnd| {
            epoch.value("train_loss").or_else(|| epoch.value("val_loss")).expect("a loss")
        };
        let losses: Vec<f64> = record.epochs.iter().map(loss).collect();
        assert!(losses[losses.len() - 1] < losses[0], "{precision}: {losses:?}");
        let seen: Vec<&str> = record.observed.matmul.iter().map(String::as_str).collect();
        assert_eq!(seen, [dtype_name(precision.compute())], "{precision}");
    }
}
