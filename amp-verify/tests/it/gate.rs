//! `cargo amp gate`: exit codes, files, cache, and what it refuses.

use std::{fs, path::Path, process::Output};

use amp_core::{precision::Precision, tch::Device};
use amp_verify::{
    gate::{
        self, Bounds, Cell, Failure, Figures, ModelReport, RISK, Reason, Report, SCHEMA, Status,
        Tier,
    },
    verdict::tolerance_factor,
};
use fixtures::models;
use rstest::rstest;
use serde_json::Value;
use tempfile::tempdir;

use crate::support::{amp, conforms, device, refusal, text};

/// The smallest of gates.
fn gate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = amp(folder);
    command.args(["gate", "--model", "PrecisionTestModel", "--precision", "bf16-mixed"]);
    command.args(["--device", &device(), "--processes", "1"]).args(arguments);
    command.env_remove("GITHUB_ACTIONS").env_remove("GITHUB_STEP_SUMMARY");
    command.output().expect("the binary runs")
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).expect("the file was written")
}

/// Passes, writes every file, and costs nothing the second time.
#[test]
fn passes_writes_and_remembers() {
    let folder = tempdir().expect("a folder");
    let files = ["--json", "g.json", "--junit", "g.xml", "--markdown", "g.md"];
    let first = gate(folder.path(), &files);
    assert_eq!(first.status.code(), Some(0), "{}{}", text(&first.stdout), text(&first.stderr));
    let json: Value = serde_json::from_str(&read(folder.path(), "g.json")).expect("JSON");
    conforms(&json, &schema());
    let report: Report = serde_json::from_value(json).expect("a report");
    assert_eq!((report.status, report.cached), (Status::Pass, 0));
    assert!(report.executed > 8 && !report.left_out.is_empty());
    let xml = read(folder.path(), "g.xml");
    assert!(
        xml.contains(r#"<testcase name="bf16-mixed" classname="PrecisionTestModel">"#),
        "{xml}"
    );
    assert!(read(folder.path(), "g.md").contains("## Precision gate: PASS"));

    let second = gate(folder.path(), &["--json", "h.json"]);
    assert_eq!(second.status.code(), Some(0));
    let again: Report = serde_json::from_str(&read(folder.path(), "h.json")).expect("a report");
    assert_eq!((again.executed, again.cached), (0, report.executed));
    let numbers = |report: Report| serde_json::to_value(report.models).expect("JSON");
    assert_eq!(numbers(again), numbers(report), "what is remembered is what was found");
}

/// Two seeds cannot show anything at a risk of one in ten thousand; no golden is no pass.
#[rstest]
#[case::inconclusive(&["--seeds", "2", "--max-seeds", "2", "--alpha", "0.0001"], 3, "INCONCLUSIVE")]
#[case::not_comparable(&["--seeds", "2", "--max-seeds", "2", "--goldens", "."], 4, "NOT COMPARABLE")]
fn exit_codes_say_what_was_found(
    #[case] arguments: &[&str],
    #[case] code: i32,
    #[case] status: &str,
) {
    let folder = tempdir().expect("a folder");
    let output = gate(folder.path(), arguments);
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains(status));
}

#[rstest]
#[case::one_seed(&["--seeds", "1"], "there must be at least 2")]
#[case::fewer_at_most(&["--seeds", "5", "--max-seeds", "3"], "no fewer at most")]
#[case::alpha(&["--alpha", "0.7"], "alpha 0.7: it must be in (0, 0.5)")]
#[case::baseline(&["--precision", "32-true"], "32-true is the baseline")]
#[case::model(&["--model", "Demo"], "unknown model `Demo`")]
#[case::processes(&["--processes", "0"], "processes 0: it must be at least 1")]
#[case::folder(&["--json", "nowhere/g.json"], "there is no folder nowhere")]
#[case::all_and_one(&["--all", "--model", "Demo"], "cannot be used with")]
fn bad_input_is_refused(#[case] arguments: &[&str], #[case] expected: &str) {
    let folder = tempdir().expect("a folder");
    let output = amp(folder.path())
        .args(["gate", "--device", "cpu"])
        .args(arguments)
        .output()
        .expect("runs");
    let line = refusal(&output);
    assert!(line.contains(expected), "`{line}` does not say `{expected}`");
}

#[test]
fn the_worst_status_is_the_wholes() {
    use Status::{Inconclusive, NotComparable, Pass, Regression};
    let mut all = [Regression, Pass, NotComparable, Inconclusive];
    all.sort();
    assert_eq!(all, [Pass, Inconclusive, NotComparable, Regression]);
    assert_eq!(all.map(Status::exit_code), [0, 3, 4, 1]);
}

/// δ of each model is the recorded one.
#[test]
fn margins_are_those_that_were_recorded() {
    let recorded: Value =
        serde_json::from_str(include_str!("../../../fixtures/margins.json")).expect("JSON");
    for model in models::ALL {
        let own = &recorded["models"][model.name];
        assert_eq!(own["margin"].as_f64(), Some(model.margin), "{}", model.name);
        assert_eq!(own["epochs"].as_i64(), Some(model.quick_epochs), "{}", model.name);
    }
}

/// Every precision of every model has bounds on both kinds of device: above what was seen, and below
/// what would forgive anything.
#[rstest]
#[case::cpu(Device::Cpu, "cpu")]
#[case::cuda(Device::Cuda(0), "cuda")]
fn every_model_has_bounds_from_its_own_spread(#[case] device: Device, #[case] kind: &str) {
    let recorded: Value = serde_json::from_str(models::MARGINS).expect("JSON");
    for model in models::ALL {
        for precision in &Precision::ALL[1..] {
            let bounds = Bounds::of(model.name, *precision, device).expect("bounds");
            let own = &recorded["first_steps"][kind]["models"][model.name][precision.name()];
            for (name, bound) in [
                ("gradient_error", bounds.gradient_error),
                ("loss_error", bounds.loss_error),
                ("update_error", bounds.update_error),
                ("update_bias", bounds.update_bias),
                ("norm_bias", bounds.norm_bias),
            ] {
                let most = own[name]["most"].as_f64().expect("a number");
                let what = format!("{} {precision} {name} on {kind}", model.name);
                assert!(most < bound, "{what}: {most}, {bound}");
                assert!(bound < 0.5, "{what}: {bound} is no bound");
            }
        }
    }
    let missing = Bounds::of("Other", Precision::F16Mixed, device);
    let said = missing.expect_err("nothing was recorded of it").to_string();
    assert!(said.contains("record_margins.py"), "{said}");
}

/// The limits of a population in closed form: mean + k·s, of errors of the square's cube root; what
/// is not a number is beyond any.
#[test]
fn a_figure_beyond_its_bound_is_named() {
    let (model, precision) = (models::ALL[0].name, Precision::F16Mixed);
    let bounds = Bounds::of(model, precision, Device::Cpu).expect("bounds");
    let recorded: Value = serde_json::from_str(models::MARGINS).expect("JSON");
    let recorded = &recorded["first_steps"]["cpu"];
    let n = recorded["n"].as_u64().expect("a count") as usize;
    let own = &recorded["models"][model][precision.name()];
    let of = |name: &str, what: &str| own[name][what].as_f64().expect("a number");
    let k = |risk: f64| tolerance_factor(risk, 0.95, n);
    let error = of("gradient_error", "mean") + k(RISK) * of("gradient_error", "sigma");
    assert!((bounds.gradient_error.powi(2).cbrt() - error).abs() < 1e-12);
    let bias = of("update_bias", "mean").abs() + k(RISK / 2.0) * of("update_bias", "sigma");
    assert!((bounds.update_bias - bias).abs() < 1e-12);
    let inside = Figures {
        gradient_error: 0.9 * bounds.gradient_error,
        gradient_parameter: "w".into(),
        loss_error: 0.9 * bounds.loss_error,
        update_error: 0.9 * bounds.update_error,
        update_bias: -0.9 * bounds.update_bias,
        norm_bias: -0.9 * bounds.norm_bias,
        overflows: None,
    };
    assert_eq!(bounds.exceeded(&inside), []);
    let beyond = Figures { update_bias: -1.1 * bounds.update_bias, ..inside.clone() };
    let found = bounds.exceeded(&beyond);
    assert_eq!(found.len(), 1);
    assert!(found[0].text.starts_with("the length of the weights' way is "), "{found:?}");
    let broken = Figures { gradient_error: f64::NAN, ..inside };
    assert!(bounds.exceeded(&broken)[0].text.starts_with("the first gradient of `w`"));
}

/// Twelve red cells whose text would end a workflow command early.
#[test]
fn annotations_are_capped_and_escaped() {
    let cell = Cell {
        precision: Precision::F16Mixed,
        status: Status::Regression,
        judgement: None,
        failures: vec![Failure::new(Reason::NonFinite, "100% lost::error")],
        seeds: vec![1],
        baseline: vec![None],
        metric: vec![None],
        conformance: None,
        skipped_steps: 0,
        finding: None,
    };
    let model = ModelReport {
        model: "a,b".into(),
        metric: "val_acc".into(),
        epochs: 1,
        margin: 0.01,
        learns_by: 0.3,
        control: None,
        cells: vec![cell; 12],
    };
    let report = Report {
        schema: SCHEMA.into(),
        status: Status::Regression,
        tier: Tier::Quick,
        fingerprint: None,
        alpha: 0.05,
        models: vec![model],
        left_out: Vec::new(),
        undiagnosed: 0,
        executed: 0,
        cached: 0,
        seconds: 0.0,
    };
    let text = gate::annotations(&report);
    assert_eq!(text.lines().count(), 9, "{text}");
    let expected = "::error title=FAIL a%2Cb under 16-mixed::100%25 lost::error";
    assert_eq!(text.lines().next(), Some(expected));
    assert_eq!(text.lines().last(), Some("::warning::4 more are in the job summary"));
}

/// The report's published schema.
pub(crate) fn schema() -> Value {
    serde_json::from_str(include_str!("../../schema/gate.json")).expect("a schema")
}
