//! Tests every command of `cargo amp` with this project's models.

mod bad_registry;
mod support;

use std::{fs, path::Path, process::Command, sync::LazyLock};

use own_models::data::{rings, sentences};
use quick_xml::{Reader, events::Event};
use serde_json::Value;
use support::Said;
use tempfile::{TempDir, tempdir};

/// Runs the binary with `folder` as its working directory and as its project. Files that the binary
/// records are therefore written to `folder`.
fn amp(folder: &TempDir, arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amp"));
    command.current_dir(folder.path()).env("AMP_PROJECT", folder.path());
    // By default, OpenMP threads wait for each other in a busy loop. If other processes use the
    // cores, an operation with several threads then takes many times as long. `passive` avoids this
    // and does not change the results.
    command.env("OMP_WAIT_POLICY", "passive");
    Said::of(command.args(arguments))
}

fn folder() -> TempDir {
    tempdir().expect("a temporary folder")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = entries.map(|entry| name(entry.expect("an entry"))).collect();
    names.sort();
    names
}

#[test]
fn models_lists_both_with_their_data() {
    let out = amp(&folder(), &["models"]).done();
    for name in ["RingNet", "NextSymbol", "rings", "sentences"] {
        assert!(out.lines().any(|line| line == name), "{name} is not in {out}");
    }
    assert!(out.contains("data: sentences, 4 epochs"), "{out}");
}

fn verified(model: &str, epochs: &str) -> Value {
    let arguments = ["verify", "--model", model, "--epochs", epochs, "--format", "json"];
    json(&amp(&folder(), &[&arguments[..], &["--device", "cpu", "--quiet"]].concat()).done())
}

/// All precisions. The first is the baseline, with which the others are compared.
const PRECISIONS: [&str; 6] =
    ["32-true", "16-mixed", "bf16-mixed", "64-true", "16-true", "bf16-true"];

fn runs(comparison: &Value) -> &[Value] {
    let runs = comparison["runs"].as_array().expect("runs");
    let names: Vec<&Value> = runs.iter().map(|run| &run["precision"]).collect();
    assert_eq!(names, PRECISIONS);
    runs
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// The best possible accuracy is 95.5 %. An accuracy that is measured on 400 points has a standard
/// deviation of about 1 %, so five standard deviations are 5 %.
#[test]
fn verify_trains_the_classifier_under_every_precision() {
    let comparison = verified("RingNet", "3");
    assert_eq!(comparison["metric"], "val_acc");
    assert_eq!(comparison["direction"], "higher_is_better");
    for run in runs(&comparison) {
        let accuracy = number(&run["accuracy"]);
        assert!((accuracy - rings::best_accuracy()).abs() < 0.05, "{accuracy}: {run}");
    }
}

/// Under every precision, the loss must be close to the entropy of the grammar, 0.611, and not
/// below it. A model that guesses has a loss of ln 12 = 2.485. The mean of −ln p over 2,048
/// positions has a standard deviation of 0.009, so five standard deviations are 0.045.
#[test]
fn verify_judges_the_language_model_by_its_loss() {
    let comparison = verified("NextSymbol", "4");
    assert_eq!(comparison["metric"], "val_loss");
    assert_eq!(comparison["direction"], "lower_is_better");
    for run in runs(&comparison) {
        let loss = number(&run["loss"]);
        assert_eq!(number(&run["accuracy"]), loss, "the model is compared by its loss");
        let least = sentences::entropy();
        assert!(
            loss > least - 0.045 && loss < least + 0.2,
            "loss {loss}, lowest possible {least}: {run}"
        );
    }
}

#[test]
fn the_language_models_table_has_no_accuracy() {
    let arguments =
        ["verify", "--model", "NextSymbol", "--epochs", "1", "--precision", "bf16-mixed"];
    let out = amp(&folder(), &[&arguments[..], &["--device", "cpu", "--quiet"]].concat()).done();
    let header = out.lines().find(|line| line.contains("precision")).expect("a header");
    assert_eq!(header.matches("val_loss").count(), 1, "{out}");
    assert!(!out.contains("acc") && !out.contains('%') && !out.contains("NaN"), "{out}");
}

#[test]
fn the_gate_asks_for_a_margin_that_was_neither_declared_nor_recorded() {
    let folder = folder();
    let line = amp(&folder, &["gate", "--model", "NextSymbol", "--device", "cpu"]).refused();
    assert!(line.contains("NextSymbol") && line.contains("cargo amp margins"), "{line}");
    assert_eq!(files(folder.path()), [] as [&str; 0]);
}

/// A margin in the registry (how much worse than under 32-true the metric may be) is all that the
/// gate needs to compare a model. The gate also compares the first training steps. It estimates the
/// bounds for their values itself, because the project has recorded none.
#[test]
fn a_declared_margin_is_all_that_the_gate_needs() {
    let folder = folder();
    let arguments = ["gate", "--model", "RingNet", "--device", "cpu", "--json", "gate.json"];
    amp(&folder, &[&arguments[..], &["--no-cache"]].concat()).done();
    assert_eq!(files(folder.path()), ["gate.json"]);
    let report = json(&read(&folder, "gate.json"));
    assert_eq!(report["status"], "pass");
    for result in report["models"][0]["cells"].as_array().expect("results") {
        let figures = result["conformance"].as_array().expect("figures of first steps");
        let about = |name: &str| figures.iter().any(|figure| figure["what"] == name);
        assert!(about("the first loss") && about("the update of the weights"), "{figures:?}");
        for figure in figures {
            let (found, bound) = (number(&figure["figure"]).abs(), number(&figure["bound"]));
            assert!(found <= bound && bound < 1.0, "{figure}");
        }
    }
}

/// Returns the names and attributes of the elements of well-formed XML.
fn elements(xml: &str) -> Vec<(String, String)> {
    let mut reader = Reader::from_str(xml);
    let mut found = Vec::new();
    let mut depth = 0_i32;
    loop {
        match reader.read_event().unwrap_or_else(|error| panic!("{error} in {xml}")) {
            Event::Start(start) => {
                depth += 1;
                found.push(element(&start));
            }
            Event::Empty(start) => found.push(element(&start)),
            Event::End(_) => depth -= 1,
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(depth, 0, "unclosed elements in {xml}");
    found
}

fn element(start: &quick_xml::events::BytesStart<'_>) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(start.name().as_ref()), text(start.attributes_raw()))
}

/// The text of the file that `cargo amp margins` records for the two models.
static RECORDED: LazyLock<String> = LazyLock::new(|| {
    let folder = folder();
    let arguments = ["margins", "--device", "cpu", "--seeds", "3"];
    let out = amp(&folder, &arguments).done();
    assert!(out.contains("RingNet: margin ") && out.contains("NextSymbol: margin "), "{out}");
    assert_eq!(files(folder.path()), ["margins.json"]);
    read(&folder, "margins.json")
});

fn with_margins() -> TempDir {
    let folder = folder();
    fs::write(folder.path().join("margins.json"), &*RECORDED).expect("a file");
    folder
}

/// The gate uses the recorded margin of the language model and the declared margin of the
/// classifier.
#[test]
fn the_gate_judges_by_the_margins_that_were_recorded() {
    let folder = with_margins();
    let margins = json(&RECORDED);
    let recorded = number(&margins["models"]["NextSymbol"][0]["margin"]);
    assert!(recorded > 0.0, "{recorded}");
    let arguments = ["gate", "--device", "cpu", "--junit", "gate.xml", "--json", "gate.json"];
    amp(&folder, &arguments).done();
    let report = read(&folder, "gate.json");
    let report = json(&report);
    assert_eq!(report["status"], "pass");
    let margin = |model: usize| number(&report["models"][model]["margin"]);
    assert_eq!([margin(0), margin(1)], [0.03, recorded]);
    assert_eq!(report["models"][1]["metric"], "val_loss");
    assert_eq!(report["models"][1]["direction"], "lower_is_better");

    let elements = elements(&read(&folder, "gate.xml"));
    for model in ["RingNet", "NextSymbol"] {
        let named = |kind: &str, attribute: &str| {
            let attribute = format!("{attribute}=\"{model}\"");
            elements.iter().filter(|(name, all)| name == kind && all.contains(&attribute)).count()
        };
        assert_eq!(named("testsuite", "name"), 1, "{elements:?}");
        // One test case is 16-mixed, and the other is bf16-mixed.
        assert_eq!(named("testcase", "classname"), 2, "{elements:?}");
    }
    assert!(elements.iter().all(|(name, _)| name != "failure" && name != "error"), "{elements:?}");
}

fn read(folder: &TempDir, file: &str) -> String {
    fs::read_to_string(folder.path().join(file)).expect("a file that was asked for")
}

#[test]
fn layers_measures_each_layer_of_both() {
    let measured = |model: &str| {
        let arguments = ["layers", "--model", model, "--precision", "bf16-mixed"];
        let rest = ["--format", "json", "--device", "cpu", "--quiet"];
        amp(&folder(), &[&arguments[..], &rest].concat()).done()
    };
    let paths = |text: &str| -> Vec<String> {
        let report = json(text);
        let layers = report["layers"].as_array().expect("layers");
        layers.iter().map(|layer| layer["path"].as_str().expect("a path").to_owned()).collect()
    };
    let net = paths(&measured("RingNet"));
    for path in ["body.0", "body.2", "head"] {
        assert!(net.iter().any(|found| found == path), "{path} is not in {net:?}");
    }
    let language = paths(&measured("NextSymbol"));
    for path in ["token", "block.self_attn", "head"] {
        assert!(language.iter().any(|found| found == path), "{path} is not in {language:?}");
    }
}

/// With `--limit 1`, diagnose keeps no layer in FP32, because no layer has an error as large as its
/// values. With `--limit 1e-4`, it keeps some layers in FP32, because every layer has some rounding
/// error.
#[test]
fn diagnose_tells_layers_that_hold_from_layers_that_do_not() {
    for model in ["RingNet", "NextSymbol"] {
        let overrides = |limit: &str| {
            let arguments = ["diagnose", "--model", model, "--precision", "bf16-mixed"];
            let rest = ["--search", "layers", "--limit", limit, "--format", "json", "--device"];
            let all = [&arguments[..], &rest, &["cpu", "--quiet"]].concat();
            json(&amp(&folder(), &all).done())["fix"].clone()
        };
        assert_eq!(overrides("1"), Value::Null);
        let modules = overrides("1e-4");
        let modules = modules["modules"].as_array().expect("modules");
        assert!(!modules.is_empty(), "{modules:?}");
    }
}

/// The first run saves its last epoch, and the epoch with the lowest validation loss. A second run
/// resumes from these checkpoints.
#[test]
fn train_saves_a_run_that_another_goes_on_with() {
    let folder = folder();
    let train = |more: &[&str]| {
        let arguments = ["train", "--model", "NextSymbol", "--device", "cpu", "--quiet"];
        amp(&folder, &[&arguments[..], more].concat()).done()
    };
    train(&["--epochs", "2", "--checkpoint-dir", "saved", "--save-top-k", "1"]);
    let saved = files(&folder.path().join("saved"));
    assert_eq!(saved.len(), 2, "{saved:?}");
    assert!(saved.contains(&"last.safetensors".to_owned()), "{saved:?}");
    assert!(saved.iter().any(|name| name.contains("val_loss")), "{saved:?}");
    let log = ["--epochs", "3", "--resume", "saved", "--log-jsonl", "log.jsonl"];
    train(&log);
    let log = read(&folder, "log.jsonl");
    let events: Vec<Value> = log.lines().map(json).collect();
    let first = events.iter().find(|event| event["event"] == "fit_start").expect("a start");
    assert_eq!(first["resumed"]["epoch"], 2, "{first}");
    let ends = events.iter().filter(|event| event["event"] == "epoch_end").count();
    assert_eq!(ends, 1, "the resumed run has one epoch");
}

#[test]
fn bench_measures_the_default_model() {
    let folder = folder();
    let arguments = ["bench", "--device", "cpu", "--rounds", "1", "--steps", "4", "--feed-gb", "0"];
    let out = amp(&folder, &[&arguments[..], &["--quiet", "--json", "bench.json"]].concat()).done();
    assert!(out.contains("RingNet"), "{out}");
    json(&read(&folder, "bench.json"));
}

#[test]
fn selftest_catches_a_fault_in_the_default_model() {
    let folder = with_margins();
    let fault = "wrong_scale_on_one_layer";
    let arguments = ["selftest", "--fault", fault, "--repetitions", "0", "--json"];
    let report = json(&amp(&folder, &arguments).done());
    let fates = report["faults"].as_array().expect("fates");
    assert_eq!(fates.len(), 1, "{report}");
    assert_eq!(fates[0]["fault"], fault);
    let reported_by = fates[0]["reported_by"].as_array().expect("checks");
    assert!(!reported_by.is_empty(), "{report}");
}

#[track_caller]
fn is_refused(arguments: &[&str], parts: &[&str]) {
    let folder = folder();
    let line = amp(&folder, arguments).refused();
    for part in parts {
        assert!(line.contains(part), "`{line}` does not say `{part}`");
    }
    assert_eq!(files(folder.path()), [] as [&str; 0], "no file is written");
}

#[test]
fn an_unknown_model_is_refused_with_the_known_ones() {
    let parts = ["unknown model `RingNett`", "RingNet, NextSymbol"];
    for command in ["verify", "train", "layers", "diagnose", "gate", "margins"] {
        is_refused(&[command, "--model", "RingNett"], &parts);
    }
}

#[test]
fn unknown_data_is_refused_with_the_known_sets() {
    is_refused(&["verify", "--data", "ring"], &["unknown data `ring`", "rings, sentences"]);
}

#[test]
fn peers_without_a_program_are_refused() {
    let arguments = ["bench", "--device", "cpu", "--peers", "--rounds", "1", "--json", "b.json"];
    is_refused(&arguments, &["own-models names no Python program", "--peers-script"]);
}
