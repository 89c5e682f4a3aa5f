//! Compares the results of the models with their goldens (recorded results). This is possible on
//! any CPU, and on GPUs for whose compute capability there is a golden. Also tests which
//! differences the comparison reports.

use amp_core::{Hyperparameters, hardware::Fingerprint, precision::Precision};
use amp_verify::golden::{
    Agreement, Anchor, Figures, Golden, Spread, Target, file_name, incomparable, machine, parse,
};
use rstest::rstest;
use serde_json::{Value, json};

/// Defines one test for each model, with the model's name.
macro_rules! goldens {
    ($($test:ident: $model:ident $(, $setter:ident = $value:expr)*;)*) => {
        $(#[test]
        fn $test() {
            amp_verify::verify!($model, registry = fixtures::registry() $(, $setter = $value)*);
        })*
    };
}

goldens! {
    mixed_precision_demo: MixedPrecisionDemo, precisions = Precision::ALL[1..].to_vec();
    advanced_amp_model: AdvancedAMPModel;
    manual_amp_model: ManualAMPModel;
    debugging_amp_model: DebuggingAMPModel;
    production_amp_model: ProductionAMPModel;
    precision_test_model: PrecisionTestModel;
    memory_efficient_model: MemoryEfficientModel;
    gradient_accumulation_model: GradientAccumulationModel;
    robust_amp_model: RobustAMPModel;
    profiling_amp_model: ProfilingAMPModel;
    digits_conv_net: DigitsConvNet;
    char_transformer: CharTransformer;
    lstm_forecaster: LstmForecaster;
    tabular_net: TabularNet;
    two_tower: TwoTower;
    wgan_gp: WganGp, epochs = 12, margin = 0.22;
    // The larger projects have a small size here, so that each trains in a few seconds of CPU time.
    unet: UNet, epochs = 3;
    gpt2: Gpt2, epochs = 2, margin = 0.49, hyperparameters = set(json!({ "n_embd": 32, "n_head": 2, "n_layer": 1 }));
    bert: Bert;
    diffusion: Diffusion, epochs = 3, hyperparameters = set(json!({ "width": 8 }));
    res_net: ResNet, epochs = 2, margin = 0.435, hyperparameters = set(json!({ "width": 8, "learning_rate": 0.001 }));
    vision_transformer: VisionTransformer, epochs = 3;
}

/// Returns hyperparameters that replace those in a model's registry entry.
fn set(values: Value) -> Hyperparameters {
    serde_json::from_value(values).expect("an object")
}

fn spread() -> Spread {
    Spread::parse(include_str!("goldens/mixed_precision_demo_cpu.spread.json")).expect("a spread")
}

fn agreement() -> Agreement {
    Agreement { spread: Some(spread()), memory: true }
}

fn golden() -> Golden {
    parse(include_str!("goldens/mixed_precision_demo_cpu.snap")).expect("a golden")
}

fn in_16(golden: &mut Golden) -> &mut Figures {
    golden.runs.get_mut("16-mixed").expect("a run of 16-mixed")
}

/// If results differ from the golden (the recorded results), the comparison names each value that
/// differs. This holds whether the tolerance comes from a spread file (results of several machines)
/// or from the seeds in the golden.
#[rstest]
fn a_changed_figure_is_named(#[values(true, false)] recorded: bool) {
    let agreement = Agreement { spread: recorded.then(spread), memory: true };
    let golden = golden();
    assert_eq!(agreement.moved(&golden, &golden), [], "a golden equals itself");
    let refused = |change: &dyn Fn(&mut Golden)| -> Vec<(String, &'static str)> {
        let mut found = golden.clone();
        change(&mut found);
        agreement.moved(&golden, &found).into_iter().map(|m| (m.precision, m.figure)).collect()
    };
    let run = |change: &dyn Fn(&mut Figures)| refused(&|golden| change(in_16(golden)));
    let expected = |figure| vec![("16-mixed".to_owned(), figure)];
    assert_eq!(run(&|f| f.accuracy = f.accuracy.map(|a| a - 0.1)), expected("accuracy"));
    assert_eq!(run(&|f| f.accuracy = None), expected("accuracy"));
    assert_eq!(run(&|f| f.loss = Some(f64::NAN)), expected("loss"));
    assert_eq!(run(&|f| f.loss = f.loss.map(|l| l * 1.3)), expected("loss"));
    assert_eq!(run(&|f| f.skipped_steps += 1), expected("skipped_steps"));
    assert_eq!(run(&|f| f.final_scale = None), expected("final_scale"));
    assert_eq!(run(&|f| f.loss_dtype = "float16".into()), expected("dtypes"));
    assert_eq!(
        run(&|f| f.peak_memory_bytes += f.peak_memory_bytes / 10),
        expected("peak_memory_bytes")
    );
    assert_eq!(refused(&|g| g.seeds[0] += 1), [(String::new(), "case")]);
    assert_eq!(refused(&|g| drop(g.runs.remove("16-mixed"))), [(String::new(), "precisions")]);
}

/// A gradient that is close to the largest f16 number may overflow with one set of kernels and not
/// with another. The number of halvings of the loss scale may therefore differ by one between
/// kernels. With the same kernels, skipped steps and the loss scale must be equal.
#[rstest]
#[case::other_kernels(cpu(), Fingerprint { capability: "avx512".into(), ..cpu() }, 1)]
#[case::f16(cpu(), Fingerprint { multiplies_f16: true, ..cpu() }, 1)]
#[case::other_gpu(cuda("9.0"), Fingerprint { device: "H200".into(), ..cuda("9.0") }, 1)]
#[case::same(cpu(), Fingerprint { threads: 64, ..cpu() }, 0)]
#[case::same_gpu(cuda("9.0"), cuda("9.0"), 0)]
fn other_kernels_may_halve_the_scale_once_more(
    #[case] known: Fingerprint,
    #[case] own: Fingerprint,
    #[case] halvings: u64,
) {
    let agreement = Agreement { spread: None, memory: true };
    let mut golden = Golden { fingerprint: Some(known), ..golden() };
    let run = in_16(&mut golden);
    (run.skipped_steps, run.final_scale) = (2, Some(16384.0));
    let moved = |skipped: u64, scale: Option<f64>| -> Vec<&'static str> {
        let mut found = Golden { fingerprint: Some(own.clone()), ..golden.clone() };
        let run = in_16(&mut found);
        (run.skipped_steps, run.final_scale) = (skipped, scale);
        agreement.moved(&golden, &found).into_iter().map(|moved| moved.figure).collect()
    };
    let accepts = |skipped, scale| moved(skipped, Some(scale)).is_empty();
    assert!(accepts(2, 16384.0));
    assert_eq!(accepts(1, 32768.0), halvings == 1);
    assert_eq!(accepts(3, 8192.0), halvings == 1);
    assert_eq!(moved(0, Some(65536.0)), ["skipped_steps", "final_scale"]);
    assert_eq!(moved(4, Some(4096.0)), ["skipped_steps", "final_scale"]);
    assert_eq!(moved(2, Some(f64::NAN)), ["final_scale"]);
    assert_eq!(moved(2, None), ["final_scale"]);
}

/// On the same model of GPU, a run must reproduce every number of the golden (the recorded results)
/// to the last bit. On another model of GPU with the same compute capability, a tolerance applies.
#[test]
fn one_model_of_gpu_repeats_every_figure() {
    let on = |device: &str| {
        let machine = cuda("9.0");
        let machine = Fingerprint { device: device.into(), deterministic: true, ..machine };
        Golden { fingerprint: Some(machine), ..golden() }
    };
    type Change = dyn Fn(&mut Figures);
    let agreement = Agreement { spread: None, memory: true };
    let known = on("H100");
    let moved = |mut found: Golden, change: &Change| -> Vec<&'static str> {
        change(in_16(&mut found));
        agreement.moved(&known, &found).into_iter().map(|moved| moved.figure).collect()
    };
    let text = serde_json::to_string(&known).expect("JSON");
    assert_eq!(agreement.moved(&known, &parse(&text).expect("a golden")), [], "read from a file");
    let changes: [(&str, &Change); 4] = [
        ("accuracy", &|f| f.accuracy = f.accuracy.map(|value| value - 1.0 / 360.0)),
        ("accuracy_delta", &|f| f.accuracy_delta = f.accuracy_delta.map(|value| value + 1e-9)),
        ("loss", &|f| f.loss = f.loss.map(|value| value * (1.0 + 4.0 * f64::EPSILON))),
        ("peak_memory_bytes", &|f| f.peak_memory_bytes += 512),
    ];
    for (figure, change) in changes {
        assert_eq!(moved(on("H100"), change), [figure]);
        assert_eq!(moved(on("H200"), change), [""; 0]);
    }
}

/// Checks all goldens (recorded results) of this repository. No golden tolerates a change of the
/// accuracy that is larger than the model's margin (how much worse than under 32-true the metric
/// may be), whether or not a spread file sets the tolerances.
#[test]
fn no_golden_tolerates_more_than_the_gate() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");
    let files =
        std::fs::read_dir(folder).expect("the goldens").map(|file| file.expect("a file").path());
    let snaps: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|end| end == "snap")).collect();
    assert!(snaps.len() > 20, "{}", snaps.len());
    for path in snaps {
        let golden = parse(&std::fs::read_to_string(&path).expect("a file")).expect("a golden");
        let spread = Spread::read(&path.with_extension("spread.json")).expect("a spread or none");
        for spread in [spread, None] {
            let agreement = Agreement { spread, memory: true };
            for (precision, figures) in &golden.runs {
                let allowed = agreement.tolerances(&golden, precision, figures);
                let widest = allowed.accuracy.max(allowed.accuracy_delta);
                assert!(widest <= golden.margin, "{path:?} {precision}: tolerance {widest}");
            }
        }
    }
}

/// If the loss of a run is not a finite number, the run agrees with no golden (recorded results),
/// even if the golden contains the same value. No anchor can be recorded from such a run.
#[test]
fn nan_agrees_with_nothing() {
    for value in [None, Some(f64::NAN), Some(f64::INFINITY)] {
        let mut broken = golden();
        in_16(&mut broken).loss = value;
        let moved = agreement().moved(&broken, &broken);
        assert_eq!(moved.len(), 1, "{moved:?}");
        assert!(Anchor::new(&broken, &agreement()).is_err());
    }
}

/// Small changes of the results cannot add up without limit. Each change here is within the
/// tolerance of the golden and is accepted as the new golden. But the anchor (the first recording)
/// has a budget, and the comparison with it fails when the sum of all changes exceeds this budget.
#[test]
fn accepted_drift_cannot_ratchet() {
    let agreement = agreement();
    let anchor = Anchor::new(&golden(), &agreement).expect("an anchor");
    let mut accepted = golden();
    let mut stopped = None;
    for step in 1..=10 {
        let figures = &accepted.runs["16-mixed"];
        let drift = 0.9 * agreement.tolerances(&accepted, "16-mixed", figures).loss;
        let mut found = accepted.clone();
        let run = in_16(&mut found);
        run.loss = run.loss.map(|loss| loss + drift);
        assert_eq!(agreement.moved(&accepted, &found), [], "step {step} is within tolerance");
        let exceeded = anchor.exceeded(&found);
        if !exceeded.is_empty() {
            assert_eq!(exceeded[0].figure, "loss since the anchor");
            stopped = Some(step);
            break;
        }
        accepted = found;
    }
    assert_eq!(stopped, Some(3), "three changes of 0.9 exceed a budget of 2");
}

/// An anchor is written once and never overwritten.
#[test]
fn an_anchor_is_immutable() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("golden.anchor.json");
    let refused = Anchor::load_or_create(&path, &golden(), &agreement(), false);
    assert!(refused.is_err_and(|error| error.to_string().contains("AMP_ANCHORS=write")));
    let first = Anchor::load_or_create(&path, &golden(), &agreement(), true).expect("written");
    let mut drifted = golden();
    in_16(&mut drifted).loss = Some(0.5);
    let second = Anchor::load_or_create(&path, &drifted, &agreement(), true).expect("read");
    assert_eq!(first, second);
    assert_eq!(second.exceeded(&drifted).len(), 1);
}

fn cpu() -> Fingerprint {
    Fingerprint {
        device: "a CPU".into(),
        capability: "avx2".into(),
        multiplies_f16: false,
        libtorch: "2.11.0".into(),
        threads: 2,
        tf32: false,
        deterministic: false,
    }
}

fn cuda(capability: &str) -> Fingerprint {
    Fingerprint { capability: capability.into(), threads: 0, ..cpu() }
}

#[rstest]
#[case::other_kernels(cpu(), Fingerprint { capability: "avx512".into(), ..cpu() }, None)]
#[case::other_threads(cpu(), Fingerprint { threads: 64, ..cpu() }, None)]
#[case::other_cpu(cpu(), Fingerprint { device: "another".into(), ..cpu() }, None)]
#[case::same_gpu(cuda("9.0"), Fingerprint { device: "H200".into(), ..cuda("9.0") }, None)]
#[case::other_gpu(cuda("9.0"), cuda("8.0"), Some("device"))]
#[case::gpu_for_cpu(cpu(), cuda("9.0"), Some("device"))]
#[case::libtorch(cpu(), Fingerprint { libtorch: "2.12.0".into(), ..cpu() }, Some("libtorch"))]
#[case::tf32(cuda("9.0"), Fingerprint { tf32: true, ..cuda("9.0") }, Some("TF32"))]
#[case::deterministic(cpu(), Fingerprint { deterministic: true, ..cpu() }, Some("deterministic mode"))]
fn machines_differ_in_whatever_changes_figures(
    #[case] golden: Fingerprint,
    #[case] found: Fingerprint,
    #[case] expected: Option<&str>,
) {
    let why = incomparable(&golden, &found);
    match expected {
        None => assert_eq!(why, None),
        Some(what) => {
            let why = why.expect("a reason");
            assert!(why.starts_with(&format!("NOT COMPARABLE: {what} is ")), "{why}");
        }
    }
}

/// The file name of a GPU's golden contains the compute capability. A golden of another GPU, and a
/// golden without an anchor, are refused. The descriptions of machines in this test are invented.
#[test]
fn goldens_are_kept_by_compute_capability() {
    let folder = tempfile::tempdir().expect("a folder");
    let prepare = |golden: &Golden, may_write: bool| {
        Target::registered(fixtures::registry(), "MixedPrecisionDemo").prepare(
            golden,
            folder.path(),
            may_write,
        )
    };
    let names = || {
        let entries = folder.path().read_dir().expect("a folder");
        let names = entries.map(|e| e.expect("an entry").file_name().into_string());
        names.collect::<Result<Vec<_>, _>>().expect("names")
    };
    let hopper = Golden { fingerprint: Some(cuda("9.0")), ..golden() };
    let taken = prepare(&hopper, false).expect("insta reports a missing golden");
    assert_eq!((taken.name.as_str(), names().len()), ("mixed_precision_demo_cuda_9_0", 0));
    prepare(&hopper, true).expect("an anchor is written if `may_write` is true");
    assert_eq!(names(), ["mixed_precision_demo_cuda_9_0.anchor.json"]);
    let ampere = Golden { fingerprint: Some(cuda("8.0")), ..golden() };
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("mixed_precision_demo_cuda_8_0.snap"), &taken.text).expect("a file");
    let other = prepare(&ampere, true).err().expect("a golden of another GPU").to_string();
    assert!(other.starts_with("NOT COMPARABLE: device is compute capability 9.0"), "{other}");
    let own = serde_json::to_string(&ampere).expect("JSON");
    std::fs::write(file("mixed_precision_demo_cuda_8_0.snap"), own).expect("a file");
    let bare = prepare(&ampere, false).err().expect("no anchor").to_string();
    assert!(bare.contains("AMP_ANCHORS=write"), "{bare}");
}

/// The peak memory depends on the kernels. If this CPU uses other kernels than the CPU on which the
/// golden was recorded, the peak memory is not compared with the golden or its anchor.
#[rstest]
#[case::same(cpu(), true)]
#[case::other_kernels(Fingerprint { capability: "avx512".into(), ..cpu() }, false)]
#[case::f16(Fingerprint { multiplies_f16: true, ..cpu() }, false)]
fn memory_is_judged_where_the_kernels_are_the_same(
    #[case] machine: Fingerprint,
    #[case] is_judged: bool,
) {
    let golden = Golden { fingerprint: Some(cpu()), ..golden() };
    let mut found = Golden { fingerprint: Some(machine), ..golden.clone() };
    in_16(&mut found).peak_memory_bytes *= 2;
    let agreement = Agreement { spread: None, memory: true };
    let anchor = Anchor::new(&golden, &agreement).expect("figures are numbers");
    let expected = usize::from(is_judged);
    assert_eq!(agreement.moved(&golden, &found).len(), expected);
    assert_eq!(anchor.exceeded(&found).len(), expected);
}

#[test]
fn names_contain_model_and_machine() {
    assert_eq!(machine(&cuda("9.0")), "cuda_9_0");
    assert_eq!(file_name("AdvancedAMPModel", Some(&cpu())), "advanced_amp_model_cpu");
    assert_eq!(file_name("DigitsConvNet", Some(&cuda("9.0"))), "digits_conv_net_cuda_9_0");
}
