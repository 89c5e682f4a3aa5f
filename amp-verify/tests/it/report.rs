//! The report: one page that needs nothing else, with what the run did in it.

use std::fs;

use amp_core::{
    event::{Event, Skipped, Subscriber},
    precision::Precision,
};
use amp_verify::report::{Courses, wilson};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{amp, device, refusal, text};

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

#[test]
fn the_page_needs_nothing_else() {
    let folder = tempdir().expect("a temporary folder");
    let run = |path: &str| {
        amp(folder.path())
            .args(["verify", "--model", "PrecisionTestModel", "--epochs", "2", "--quiet"])
            .args(["--device", &device(), "--precision", "16-mixed,bf16-mixed", "--html", path])
            .output()
            .expect("the binary runs")
    };
    let output = run("report.html");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = fs::read_to_string(folder.path().join("report.html")).expect("the page");
    for name in ["32-true", "16-mixed", "bf16-mixed", "PrecisionTestModel"] {
        assert!(page.contains(name), "{name}");
    }
    // Accuracy, the loss and its differences, the scale, memory: each for light and dark.
    assert_eq!(page.matches("<svg").count(), 2 * 5);
    for foreign in [" src=", " href=", "url(", "@import", "<script"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let said = refusal(&run("missing/report.html"));
    assert!(said.contains("there is no folder"), "{said}");
}
