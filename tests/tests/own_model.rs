//! Tests of `verify!` for a model that is in no registry and has its own data. Also tests that the
//! test binary can record a golden and compare with it without cargo, as on a machine without Rust.

use std::{
    env,
    path::Path,
    process::{Command, Output},
};

use amp_core::{
    data::DataModule,
    precision::Precision,
    prelude::*,
    tch::{Device, Kind},
};
use amp_verify::golden::{Golden, Target, parse};
use rstest::rstest;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(accuracy, name = acc)]
#[optimizer(adamw, lr = 1e-2)]
struct WaveNet {
    #[hparam(default = 32)]
    hidden_size: i64,
    #[layer(sequential(linear(16, hidden_size), layer_norm(hidden_size), relu))]
    body: Sequential,
    #[layer(linear(hidden_size, 4))]
    head: Linear,
}

/// Returns waves with an offset that depends on the class: 512 training and 128 validation
/// examples.
fn waves() -> DataModule {
    let examples = |first: i64, count: i64| -> Batch {
        let row = Tensor::arange_start(first, first + count, (Kind::Int64, Device::Cpu));
        let column = Tensor::arange(16, (Kind::Int64, Device::Cpu));
        let class = row.remainder(4);
        let raised = class.unsqueeze(1).eq_tensor(&column.remainder(4)).to_kind(Kind::Float);
        let phase = row.unsqueeze(1) * (column + 1);
        let input = (phase.to_kind(Kind::Float) * 0.7).sin() + raised;
        Batch::new(input, class).expect("a batch")
    };
    DataModule::new("waves", examples(0, 512), examples(512, 128), 64)
}

/// Each case of a parametrized test has a golden of its own.
#[rstest]
fn wave_net(#[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision) {
    amp_verify::verify!(
        WaveNet,
        data = waves(),
        margin = 0.04,
        precisions = [precision],
        case = precision
    );
}

/// If the results of the first seed equal the golden, the other seeds are not run, and their
/// statistics are taken from the golden. If a result of the first seed, the list of seeds or the
/// list of precisions differs from the golden, the other seeds are run.
#[test]
fn further_seeds_are_run_when_a_figure_moved() {
    let target = Target::model(
        "WaveNet",
        |hyperparameters| {
            Ok(Box::new(WaveNet::builder().hyperparameters(hyperparameters)?.build()?))
        },
        waves(),
    );
    let target = target.precisions([Precision::Bf16Mixed]).seeds(42..44);
    let mut known = target.golden().expect("a golden");
    let run = known.runs.get_mut("bf16-mixed").expect("a run");
    run.paired.as_mut().expect("pairs").n = 99;
    let found = target.golden_like(|_| Some(known.clone())).expect("a golden");
    assert_eq!(found, known, "all results are those of the golden");
    let pairs = |change: &dyn Fn(&mut Golden)| {
        let mut known = known.clone();
        change(&mut known);
        let found = target.golden_like(|_| Some(known.clone())).expect("a golden");
        found.runs["bf16-mixed"].paired.expect("pairs").n
    };
    let figures = |golden: &mut Golden| {
        let run = golden.runs.get_mut("bf16-mixed").expect("a run");
        run.loss = run.loss.map(|loss| 2.0 * loss + 1.0);
    };
    assert_eq!(pairs(&figures), 2);
    assert_eq!(pairs(&|golden| golden.seeds.push(44)), 2);
    assert_eq!(pairs(&|golden| drop(golden.runs.remove("bf16-mixed"))), 2);
}

/// Runs `wave_net` for 16-mixed in another process, without cargo on the search path.
fn packed(folder: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command.args(["--exact", "wave_net::precision_1_Precision__F16Mixed", "--nocapture"]);
    command.current_dir(folder).env_remove("CI").env_remove("AMP_ANCHORS").env("PATH", "");
    command.env("AMP_GOLDENS", "goldens").env("INSTA_WORKSPACE_ROOT", folder);
    command.envs(variables.iter().copied()).output().expect("this binary runs")
}

/// The variable `AMP_GOLDENS` names the folder of the golden (the recorded results). The golden is
/// recorded into this folder and compared there. If the results differ or the golden is missing,
/// the test fails. Files are written only if the user asks for it.
#[test]
fn a_packed_binary_records_and_checks() {
    let folder = tempfile::tempdir().expect("a folder");
    let goldens = folder.path().join("goldens");
    std::fs::create_dir(&goldens).expect("a folder");
    let files = || {
        let entries = goldens.read_dir().expect("a folder");
        let names = entries.map(|e| e.expect("an entry").file_name().into_string());
        let mut names: Vec<String> = names.collect::<Result<_, _>>().expect("names");
        names.sort();
        names
    };
    let said = |output: &Output| {
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };

    let missing = packed(folder.path(), &[("INSTA_UPDATE", "no")]);
    assert!(!missing.status.success() && said(&missing).contains("NOT COMPARABLE"));
    assert_eq!(files(), Vec::<String>::new());

    let record = [("INSTA_UPDATE", "always"), ("AMP_ANCHORS", "write")];
    let recorded = packed(folder.path(), &record);
    assert!(recorded.status.success(), "{}", said(&recorded));
    assert!(said(&recorded).contains("1 passed"), "{}", said(&recorded));
    let [anchor, snapshot] = files().try_into().expect("two files");
    assert!(anchor.ends_with("_16_mixed.anchor.json") && snapshot.ends_with("_16_mixed.snap"));

    let checked = packed(folder.path(), &[("INSTA_UPDATE", "no")]);
    assert!(checked.status.success(), "{}", said(&checked));

    let path = goldens.join(&snapshot);
    let text = std::fs::read_to_string(&path).expect("the golden");
    let skipped = parse(&text).expect("a golden").runs["16-mixed"].skipped_steps;
    let was = format!("\"skipped_steps\": {skipped}");
    let moved = text.replace(&was, "\"skipped_steps\": 99");
    std::fs::write(&path, moved).expect("a file");
    let refused = packed(folder.path(), &[("INSTA_UPDATE", "no")]);
    assert!(!refused.status.success() && said(&refused).contains("skipped_steps"));
    std::fs::remove_file(goldens.join(anchor)).expect("the anchor");
    let bare = packed(folder.path(), &[("INSTA_UPDATE", "no")]);
    assert!(said(&bare).contains("AMP_ANCHORS=write"), "{}", said(&bare));
    assert_eq!(files(), [snapshot]);
}
