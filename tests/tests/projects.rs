//! Every project trains under every precision, on the device of `AMP_DEVICE` or the CPU.

use amp_core::{
    event::Event,
    hardware::parse_device,
    precision::{Precision, dtype_name},
};
use amp_verify::{
    case::{Case, Choices},
    runner::{self, Extras},
};
use fixtures::{registry, without_projects};
use rstest::rstest;

/// In the order of the registry. Each has its PyTorch twin.
const NAMES: [&str; 9] = [
    "LstmForecaster",
    "ResNet",
    "TabularNet",
    "TwoTower",
    "WganGp",
    "UNet",
    "Bert",
    "Diffusion",
    "VisionTransformer",
];

#[test]
fn no_project_is_left_out() {
    let (all, others) = (registry(), without_projects().models().count());
    assert_eq!(all.models().skip(others).map(|model| model.name()).collect::<Vec<_>>(), NAMES);
}

/// Two epochs train, and the matrix products run in the dtype of the precision's name.
#[rstest]
#[case::lstm("LstmForecaster")]
#[case::image_folder("ResNet")]
#[case::tabular("TabularNet")]
#[case::two_tower("TwoTower")]
#[case::wgan("WganGp")]
#[case::unet("UNet")]
#[case::bert("Bert")]
#[case::diffusion("Diffusion")]
#[case::vit("VisionTransformer")]
fn trains_under_every_precision(#[case] name: &str) {
    let device = std::env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let device = parse_device(&device).expect("AMP_DEVICE names a device of this machine");
    let registry = registry();
    let model = registry.find(Some(name)).expect("a model of this name");
    let choices = Choices { epochs: Some(2), seed: 1, ..Choices::default() };
    let case = Case::new(&registry, model, choices, device).expect("a case");
    for precision in Precision::ALL {
        let mut ignore = |_: &Event| Ok(());
        let record = runner::run(&case, precision, Extras::default(), &mut ignore).expect("a run");
        let judged =
            |epoch: usize| record.epochs[epoch].value(model.judge().name).expect("a value");
        let gained = model.judge().direction.regression(judged(1), judged(0));
        assert!(gained > 0.0, "{precision}: no better after the second epoch: {gained}");
        let seen: Vec<&str> = record.observed.matmul.iter().map(String::as_str).collect();
        assert_eq!(seen, [dtype_name(precision.compute())], "{precision}");
    }
}
