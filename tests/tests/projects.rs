//! Every project trains under every precision, on the device in `AMP_DEVICE` or on the CPU.

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
use fixtures::{registry, without_projects};
use rstest::rstest;

/// The projects in the order of the registry. Each has a PyTorch twin.
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
#[case::lstm("LstmForecaster", 2)]
#[case::image_folder("ResNet", 4)]
#[case::tabular("TabularNet", 2)]
#[case::two_tower("TwoTower", 2)]
#[case::wgan("WganGp", 2)]
#[case::unet("UNet", 2)]
#[case::bert("Bert", 2)]
#[case::diffusion("Diffusion", 2)]
#[case::vit("VisionTransformer", 2)]
#[case::gpt2("Gpt2", 2)]
fn trains_under_every_precision(#[case] name: &str, #[case] epochs: i64) {
    let device = std::env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let device = parse_device(&device).expect("AMP_DEVICE names a device of this machine");
    let registry = registry();
    let model = registry.find(Some(name)).expect("a model of this name");
    let choices = Choices { length: Some(Length::Epochs(epochs)), seed: 1, ..Choices::default() };
    let case = Case::new(&registry, model, choices, device).expect("a case");
    for precision in Precision::ALL {
        let mut ignore = |_: &Event| Ok(());
        let record = runner::run(&case, precision, Extras::default(), &mut ignore).expect("a run");
        // The loss is the mean over an epoch's batches. Models that optimize manually log their
        // validation loss.
        let loss = |epoch: &EpochEnd| {
            epoch.value("train_loss").or_else(|| epoch.value("val_loss")).expect("a loss")
        };
        let losses: Vec<f64> = record.epochs.iter().map(loss).collect();
        assert!(losses[losses.len() - 1] < losses[0], "{precision}: {losses:?}");
        let seen: Vec<&str> = record.observed.matmul.iter().map(String::as_str).collect();
        assert_eq!(seen, [dtype_name(precision.compute())], "{precision}");
    }
}
