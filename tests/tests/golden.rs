//! The comparison of the first model, held against its golden on any CPU.

use amp_core::{precision::Precision, tch::Device};
use amp_verify::{
    case::{Case, Choices},
    golden::{Agreement, Golden, Spread},
    matrix,
    view::Progress,
};
use fixtures::models;

/// The case of `tests/record_spread.py`.
fn comparison() -> Golden {
    let choices = Choices { epochs: Some(3), seed: 42, ..Choices::default() };
    let model = models::find("MixedPrecisionDemo").expect("a model of this name");
    let case = Case::new(model, choices, Device::Cpu).expect("a case");
    let comparison = matrix::run(&case, &Precision::ALL, &mut Progress::hidden(6)).expect("runs");
    Golden::from(&comparison)
}

fn agreement() -> Agreement {
    let spread = Spread::parse(include_str!("goldens/cpu_spread.json")).expect("a spread");
    Agreement { spread }
}

#[test]
fn mixed_precision_demo_agrees_with_its_golden() {
    let mut settings = insta::Settings::clone_current();
    settings.set_comparator(Box::new(agreement()));
    settings.set_snapshot_path("goldens");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let golden = serde_json::to_string_pretty(&comparison()).expect("JSON");
    settings.bind(|| insta::assert_snapshot!("mixed_precision_demo_cpu", golden));
}

/// A golden is worth what it refuses: each of these changes must be seen, under its own name.
#[test]
fn a_changed_figure_is_named() {
    let agreement = agreement();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/mixed_precision_demo_cpu.snap");
    let text = std::fs::read_to_string(path).expect("the golden's file");
    let body = text.splitn(3, "---\n").nth(2).expect("a body after the header");
    let golden: Golden = serde_json::from_str(body).expect("a golden");
    assert_eq!(agreement.moved(&golden, &golden), [], "a golden agrees with itself");

    let refused = |change: &dyn Fn(&mut Golden)| -> Vec<(String, &'static str)> {
        let mut found = golden.clone();
        change(&mut found);
        agreement.moved(&golden, &found).into_iter().map(|m| (m.precision, m.figure)).collect()
    };
    let in_16 = |figure| vec![("16-mixed".to_owned(), figure)];
    let run = |golden: &mut Golden, change: &dyn Fn(&mut amp_verify::golden::Figures)| {
        change(golden.runs.get_mut("16-mixed").expect("a run of 16-mixed"));
    };
    assert_eq!(
        refused(&|g| run(g, &|f| f.accuracy = f.accuracy.map(|a| a - 0.03))),
        in_16("accuracy")
    );
    assert_eq!(refused(&|g| run(g, &|f| f.accuracy = None)), in_16("accuracy"));
    assert_eq!(refused(&|g| run(g, &|f| f.loss = Some(f64::NAN))), in_16("loss"));
    assert_eq!(refused(&|g| run(g, &|f| f.loss = f.loss.map(|l| l * 1.05))), in_16("loss"));
    assert_eq!(refused(&|g| run(g, &|f| f.skipped_steps += 1)), in_16("skipped_steps"));
    assert_eq!(refused(&|g| run(g, &|f| f.final_scale = None)), in_16("final_scale"));
    assert_eq!(refused(&|g| run(g, &|f| f.loss_dtype = "float16".into())), in_16("dtypes"));
    assert_eq!(
        refused(&|g| run(g, &|f| f.peak_memory_bytes += f.peak_memory_bytes / 10)),
        in_16("peak_memory_bytes")
    );
    assert_eq!(refused(&|g| g.seed += 1), [(String::new(), "case")]);
    assert_eq!(refused(&|g| drop(g.runs.remove("16-mixed"))), [(String::new(), "precisions")]);
}
