//! The smallest set that must stay FP32: synthetic predicates, a planted layer, and the command.

use std::{cell::RefCell, collections::BTreeSet, fs};

use amp_core::{
    LightningModule, Result, event::Event, hardware::Fingerprint, precision::Precision, tch::Device,
};
use amp_verify::{
    case::{Case, Choices},
    comparison::Comparison,
    diagnose::{
        Attribution, Check, Diagnosis, Islands, LayerError, MetricLoss, Outcome, PolicyFile, Scope,
        ddmin, diagnose, fp32,
    },
    golden::Golden,
    layers::{Options, measure, module_paths},
    runner,
};
use rstest::rstest;
use tempfile::tempdir;

use crate::{
    model::{batch, planted, subject},
    support::{amp, assert_refused, device, files, generator, refusal, text, torch_device},
};

/// All, none, then halves: the first half each time, or the first and the second.
#[rstest]
#[case::first(&[0], 5)]
#[case::last(&[7], 8)]
#[case::none(&[], 2)]
#[case::two_apart(&[0, 7], 18)]
#[case::all(&[0, 1, 2, 3, 4, 5, 6, 7], 28)]
fn ddmin_finds_the_elements_that_are_needed(#[case] needed: &[u8], #[case] tests: usize) {
    let all: Vec<u8> = (0..8).collect();
    let mut asked = 0;
    let found = ddmin(&all, |set| {
        asked += 1;
        Ok(needed.iter().all(|element| set.contains(element)))
    });
    let found = found.expect("a predicate without errors").expect("all of them pass");
    assert_eq!((found.set.as_slice(), found.is_one_minimal), (needed, true));
    assert_eq!((found.tests, asked), (tests, tests));
}

/// Any predicate, monotone or not: what is found passes, is 1-minimal, and no set is asked twice.
#[test]
fn ddmin_is_one_minimal_for_every_predicate() {
    let all: Vec<u8> = (0..7).collect();
    let mask = |set: &[u8]| set.iter().map(|element| 1_u64 << element).sum::<u64>();
    for seed in 0..500_u64 {
        // A hash of the set and the seed: about one set in four passes.
        let passes = |set: &[u8]| {
            let mixed = (mask(set) + 131 * seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            set.len() == all.len() || (mixed >> 40) % 4 == 0
        };
        let asked = RefCell::new(BTreeSet::new());
        let found = ddmin(&all, |set| {
            assert!(asked.borrow_mut().insert(set.to_vec()), "{set:?} was asked twice");
            Ok(passes(set))
        });
        let found = found.expect("a predicate without errors").expect("all of them pass");
        assert!(passes(&found.set) && found.is_one_minimal, "seed {seed}");
        for at in 0..found.set.len() {
            let mut rest = found.set.clone();
            rest.remove(at);
            assert!(!passes(&rest), "seed {seed}: {:?} without its {at}th", found.set);
        }
        assert_eq!(found.tests, asked.borrow().len());
        assert!(found.tests <= 7 * 7 + 3 * 7, "seed {seed}: {} tests", found.tests);
    }
}

#[test]
fn ddmin_says_when_all_is_not_enough_and_hands_on_errors() {
    let found = ddmin(&[1, 2], |_| Ok(false)).expect("a predicate without errors");
    assert_eq!(found, None);
    let error = ddmin(&[1, 2], |_| Err(amp_core::Error::config("no"))).expect_err("an error");
    assert_eq!(error.to_string(), "no");
}

/// Gives these figures in turn, the last for ever, where the module `b` is not FP32.
struct Given(Vec<f64>);

impl Check for Given {
    fn describe(&self) -> String {
        "given".into()
    }

    fn run(&mut self, islands: &Islands) -> Result<Outcome> {
        if islands.contains_key("m.b") {
            return Ok(Outcome::new(0.0, 0.1));
        }
        let figure = if self.0.len() > 1 { self.0.remove(0) } else { self.0[0] };
        Ok(Outcome::new(figure, 0.1))
    }
}

#[rstest]
#[case::passes(&[0.1], None, "passes")]
#[case::precision(&[0.5], None, "precision")]
#[case::precision_with_reference(&[0.5], Some(false), "precision")]
#[case::not_finite(&[f64::NAN], None, "precision")]
#[case::environment(&[0.5], Some(true), "environment")]
#[case::unsteady(&[0.5, 0.05], None, "determinism")]
#[case::a_little_unsteady(&[0.5, 0.45], None, "precision")]
#[case::once_not_finite(&[f64::NAN, 0.5], None, "determinism")]
fn a_failure_is_attributed(
    #[case] figures: &[f64],
    #[case] baseline_moved: Option<bool>,
    #[case] expected: &str,
) {
    let islands = Islands::new();
    let layers = ["m.a", "m.b", "m.c"].map(str::to_owned).to_vec();
    let scope = Scope { islands: &islands, modules: layers.clone(), layers, baseline_moved };
    let found = diagnose(&mut Given(figures.to_vec()), &scope).expect("a diagnosis");
    let json = serde_json::to_value(&found).expect("an object");
    assert_eq!(json["attribution"]["is"], expected);
    let modules = found.island.map(|island| island.modules);
    assert_eq!(modules, (expected == "precision").then(|| vec!["m.b".to_owned()]));
}

/// The planted layer norm is caught, located, and its island makes the check green again; the same
/// model without it passes.
#[test]
fn a_planted_layer_is_located_and_its_island_heals() {
    let _generator = generator();
    let build = |half: bool| -> Result<Box<dyn LightningModule>> {
        amp_core::hardware::seed_everything(1)?;
        Ok(Box::new(planted(half)))
    };
    let (sick, sound) = (|| build(true), || build(false));
    let batch = batch(32);
    let options = Options::new(Precision::F16Mixed);
    let check = |build| LayerError { subject: subject(build, &batch, &[]), options, limit: 0.01 };
    let (layers, modules) = module_paths(&subject(&sick, &batch, &[])).expect("paths");
    assert_eq!((layers.len(), modules.last().map(String::as_str)), (9, Some("model")));
    let islands = Islands::new();
    let scope = Scope { islands: &islands, layers, modules, baseline_moved: None };
    let found = diagnose(&mut check(&sick), &scope).expect("a diagnosis");
    assert_eq!(found.attribution, Attribution::Precision);
    assert!(!found.before.passes());
    let island = found.island.expect("an island");
    assert_eq!(
        (island.modules.as_slice(), island.is_one_minimal),
        (&["model.4".to_owned()][..], true)
    );
    assert!(island.after.passes() && island.with_fields.passes());
    assert_eq!(island.fields, ["model"]);
    let healed = check(&sick).run(&fp32(&islands, &island.modules)).expect("an outcome");
    assert_eq!(healed, island.after);
    let found = diagnose(&mut check(&sound), &scope).expect("a diagnosis");
    assert_eq!(found.attribution, Attribution::Passes);
    let report = measure(&subject(&sound, &batch, &[]), options).expect("a report");
    assert!(report.loss.is_some());
}

/// The file that `--fix` writes makes the check pass, and the run still proves its precision.
#[test]
fn a_policy_file_heals_what_was_diagnosed() {
    let folder = tempdir().expect("a temporary folder");
    let run = |arguments: &[&str]| {
        let output = amp(folder.path())
            .args(arguments)
            .args(["--model", "PrecisionTestModel", "--device", &device()])
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let check = ["diagnose", "--precision", "16-mixed", "--check", "layers", "--limit", "1e-5"];
    let found = run(&[&check[..], &["--fix", "policy.json", "--format", "json"]].concat());
    let found: Diagnosis = serde_json::from_str(&found).expect("the schema's form");
    assert_eq!(found.schema, "amp-diagnosis/1");
    let island = found.island.expect("an island");
    assert!(island.is_one_minimal && island.after.passes(), "{island:?}");
    // f16's rounding is above the limit and f32's below; a ReLU rounds nothing.
    assert_eq!(island.modules, ["model.0", "model.2", "model.4"]);
    let text = fs::read_to_string(folder.path().join("policy.json")).expect("the policy");
    let policy: PolicyFile = serde_json::from_str(&text).expect("a policy");
    assert!(policy.islands.keys().eq(island.modules.iter()), "{text}");
    let said = run(&[&check[..], &["--policy", "policy.json"]].concat());
    assert!(said.contains("The check passes"), "{said}");
    let train = ["train", "--precision", "16-mixed", "--epochs", "1", "--quiet"];
    run(&[&train[..], &["--policy", "policy.json"]].concat());
    let layers = ["layers", "--precision", "16-mixed", "--policy", "policy.json"];
    let table = run(&layers);
    let row = table.lines().find(|line| line.contains(&island.modules[0])).expect("a row");
    assert!(row.contains(" f32 "), "{row}");
    assert_eq!(files(folder.path()), ["policy.json"]);
}

/// A run of the same seed and machine gives the reference's figures, as verify wrote them or as a
/// golden keeps them; another machine's are not compared.
#[test]
fn a_reference_tells_the_environment_from_the_precision() {
    let folder = tempdir().expect("a temporary folder");
    let common = ["--model", "PrecisionTestModel", "--device", "cpu", "--threads", "1"];
    let run = |arguments: &[&str]| {
        let mut command = amp(folder.path());
        command.args(arguments).args(common).args(["--epochs", "1"]);
        command.output().expect("the binary runs")
    };
    let written = run(&["verify", "--precision", "32-true", "--output", "reference.json"]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let diagnose = |file: &str, more: &[&str]| {
        let check = ["diagnose", "--check", "layers", "--limit", "0", "--format", "json"];
        run(&[&check[..], &["--reference", file], more].concat())
    };
    let is = |file: &str| {
        let output = diagnose(file, &[]);
        let found: Diagnosis =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        found.attribution
    };
    let write = |name: &str, text: String| {
        fs::write(folder.path().join(name), text).expect("a file");
    };
    let refused = |file: &str, more: &[&str], code: i32| {
        let output = diagnose(file, more);
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{file}: {line}");
        assert_eq!((line.lines().count(), output.stdout.len()), (1, 0), "{line}");
        line
    };

    assert_eq!(is("reference.json"), Attribution::Precision);
    let reference = fs::read_to_string(folder.path().join("reference.json")).expect("a report");
    let mut report: serde_json::Value = serde_json::from_str(&reference).expect("an object");
    report["runs"][0]["loss"] = 0.5.into();
    write("moved.json", report.to_string());
    assert_eq!(is("moved.json"), Attribution::Environment);
    report["fingerprint"]["libtorch"] = "1.0".into();
    write("other.json", report.to_string());
    assert!(refused("other.json", &[], 4).contains("NOT COMPARABLE"));

    let comparison: Comparison = serde_json::from_str(&reference).expect("a report");
    let golden = Golden::over_seeds(&[comparison], 0.01, 360).expect("a golden");
    let snapshot = |change: &dyn Fn(&mut Golden)| {
        let mut golden = golden.clone();
        change(&mut golden);
        let body = serde_json::to_string_pretty(&golden).expect("JSON");
        format!("---\nsource: tests/golden.rs\n---\n{body}\n")
    };
    let machine = |golden: &mut Golden, change: &dyn Fn(&mut Fingerprint)| {
        change(golden.fingerprint.as_mut().expect("a machine"));
    };
    // The kernels of another CPU are within a golden's tolerances.
    write("a.snap", snapshot(&|g| machine(g, &|m| m.capability = "other kernels".into())));
    assert_eq!(is("a.snap"), Attribution::Precision);
    let baseline = |golden: &mut Golden| {
        let figures = golden.runs.get_mut("32-true").expect("a baseline");
        figures.loss = figures.loss.map(|loss| 1.01 * loss);
    };
    write("b.snap", snapshot(&baseline));
    assert_eq!(is("b.snap"), Attribution::Environment);
    write("c.snap", snapshot(&|g| machine(g, &|m| m.libtorch = "1.0".into())));
    let line = refused("c.snap", &[], 4);
    assert!(line.contains("c.snap: NOT COMPARABLE: libtorch is 1.0 in the golden"), "{line}");
    write("d.snap", snapshot(&|g| g.fingerprint = None));
    assert!(refused("d.snap", &[], 4).contains("NOT COMPARABLE: it does not say"));
    // What must be given is what it says.
    let line = refused("a.snap", &["--seed", "7"], 2);
    let of = "it is of `--model PrecisionTestModel --data digits --seed 42 --epochs 1 \
              --batch-size 64 --set input_size=64`";
    assert!(line.contains(of), "{line}");
    write("e.snap", "---\n---\n{}".into());
    assert!(refused("e.snap", &[], 2).contains("no report of verify"));
}

#[rstest]
#[case::missing(None, "policy.json: No such file")]
#[case::no_json(Some("{"), "policy.json: it is no policy file (EOF")]
#[case::schema(
    Some(r#""schema":"amp-policy/9""#),
    "its schema is `amp-policy/9`, not `amp-policy/1`"
)]
#[case::model(Some(r#""model":"Other""#), "it is for Other, not for PrecisionTestModel")]
#[case::module(
    Some(r#""islands":{"model.9":"fp32"}"#),
    "PrecisionTestModel has no module `model.9`"
)]
#[case::region(Some(r#""islands":{"model.0":"fp8"}"#), "unknown variant `fp8`")]
#[case::key(Some(r#""extra":1"#), "unknown field `extra`")]
fn a_bad_policy_file_is_refused(#[case] change: Option<&str>, #[case] expected: &str) {
    let folder = tempdir().expect("a temporary folder");
    if let Some(change) = change {
        let good = serde_json::json!({
            "schema": "amp-policy/1", "model": "PrecisionTestModel", "precision": "16-mixed",
            "fingerprint": {"device": "x", "capability": "avx2", "libtorch": "2.11.0",
                            "threads": 1, "tf32": false, "deterministic": false},
            "reason": "a test", "islands": {"model.0": "fp32"},
        });
        let text = match serde_json::from_str::<serde_json::Value>(&format!("{{{change}}}")) {
            Ok(changed) => {
                let (mut good, changed) = (good, changed.as_object().expect("an object").clone());
                good.as_object_mut().expect("an object").extend(changed);
                good.to_string()
            }
            Err(_) => change.to_owned(),
        };
        fs::write(folder.path().join("policy.json"), text).expect("a file");
    }
    let output = amp(folder.path())
        .args(["train", "--model", "PrecisionTestModel", "--device", "cpu"])
        .args(["--policy", "policy.json"])
        .output()
        .expect("the binary runs");
    let line = refusal(&output);
    assert!(line.contains(expected), "`{line}` does not say `{expected}`");
}

#[rstest]
#[case::baseline(&["--precision", "32-true"], "32-true is what the others are held against")]
#[case::limit(&["--limit=-1"], "limit -1: it must be a number from 0 on")]
#[case::folder(&["--fix", "nowhere/policy.json"], "there is no folder nowhere; create it first")]
#[case::seeds(&["--seeds", "0"], "invalid value '0' for '--seeds <K>'")]
#[case::reference(&["--reference", "none.json"], "none.json: No such file")]
fn bad_options_of_diagnose_are_refused(#[case] arguments: &[&str], #[case] expected: &str) {
    let folder = tempdir().expect("a temporary folder");
    let mut command = amp(folder.path());
    command.args(["diagnose", "--device", "cpu", "--epochs", "1"]).args(arguments);
    assert_refused(&mut command, folder.path(), expected);
}

/// With the whole model FP32 a mixed run is a 32-true run: 16-mixed's scale is a power of two, and
/// nothing is lost, to the last bit.
#[test]
fn the_metric_of_a_whole_island_is_the_baselines() {
    let _generator = generator();
    let model = fixtures::models::find("PrecisionTestModel").expect("a model");
    let choices = Choices { epochs: Some(1), seed: 3, ..Choices::default() };
    let case = Case::new(model, choices, torch_device()).expect("a case");
    let mut check = MetricLoss::new(&case, Precision::F16Mixed, 0.25, 2).expect("a baseline");
    assert_eq!(check.describe(), "val_acc lost against 32-true, the mean of 2 seeds");
    let whole = fp32(&Islands::new(), &["model".to_owned()]);
    let found = check.run(&whole).expect("an outcome");
    assert!(found.figure == Some(0.0) || torch_device() != Device::Cpu, "{found:?}");
    assert!(found.passes() && check.run(&Islands::new()).expect("an outcome").passes());
    let islands = whole.clone();
    let mut healed = case.clone();
    healed.trainer.islands = islands.into();
    let mut ignore = |_: &Event| -> Result<()> { Ok(()) };
    let record = runner::run(&healed, Precision::F16Mixed, runner::Extras::default(), &mut ignore);
    let matmul = record.expect("a record").observed.matmul;
    assert!(matmul.iter().eq(["float32"]), "{matmul:?}");
    // bf16-true has no parameter of its own dtype left then, and may still be trained.
    let mut check = MetricLoss::new(&case, Precision::Bf16True, 0.25, 1).expect("a baseline");
    assert!(check.run(&whole).expect("an outcome").passes());
}
