//! What the report shows of runs: intervals, courses, several seeds.

use std::fs;

use amp_core::{
    event::{Event, Skipped, Subscriber},
    precision::Precision,
};
use amp_verify::{
    comparison::{Comparison, Sample},
    report::{Courses, wilson},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::{
    output::schema,
    support::{amp, conforms, device, text},
};

/// The ends are the shares from which the one seen is just 1.96 standard errors away, which is
/// what the interval is made of; they stay within 0 and 1.
#[rstest]
fn the_interval_is_wilsons(
    #[values(0, 1, 5, 9, 10, 355, 360)] hits: i64,
    #[values(10, 360)] n: i64,
) {
    let share = hits.min(n) as f64 / n as f64;
    let (low, high) = wilson(share, n);
    assert!(0.0 <= low && low <= share && share <= high && high <= 1.0);
    for end in [low, high] {
        let away = (share - end).abs();
        let error = 1.959_963_985 * (end * (1.0 - end) / n as f64).sqrt();
        assert!((away - error).abs() < 1e-9, "{away} against {error}");
    }
}

#[test]
fn the_scales_course_has_its_skipped_steps() -> amp_core::Result<()> {
    let mut courses = Courses::default();
    let start = serde_json::json!({
        "event": "fit_start", "model": "M", "data": "d", "precision": "16-mixed", "seed": 0,
        "fingerprint": {"device": "", "capability": "", "libtorch": "", "threads": 1,
                        "tf32": false, "deterministic": false},
        "hyperparameters": {}, "parameters": 1, "max_epochs": 1, "batches_per_epoch": 4,
        "resumed": null
    });
    let start: Event = serde_json::from_value(start).expect("an event");
    courses.on_event(&start)?;
    let skipped = Skipped { attempt: 1, culprit: None, scale: 8.0, provenance: None };
    courses.on_event(&Event::Skipped(skipped))?;
    courses.on_event(&Event::Scale { attempt: 2, scale: 4.0 })?;
    let course = courses.of(Precision::F16Mixed).expect("a course");
    assert_eq!(course.scale, [(0.0, 8.0), (2.0, 4.0)]);
    assert_eq!(course.skips, [(1.0, 8.0)]);
    assert!(courses.of(Precision::F32True).is_none());
    Ok(())
}

/// The mean's interval for three seeds: t(0.975, 2) = 4.302653, s = 0.02. Three equal values do not
/// claim certainty.
#[rstest]
#[case::spread(&[0.90, 0.92, 0.94], 0.0, Some((0.92, 4.302_653 * 0.02 / 3.0_f64.sqrt())))]
#[case::steps(&[0.92, 0.92, 0.92], 0.01, Some((0.92, 4.302_653 * 0.01 / 3.0_f64.sqrt())))]
#[case::not_a_number(&[0.92, f64::NAN, 0.92], 0.01, None)]
#[case::one(&[0.92], 0.01, None)]
fn the_interval_of_a_mean_is_students(
    #[case] values: &[f64],
    #[case] least: f64,
    #[case] expected: Option<(f64, f64)>,
) {
    let values = values.iter().map(|value| Some(*value).filter(|v| v.is_finite())).collect();
    let found = Sample::new(values, least).interval.map(|found| (found.mean, found.half_width));
    match (found, expected) {
        (Some((mean, half)), Some(expected)) => {
            assert!((mean - expected.0).abs() < 1e-12, "{mean}");
            assert!((half - expected.1).abs() < 1e-7, "{half}");
        }
        (found, expected) => assert_eq!(found, expected),
    }
}

/// Each difference is that of one seed's runs, and the page and the table show what the JSON holds.
#[test]
fn several_seeds_are_compared_seed_by_seed() {
    let folder = tempdir().expect("a temporary folder");
    let run = |arguments: &[&str]| {
        let output = amp(folder.path())
            .args(["verify", "--model", "PrecisionTestModel", "--epochs", "1", "--quiet"])
            .args(["--device", &device(), "--precision", "16-mixed"])
            .args(arguments)
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let table = run(&["--seeds", "2", "--output", "r.json", "--html", "r.html"]);
    let json = fs::read_to_string(folder.path().join("r.json")).expect("the report");
    conforms(&serde_json::from_str(&json).expect("JSON"), &schema());
    let all: Comparison = serde_json::from_str(&json).expect("a comparison");
    assert_eq!(all.seeds, [42, 43]);
    let second = run(&["--seed", "43", "--format", "json"]);
    let second: Comparison = serde_json::from_str(&second).expect("a comparison");
    for (run, other) in all.runs.iter().zip(&second.runs) {
        let figures = run.over_seeds.as_ref().expect("figures over seeds");
        assert_eq!(figures.loss.values.len(), 2);
        assert_eq!(figures.loss.values[0], run.loss);
        let delta = other.delta.as_ref().and_then(|delta| delta.accuracy);
        assert_eq!(figures.accuracy_delta.as_ref().and_then(|sample| sample.values[1]), delta);
        if device() == "cpu" {
            assert_eq!(figures.loss.values[1], other.loss, "the seed's own run");
        }
        let interval = figures.accuracy.interval.expect("two numbers");
        let (mean, half) = (100.0 * interval.mean, 100.0 * interval.half_width);
        assert!(table.contains(&format!("{mean:.2}% ± {half:.2}")), "{mean} ± {half} in {table}");
        let page = fs::read_to_string(folder.path().join("r.html")).expect("the page");
        assert!(page.contains(&format!("<td>{mean:.2} ± {half:.2}</td>")), "{mean} ± {half}");
    }
}
