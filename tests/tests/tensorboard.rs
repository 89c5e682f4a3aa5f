//! Compares the values of a run with those that TensorBoard reads from the run's event files.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
};

use amp_core::{
    Result,
    event::{Event, Subscriber},
    log::{Histogram, Image, Media},
    logger::{MemoryLogger, TensorBoardLogger},
    precision::Precision,
    tch::{Device, Kind, Tensor},
};
use amp_verify::{
    case::{Case, Choices},
    registry::Length,
    runner::{self, Extras},
};
use fixtures::registry;
use serde::Deserialize;

/// The contents of a run's event files, in the form in which `read_tensorboard.py` prints them.
#[derive(Deserialize)]
struct Run {
    scalars: BTreeMap<String, Vec<(u64, f64)>>,
    hparams: BTreeMap<String, serde_json::Value>,
    ended: bool,
    #[serde(flatten)]
    media: Seen,
}

/// The images, texts and histograms in a run's event files.
#[derive(Debug, PartialEq, Deserialize)]
struct Seen {
    images: BTreeMap<String, serde_json::Value>,
    texts: BTreeMap<String, serde_json::Value>,
    histograms: BTreeMap<String, serde_json::Value>,
}

/// Returns the folder of the packages that `cargo amp test` installs.
fn packages() -> PathBuf {
    let folder = PathBuf::from(env::var_os("AMP_TEST_PYTHON").unwrap_or_default());
    assert!(
        folder.join("tensorboard").is_dir(),
        "TensorBoard's reader is not installed: run `cargo amp test`, which installs it once"
    );
    folder
}

fn read(folder: &Path, options: &[&str]) -> BTreeMap<String, Run> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("read_tensorboard.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(folder)
        .args(options)
        .env("PYTHONPATH", packages())
        .output()
        .expect("python3 runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// TensorBoard's reader finds all tags, steps, values (rounded to f32) and hyperparameters of the
/// run. The run is marked as ended.
#[test]
fn tensorboards_own_reader_reads_every_run() -> Result<()> {
    packages();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut tensorboard = TensorBoardLogger::create(folder.path())?;
    let registry = registry();
    let model = registry.find(Some("MixedPrecisionDemo"))?;
    let choices = Choices { length: Some(Length::Epochs(3)), seed: 5, ..Choices::default() };
    let case = Case::new(&registry, model, choices, Device::Cpu)?;
    let mut expected = BTreeMap::new();
    for precision in [Precision::F32True, Precision::F16Mixed] {
        let mut memory = MemoryLogger::default();
        let mut listen = |event: &Event| -> Result<()> {
            memory.on_event(event)?;
            tensorboard.on_event(event)
        };
        runner::run(&case, precision, Extras::default(), &mut listen)?;
        expected.insert(format!("MixedPrecisionDemo/{precision}/version_0"), (precision, memory));
    }
    let runs = read(folder.path(), &[]);
    assert!(runs.keys().eq(expected.keys()), "{:?}", runs.keys());
    for (name, run) in &runs {
        let (precision, memory) = &expected[name];
        let rounded: BTreeMap<String, Vec<(u64, f64)>> = memory
            .history()
            .iter()
            .map(|(tag, values)| {
                let values = values.iter().map(|(step, value)| (*step, f64::from(*value as f32)));
                (tag.clone(), values.collect())
            })
            .collect();
        assert_eq!(run.scalars, rounded, "{name}");
        assert!(run.scalars.contains_key("val_acc"), "{:?}", run.scalars.keys());
        assert!(run.ended, "{name}");
        assert_eq!(run.hparams["precision"], precision.name());
        assert_eq!(run.hparams["data"], "digits");
        assert_eq!(run.hparams["seed"].as_f64(), Some(5.0));
        assert_eq!(run.hparams["hidden_size"].as_f64(), Some(256.0));
    }
    Ok(())
}

/// Images, texts and histograms equal those that torch.utils.tensorboard writes for the same
/// tensors.
#[test]
fn tensorboard_shows_what_torch_would_write() -> Result<()> {
    packages();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut tensorboard = TensorBoardLogger::create(folder.path())?;
    let values = |count: i64| -> Result<Tensor> {
        let all = Tensor::f_arange(count, (Kind::Int64, Device::Cpu))?;
        Ok(all.f_mul_scalar(37)?.f_remainder(101)?)
    };
    let image = |tensor: &Tensor| Image::from_tensor(tensor).map(Media::Image);
    let histogram = |tensor: &Tensor| -> Result<Media> {
        Ok(Media::Histogram(Histogram::from_tensor(tensor)?.expect("finite values")))
    };
    let colors = values(105)?.f_reshape([3, 5, 7])?.f_div_scalar(100)?;
    let gray = values(12)?.f_reshape([1, 3, 4])?.f_to_kind(Kind::Uint8)?;
    let shown = [
        (3, "colors", image(&colors)?),
        (3, "gray", image(&gray)?),
        (4, "words", Media::Text("**bold** and *thin*".into())),
        (5, "values", histogram(&values(400)?.f_sub_scalar(50)?.f_div_scalar(8)?)?),
        (5, "positive", histogram(&values(50)?.f_to_kind(Kind::Double)?.f_add_scalar(1)?)?),
    ];
    let registry = registry();
    let model = registry.find(Some("PrecisionTestModel"))?;
    let choices = Choices { length: Some(Length::Epochs(1)), ..Choices::default() };
    let case = Case::new(&registry, model, choices, Device::Cpu)?;
    let mut listen = |event: &Event| -> Result<()> {
        tensorboard.on_event(event)?;
        if let Event::FitStart(_) = event {
            for (global_step, name, media) in shown.clone() {
                let name = name.to_owned();
                tensorboard.on_event(&Event::Media { global_step, name, media })?;
            }
        }
        Ok(())
    };
    runner::run(&case, Precision::F32True, Extras::default(), &mut listen)?;
    let mut runs = read(folder.path(), &["--torch"]);
    let theirs = runs.remove("torch").expect("torch's run");
    let ours = runs.into_values().next().expect("our run");
    assert_eq!(theirs.media.images.len() + theirs.media.histograms.len(), 4);
    assert_eq!(ours.media, theirs.media);
    Ok(())
}
