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
use fixtures::{own_process, registry, without_projects};
use rstest::rstest;
use serde_json::{Value, json};

/// The projects in the order of the registry. Each has a PyTorch version.
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

/// Counts the lines of a project's file that contain code and are not imports.
fn lines_of_code(source: &str) -> usize {
    let mut imports = false;
    let counts = |line: &&str| {
        let line = line.trim();
        imports |= line.starts_with("use ");
        let is_import = imports;
        imports &= !line.ends_with(';');
        !(is_import || line.is_empty() || line.starts_with("//"))
    };
    source.lines().filter(counts).count()
}

#[test]
fn a_project_has_at_most_150_lines_of_code() {
    assert_eq!(lines_of_code("//! It.\nuse a::{\n    b,\n};\n\nfn main() {\n    // Runs.\n}\n"), 2);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/src/projects");
    let files = std::fs::read_dir(folder).expect("the projects").map(|file| file.expect("a file"));
    let sources = files.map(|file| file.path()).filter(|path| {
        path.extension().is_some_and(|end| end == "rs") && !path.ends_with("mod.rs")
    });
    let sources: Vec<_> = sources.collect();
    assert_eq!(sources.len(), NAMES.len());
    for path in sources {
        let lines = lines_of_code(&std::fs::read_to_string(&path).expect("a source"));
        assert!((10..=150).contains(&lines), "{}: {lines}", path.display());
    }
}

/// Every project trains under every precision: the loss falls from the first to the last epoch, and
/// the matrix products run in the dtype of the precision.
#[rstest]
#[case::lstm("LstmForecaster", 2, json!({}))]
// With the width in the registry, ResNet would need 45 seconds of CPU time, nearly all of it for
// convolutions in f16, so the test uses a smaller width. The diffusion model and GPT-2 are smaller
// for the same reason.
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
        // Models with manual optimization log no training loss, so the validation loss is used for
        // them.
        let loss = |epoch: &EpochEnd| {
            epoch.value("train_loss").or_else(|| epoch.value("val_loss")).expect("a loss")
        };
        let losses: Vec<f64> = record.epochs.iter().map(loss).collect();
        assert!(losses[losses.len() - 1] < losses[0], "{precision}: {losses:?}");
        let seen: Vec<&str> = record.observed.matmul.iter().map(String::as_str).collect();
        assert_eq!(seen, [dtype_name(precision.compute())], "{precision}");
    }
}
