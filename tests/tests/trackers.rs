//! Tests that MLflow's and W&B's own Python code reads the logs of a run, without a server.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use amp_core::{
    Result,
    event::{Event, Subscriber},
    log::{Histogram, Image, Media},
    logger::{MemoryLogger, MlflowLogger, WandbLogger},
    precision::{GradScalerConfig, Precision},
    tch::{Device, Kind, Tensor},
    trainer::NumericsConfig,
};
use amp_verify::{
    case::{Case, Choices},
    length::Length,
    runner::{self, Extras},
};
use fixtures::registry;
use serde::Deserialize;
use serde_json::{Value, json};

/// Returns the folder of the packages that `cargo amp test` installs.
fn packages() -> PathBuf {
    let folder = PathBuf::from(env::var_os("AMP_TEST_PYTHON").unwrap_or_default());
    assert!(
        folder.join("mlflow").is_dir() && folder.join("wandb").is_dir(),
        "the readers of MLflow and W&B are not installed: run `cargo amp test`, which installs them once"
    );
    folder
}

/// Runs a Python program in `folder` and returns its output.
fn python(arguments: &[&str], folder: &Path) -> String {
    let output = Command::new("python3")
        .args(arguments)
        .arg(folder)
        .env("PYTHONPATH", packages())
        .output()
        .expect("python3 runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Returns a text that is longer than a block of W&B's log file.
fn long() -> String {
    (0..9000).map(|number| format!("{number} ")).collect()
}

/// Returns images, texts and histograms to log, each with its step.
fn shown() -> Result<Vec<(u64, &'static str, Media)>> {
    let all = Tensor::f_arange(36, (Kind::Int64, Device::Cpu))?.f_mul_scalar(7)?;
    let image = Image::from_tensor(&all.f_reshape([3, 3, 4])?.f_to_kind(Kind::Uint8)?)?;
    let histogram = Histogram::from_tensor(&all)?.expect("finite values");
    Ok(vec![
        (0, "seen/image", Media::Image(image)),
        (0, "words", Media::Text(long())),
        (0, "values", Media::Histogram(histogram)),
    ])
}

/// Trains a model that logs images, texts and histograms, and that skips some steps. Then starts a
/// second run, and does not finish it.
fn train(logger: &mut dyn Subscriber) -> Result<MemoryLogger> {
    let registry = registry();
    let model = registry.find(Some("PrecisionTestModel"))?;
    let scaler = GradScalerConfig { init_scale: 2f64.powi(30), ..GradScalerConfig::default() };
    let mut choices = Choices {
        length: Some(Length::Epochs(3)),
        seed: 5,
        numerics: NumericsConfig { scaler, ..NumericsConfig::default() },
        ..Choices::default()
    };
    choices.logging.log_every_n_steps = 5;
    let case = Case::new(&registry, model, choices, Device::Cpu)?;
    let mut memory = MemoryLogger::default();
    let mut first = None;
    let mut listen = |event: &Event| -> Result<()> {
        memory.on_event(event)?;
        logger.on_event(event)?;
        if let Event::FitStart(_) = event {
            first.get_or_insert(event.clone());
            for (global_step, name, media) in shown()? {
                let name = name.to_owned();
                logger.on_event(&Event::Media { global_step, name, media })?;
            }
        }
        Ok(())
    };
    runner::run(&case, Precision::F16Mixed, Extras::default(), &mut listen)?;
    logger.on_event(&first.expect("a start"))?;
    assert!(memory.last("grad_scaler/skipped").is_some(), "some steps are skipped");
    Ok(memory)
}

#[derive(Debug, Deserialize)]
struct MlflowRun {
    experiment: String,
    name: String,
    status: String,
    ended: bool,
    params: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    artifacts: Vec<String>,
    metrics: BTreeMap<String, Vec<(u64, f64)>>,
}

#[test]
fn mlflows_client_reads_every_run() -> Result<()> {
    packages();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("ml runs");
    let mut logger = MlflowLogger::create(&store)?;
    let memory = train(&mut logger)?;
    drop(logger);
    // A second logger in the same folder must keep the experiment and its runs.
    drop(MlflowLogger::create(&store)?);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/read_mlflow.py");
    let runs: Vec<MlflowRun> =
        serde_json::from_str(&python(&[script], &store)).expect("a list of runs");
    assert_eq!(runs.len(), 2);
    let run = runs.iter().find(|run| run.status == "FINISHED").expect("a run that finished");
    let failed = runs.iter().find(|run| run.status == "FAILED").expect("a run that failed");
    assert!(run.ended && failed.ended && failed.metrics.is_empty());
    for run in &runs {
        assert_eq!(
            (run.experiment.as_str(), run.name.as_str()),
            ("PrecisionTestModel", "16-mixed")
        );
        assert_eq!(run.params["precision"], "16-mixed");
        assert_eq!((run.params["seed"].as_str(), run.params["data"].as_str()), ("5", "digits"));
        assert_eq!(run.params["input_size"], "64");
        assert!(run.tags.contains_key("device"));
    }
    let metrics: BTreeMap<String, Vec<(u64, f64)>> = memory
        .history()
        .iter()
        .map(|(tag, values)| (tag.replace('/', "."), values.clone()))
        .collect();
    assert_eq!(run.metrics, metrics);
    let artifacts =
        ["seen.image/step_000000.png", "values/step_000000.json", "words/step_000000.md"];
    assert_eq!(run.artifacts, artifacts);
    Ok(())
}

#[test]
fn wandbs_reader_reads_every_run() -> Result<()> {
    packages();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut logger = WandbLogger::create(folder.path())?;
    let memory = train(&mut logger)?;
    drop(logger);
    let runs = fs::read_dir(folder.path().join("wandb")).expect("a folder of runs");
    let runs: Vec<PathBuf> = runs.map(|run| run.expect("a run").path()).collect();
    assert_eq!(runs.len(), 2);
    let mut exits = Vec::new();
    for run in &runs {
        let records: Vec<Value> = python(&["-m", "wandb", "leet", "inspect", "--json"], run)
            .lines()
            .map(|line| serde_json::from_str(line).expect("a record"))
            .collect();
        let numbers: Vec<usize> = records
            .iter()
            .map(|record| record["num"].as_u64().expect("a number") as usize)
            .collect();
        assert!(numbers.into_iter().eq(1..=records.len()));
        let of = |kind: &str| -> Vec<&Value> {
            records
                .iter()
                .filter(|record| record["type"] == kind)
                .map(|record| &record[kind])
                .collect()
        };
        let started = of("run")[0];
        assert_eq!(
            (&started["project"], &started["display_name"]),
            (&json!("PrecisionTestModel"), &json!("16-mixed"))
        );
        let config = &started["config"]["update"];
        assert_eq!((&config["seed"], &config["precision"]), (&json!(5), &json!("16-mixed")));
        assert_eq!(config["input_size"], 64);
        let exit = of("exit")[0]["exit_code"].as_i64().unwrap_or(0);
        exits.push(exit);
        if exit == 0 {
            holds(&memory, &of("history"), of("summary").last().expect("a summary"));
            looks_as_shown(run, &of("history"))?;
        }
    }
    exits.sort_unstable();
    assert_eq!(exits, [0, 1]);
    Ok(())
}

/// Asserts that there is one row for each step and that the steps increase. The rows must contain
/// the logged values, and the summary must contain the last value of each name.
fn holds(memory: &MemoryLogger, history: &[&Value], summary: &Value) {
    let step = |row: &Value| row["step"]["num"].as_u64().expect("a step");
    let steps: Vec<u64> = history.iter().map(|row| step(row)).collect();
    assert!(steps.is_sorted_by(|one, next| one < next), "{steps:?}");
    for (tag, values) in memory.history() {
        let rows = history.iter().filter(|row| row["item"].get(tag).is_some());
        let rows: Vec<(u64, f64)> =
            rows.map(|row| (step(row), row["item"][tag].as_f64().expect("a number"))).collect();
        let last = values.last().expect("a value").1;
        assert_eq!(summary["update"][tag].as_f64(), Some(last), "{tag}");
        if tag.starts_with("grad_scaler/") {
            // These values are logged at each attempted step, also if it is skipped. Several
            // attempts may share a row, which then contains only the value of the last one.
            assert_eq!(rows.last().map(|(_, value)| *value), Some(last), "{tag}");
        } else {
            let by_step: BTreeMap<u64, f64> = values.iter().copied().collect();
            assert!(rows.into_iter().eq(by_step), "{tag}");
        }
    }
}

fn looks_as_shown(run: &Path, history: &[&Value]) -> Result<()> {
    for (step, name, media) in shown()? {
        let row = history.iter().find(|row| row["step"]["num"] == step).expect("its row");
        let of = |part: &str| &row["item"][format!("{name}.{part}")];
        match media {
            Media::Text(text) => assert_eq!(row["item"][name], json!(text)),
            Media::Histogram(histogram) => {
                assert_eq!(of("_type"), "histogram");
                let edges: Vec<f64> = serde_json::from_value(of("bins").clone()).expect("numbers");
                assert_eq!(edges, histogram.limits);
                assert_eq!(of("values"), &json!(histogram.counts[1..]));
            }
            Media::Image(image) => {
                assert_eq!((of("_type"), of("width")), (&json!("image-file"), &json!(4)));
                let path = run.join("files").join(of("path").as_str().expect("a path"));
                let bytes = fs::read(path).expect("the image's file");
                assert_eq!(of("size"), &json!(bytes.len()));
                let decoded = image::load_from_memory(&bytes).expect("a PNG file");
                assert_eq!(decoded.into_rgb8().into_raw(), image.pixels);
            }
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}
