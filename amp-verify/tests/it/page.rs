//! The page, read as a reader's browser does: it is parsed, and its charts are measured.

use std::{collections::BTreeMap, fs};

use amp_core::{
    Result,
    hardware::Fingerprint,
    precision::Precision,
    tch::{Kind as Dtype, Tensor},
};
use amp_verify::{
    comparison::Comparison,
    exponents::{Histogram, Losses},
    layers::{Flow, Layer, Report},
    report::{Content, Courses, html},
};
use quick_xml::{Reader, events::Event};
use rstest::rstest;
use serde_json::json;
use tempfile::tempdir;

use crate::support::{amp, device, refusal, text};

/// One element with its text; `section` is the heading it stands under.
struct Element {
    name: String,
    attributes: BTreeMap<String, String>,
    text: String,
    section: String,
}

impl Element {
    fn number(&self, attribute: &str) -> f64 {
        self.attributes[attribute].parse().expect("a number")
    }

    fn is(&self, name: &str, fill: &str) -> bool {
        let ours = self.attributes.get("fill").or(self.attributes.get("stroke"));
        self.name == name && ours.is_some_and(|own| own == fill)
    }
}

/// Every element of the page, which must be well-formed XML.
fn elements(page: &str) -> Vec<Element> {
    let mut reader = Reader::from_str(page);
    let (mut all, mut open, mut section) = (Vec::new(), Vec::new(), String::new());
    loop {
        match reader.read_event().expect("well-formed") {
            Event::Eof => break,
            event @ (Event::Start(_) | Event::Empty(_)) => {
                let (tag, stays) = match &event {
                    Event::Start(tag) => (tag, true),
                    Event::Empty(tag) => (tag, false),
                    _ => unreachable!(),
                };
                let attributes = tag.attributes().map(|attribute| {
                    let attribute = attribute.expect("an attribute");
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
                    (text(attribute.key.as_ref()), text(&attribute.value))
                });
                let name = String::from_utf8(tag.name().as_ref().to_vec()).expect("UTF-8");
                let attributes = attributes.collect();
                if name == "section" {
                    section.clear();
                }
                all.push(Element {
                    name,
                    attributes,
                    text: String::new(),
                    section: section.clone(),
                });
                if stays {
                    open.push(all.len() - 1);
                }
            }
            Event::End(_) => {
                let at = open.pop().expect("one that is open");
                if all[at].name == "h2" {
                    section.clone_from(&all[at].text);
                }
            }
            Event::Text(text) => {
                if let Some(at) = open.last() {
                    all[*at].text += text.decode().expect("UTF-8").trim();
                }
            }
            _ => {}
        }
    }
    assert!(open.is_empty());
    all
}

/// Where a chart's axis has its powers of `base`: pixels by exponent along `x` or `y`.
fn ticks<'a>(chart: impl Iterator<Item = &'a Element>, base: &str, along: &str) -> (f64, f64) {
    let digits: Vec<char> = "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().collect();
    let exponent = |text: &str| -> Option<f64> {
        let digit = |letter: char| match letter {
            '⁻' => Some('-'),
            other => {
                digits.iter().position(|d| *d == other).and_then(|d| char::from_digit(d as u32, 10))
            }
        };
        text.strip_prefix(base)?.chars().map(digit).collect::<Option<String>>()?.parse().ok()
    };
    let points: Vec<(f64, f64)> = chart
        .filter(|element| element.name == "text")
        .filter_map(|element| Some((exponent(&element.text)?, element.number(along))))
        .collect();
    let (first, last) = (points[0], points[points.len() - 1]);
    let each = (last.1 - first.1) / (last.0 - first.0);
    for (exponent, pixel) in &points {
        let expected = first.1 + each * (exponent - first.0);
        assert!((expected - pixel).abs() <= 1.0, "{base}^{exponent} at {pixel}, not {expected}");
    }
    (first.1 - each * first.0, each)
}

fn fingerprint() -> Fingerprint {
    Fingerprint {
        device: "a <CPU> & more".into(),
        capability: "avx2".into(),
        multiplies_f16: false,
        libtorch: "2.11.0".into(),
        threads: 1,
        tf32: false,
        deterministic: false,
    }
}

fn comparison() -> Comparison {
    serde_json::from_value(json!({
        "schema": "amp-verify/2", "model": "M", "data": "d", "precision": "32-true", "seed": 0,
        "fingerprint": fingerprint(), "hyperparameters": {}, "parameters": 1, "max_epochs": 1,
        "batches_per_epoch": 1, "resumed": null, "batch_size": 1, "metric": "val_acc",
        "seeds": [0],
        "runs": [{
            "precision": "32-true", "accuracy": 0.9, "loss": 0.5, "applied_steps": 1,
            "skipped_steps": 0, "first_culprit": null, "first_cause": null, "final_scale": null,
            "peak_memory_bytes": 3 << 20, "train_seconds": 1.0, "notes": ["a < b"],
            "observed": amp_core::probe::Observed::default(), "delta": null, "over_seeds": null
        }]
    }))
    .expect("a comparison")
}

fn flow(values: &[f64], ratio: Option<f64>) -> Flow {
    let values = Tensor::from_slice(values).to_kind(Dtype::Float);
    Flow {
        rms: Some(1.0),
        error: ratio,
        baseline_error: Some(1.0),
        ratio,
        local_error: None,
        inherited_error: None,
        local_share: None,
        bias: None,
        predicted: None,
        observed: Losses::default(),
        histogram: Histogram::of(&values).expect("a histogram"),
    }
}

/// Layers whose outputs are these, with these errors over 32-true's.
fn page(layers: &[(&str, Flow)], log2_scale: i32) -> String {
    let layers = layers.iter().map(|(path, flow)| Layer {
        path: (*path).into(),
        dtype: "float16".into(),
        forward: flow.clone(),
        input_gradient: Some(flow.clone()),
        weight_gradient: None,
        window: None,
        margin_bits: None,
        worst: Vec::new(),
    });
    let report = Report {
        schema: String::new(),
        model: "M".into(),
        precision: Precision::F16Mixed,
        fingerprint: fingerprint(),
        seed: 0,
        batch_size: 1,
        log2_scale,
        dropout: true,
        loss: None,
        exact_loss: 0.0,
        layers: layers.collect(),
        growth: None,
        window: None,
    };
    let steps: Result<Vec<Report>> = Ok(vec![report]);
    let courses = Courses::default();
    let content =
        Content { comparison: &comparison(), courses: &courses, examples: 100, steps: &steps };
    html(&content).expect("a page")
}

/// IEEE 754 and the OCP formats: smallest subnormal, smallest normal, and the power of two that
/// ends the range.
#[rstest]
#[case::f16(0, Some(-24.0), Some(-14.0), Some(16.0))]
#[case::bf16(1, None, None, None)]
#[case::e4m3(2, Some(-9.0), Some(-6.0), Some(9.0))]
#[case::e5m2(3, Some(-16.0), Some(-14.0), Some(16.0))]
fn formats_stand_at_their_exponents(
    #[case] place: usize,
    #[case] subnormal: Option<f64>,
    #[case] normal: Option<f64>,
    #[case] end: Option<f64>,
) {
    let all = elements(&page(&[("a", flow(&[1.0], Some(1.0)))], 0));
    let chart = || all.iter().filter(|element| element.section == "Outputs by exponent");
    let (zero, each) = ticks(chart(), "2", "x");
    // bf16's ends are outside of the chart: 2^-25 … 2^17.
    let pixel = |exponent: Option<f64>, edge: f64| zero + each * exponent.unwrap_or(edge);
    let near = |found: f64, expected: f64, what: &str| {
        assert!((found - expected).abs() <= 1.5, "{what}: {found}, not {expected}");
    };
    // The strips from top to bottom; of each format the band of subnormal values comes first.
    let mut bands: Vec<&Element> = chart().filter(|e| e.is("rect", "var(--normal)")).collect();
    bands.sort_by(|a, b| a.number("y").total_cmp(&b.number("y")));
    assert_eq!(bands.len(), 4);
    let band = bands[place];
    let below = chart().find(|element| {
        element.is("rect", "var(--subnormal)") && element.number("y") == band.number("y")
    });
    let below = below.expect("a band of subnormal values");
    near(below.number("x"), pixel(subnormal, -25.0), "subnormal");
    near(band.number("x"), pixel(normal, -25.0), "normal");
    near(band.number("x") + band.number("width"), pixel(end, 17.0), "end");
}

/// A hundred values: one overflows f16, five are subnormal there, two become zero; 2^-9 has ten
/// times the share of 2^-20's five. At 2^10 the ten of 2^9 overflow as well.
#[test]
fn bars_and_shares_are_the_values() {
    let mut values = vec![2.0_f64.powi(17), 2.0_f64.powi(-30), 2.0_f64.powi(-31)];
    values.extend([2.0_f64.powi(-20); 5]);
    values.extend([1.5 * 2.0_f64.powi(-9); 50]);
    values.extend([2.0_f64.powi(9); 10]);
    values.extend([1.0; 32]);
    let all = elements(&page(&[("a", flow(&values, None))], 10));
    let chart = |title: &'static str| all.iter().filter(move |element| element.section == title);
    let bars: Vec<&Element> =
        chart("Outputs by exponent").filter(|e| e.is("rect", "var(--s2)")).collect();
    let (zero, each) = ticks(chart("Outputs by exponent"), "2", "x");
    let (top, decade) = ticks(chart("Outputs by exponent"), "10", "y");
    let expected =
        [(-31, 0.01), (-30, 0.01), (-20, 0.05), (-9, 0.5), (0, 0.32), (9, 0.1), (17, 0.01)];
    assert_eq!(bars.len(), expected.len());
    for (bar, (exponent, share)) in bars.iter().zip(expected) {
        let x = zero + each * f64::from(exponent);
        assert!((bar.number("x") - x).abs() <= 1.5, "2^{exponent}");
        // Labels stand on their baseline, a third of a letter below the tick.
        let y = top + decade * f64::log10(share);
        let (found, letters) = (bar.number("y"), 10.0);
        assert!((found - y).abs() <= letters, "2^{exponent}: {found}, not {y}");
    }
    let height = |at: usize| bars[at].number("y");
    let tenfold = height(2) - height(3);
    assert!((tenfold + decade).abs() <= 1.5, "{tenfold} for a factor of ten, {decade} a decade");
    let cells = |title: &'static str| -> Vec<&str> {
        chart(title).filter(|e| e.name == "td").map(|e| e.text.as_str()).collect()
    };
    assert_eq!(cells("Outputs by exponent")[..3], ["1.0 %", "5.0 %", "2.0 %"], "f16");
    // bf16 holds all of them; E5M2's smallest is 2^-16.
    assert_eq!(cells("Outputs by exponent")[3..6], ["0", "0", "0"]);
    assert_eq!(cells("Outputs by exponent")[9..12], ["1.0 %", "0", "7.0 %"]);
    let scaled = cells("Input gradients by exponent");
    assert_eq!(scaled.len(), 2 * 4 * 3);
    assert_eq!(scaled[12..15], ["11 %", "2.0 %", "0"], "f16 at the loss scale");
    assert!(cells("Weight gradients by exponent").is_empty());
}

/// A layer's marks stand at its ratio, what is not finite at the edge.
#[test]
fn errors_stand_at_their_ratio() {
    let broken = Flow { error: None, ..flow(&[1.0], None) };
    let page = page(&[("a", flow(&[1.0], Some(100.0))), ("b<c>", broken)], 0);
    assert!(page.contains("b&lt;c&gt;"));
    let all = elements(&page);
    let title = "Error of each layer under 16-mixed, over 32-true's";
    let chart = || all.iter().filter(|element| element.section == title);
    let (zero, each) = ticks(chart(), "10", "x");
    let discs: Vec<&Element> = chart().filter(|e| e.is("circle", "var(--s1)")).collect();
    assert_eq!(discs.len(), 1);
    let x = discs[0].number("cx");
    assert!((x - (zero + 2.0 * each)).abs() <= 1.5, "{x} for a ratio of 100");
    // Grey lines at 1 and at 8192, f16's unit roundoff over f32's.
    let limits: Vec<f64> = chart()
        .filter(|element| element.is("polyline", "none") || element.name == "line")
        .filter(|element| element.attributes.get("stroke").is_some_and(|s| s == "var(--limit)"))
        .map(|element| match element.attributes.get("points") {
            Some(points) => points.split(',').next().expect("x").parse().expect("a number"),
            None => element.number("x1"),
        })
        .collect();
    assert_eq!(limits.len(), 2);
    for (found, exponent) in limits.iter().zip([0.0, 8192.0_f64.log10()]) {
        assert!((found - (zero + each * exponent)).abs() <= 1.5, "{found}");
    }
    let cells: Vec<&str> = chart().filter(|e| e.name == "td").map(|e| e.text.as_str()).collect();
    assert_eq!(cells[..2], ["1.000e2", "1.000e2"]);
    assert_eq!(cells[6..8], ["not finite", "not finite"]);
    // Each cross is two strokes: output and input gradient.
    let red = |e: &&Element| e.attributes.get("stroke").is_some_and(|s| s == "var(--alarm)");
    assert_eq!(chart().filter(red).count(), 2 * 2);
}

/// A run that overflows first: the page is well-formed, needs nothing else, and marks each skipped
/// step.
#[test]
fn the_page_needs_nothing_else() {
    let folder = tempdir().expect("a temporary folder");
    let run = |path: &str| {
        amp(folder.path())
            .args(["verify", "--model", "PrecisionTestModel", "--epochs", "2", "--quiet"])
            .args(["--device", &device(), "--precision", "16-mixed,bf16-mixed", "--html", path])
            .args(["--init-scale", "1e15", "--format", "json"])
            .output()
            .expect("the binary runs")
    };
    let output = run("report.html");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Comparison = serde_json::from_slice(&output.stdout).expect("JSON");
    let page = fs::read_to_string(folder.path().join("report.html")).expect("the page");
    for name in ["32-true", "16-mixed", "bf16-mixed", "PrecisionTestModel"] {
        assert!(page.contains(name), "{name}");
    }
    for foreign in [" src=", " href=", "url(", "@import", "<script"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let all = elements(&page);
    // Accuracy, the loss and its differences, the scale, memory; exponents of three kinds, errors
    // under both precisions.
    assert_eq!(all.iter().filter(|element| element.name == "svg").count(), 5 + 3 + 2);
    let skipped = found.runs[1].skipped_steps;
    assert!(skipped > 5, "{skipped}");
    let red = |e: &&Element| e.attributes.get("stroke").is_some_and(|s| s == "var(--alarm)");
    let scale = all.iter().filter(|e| e.section == "Loss scale under 16-mixed");
    assert_eq!(scale.filter(red).count() as u64, 2 * skipped, "a cross is two strokes");
    let memory: Vec<String> = all
        .iter()
        .filter(|e| e.section == "Peak memory" && e.name == "text")
        .map(|e| e.text.clone())
        .collect();
    for run in &found.runs {
        let mib = format!("{:.2}", run.peak_memory_bytes as f64 / f64::from(1 << 20));
        assert!(memory.contains(&mib), "{mib} in {memory:?}");
    }
    let said = refusal(&run("missing/report.html"));
    assert!(said.contains("there is no folder"), "{said}");
}
