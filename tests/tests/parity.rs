//! Tests of `cargo amp parity` with real PyTorch. A model agrees with its PyTorch version, and
//! disagrees with a PyTorch version that was changed so that it trains differently.

use std::{
    cell::Cell,
    env, fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use amp_core::Result;
use amp_verify::{
    Model, Registry, Twin,
    parity::{self, ParityArgs, Report, Status},
    project,
    registry::Changes,
};
use clap::Parser;
use fixtures::registry;
use rstest::rstest;
use tempfile::tempdir;

/// The options of the command, parsed as on the command line.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    parity: ParityArgs,
}

/// Returns a program that runs Python with torch. If the variable `AMP_TEST_PYTHON` is set, the
/// program uses the packages in the folder that this variable names. Otherwise it uses the torch
/// that Python itself finds. Torch is loaded once for all tests.
fn python() -> &'static str {
    static LOADED: OnceLock<(Child, String)> = OnceLock::new();
    let (_, program) = LOADED.get_or_init(|| {
        // Another Python process keeps torch loaded and waits. It ends when this process ends, and
        // then removes the folder.
        let folder = tempdir().expect("a temporary folder").keep();
        let (own, program) = (folder.join("forked_python.py"), folder.join("python"));
        fs::write(&own, include_str!("../forked_python.py")).expect("a program can be written");
        let start = format!("#!/bin/sh\nexec python3 -I -S '{}' \"$@\"\n", own.display());
        fs::write(&program, start).expect("a script can be written");
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("it can be run");
        let mut waiting = Command::new("python3")
            .arg("-B")
            .arg(own)
            .arg("--serve")
            .env("PYTHONPATH", env::var_os("AMP_TEST_PYTHON").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut said = String::new();
        let output = waiting.stdout.take().expect("it is a pipe");
        BufReader::new(output).read_line(&mut said).expect("it is text");
        assert_eq!(said, "ready\n");
        (waiting, program.to_string_lossy().into_owned())
    });
    program
}

fn run(registry: &Registry, arguments: &[&str]) -> Result<Report> {
    let fixed = ["parity", "--device", "cpu", "--threads", "1", "--quiet", "--python", python()];
    let all = fixed.iter().chain(arguments);
    parity::run(registry, &Options::parse_from(all).parity, &|_| {})
}

#[rstest]
#[case::lstm("LstmForecaster", "60")]
#[case::tabular("TabularNet", "60")]
#[case::two_tower("TwoTower", "60")]
#[case::wgan("WganGp", "60")]
#[case::gpt2("Gpt2", "30")]
fn a_twin_agrees(#[case] model: &str, #[case] steps: &str) -> Result<()> {
    let registry = registry();
    let found = registry.find(Some(model))?;
    let margin = registry.margin(found, &Changes::default(), found.length())?.to_string();
    let arguments = [model, "--max-steps", steps, "--seeds", "2", "--margin", &margin];
    let report = run(&registry, &arguments)?;
    for row in &report.rows {
        assert!(
            row.failures.is_empty(),
            "{} under {}: {:?}",
            row.model,
            row.precision,
            row.failures
        );
        assert_ne!(row.status, Status::Disagree);
    }
    assert_eq!(report.rows.len(), 3);
    Ok(())
}

/// Returns a registry that contains the LSTM. In the source of its PyTorch version, `from` is
/// replaced by `to`.
fn lstm(from: &str, to: &str) -> Result<Registry> {
    const TWIN: &str = include_str!("../../fixtures/twins/lstm.py");
    const LSTM: &str = include_str!("../../fixtures/src/projects/lstm.rs");
    changed(["LstmForecaster", "waves"], [TWIN, LSTM], from, to)
}

/// Returns a registry that contains the WGAN. In the source of its PyTorch version, `from` is
/// replaced by `to`.
fn wgan(from: &str, to: &str) -> Result<Registry> {
    const TWIN: &str = include_str!("../../fixtures/twins/wgan.py");
    const WGAN: &str = include_str!("../../fixtures/src/projects/wgan.rs");
    changed(["WganGp", "ring"], [TWIN, WGAN], from, to)
}

/// Returns a registry that contains only this model and its data set. In the source of the model's
/// PyTorch version, `from` is replaced by `to`.
fn changed(
    [model, data]: [&str; 2],
    [twin, source]: [&'static str; 2],
    from: &str,
    to: &str,
) -> Result<Registry> {
    assert!(twin.contains(from), "{from}");
    let whole = registry();
    let twin = Twin::new(Box::leak(twin.replace(from, to).into_boxed_str()), source);
    let model = Model::clone(whole.find(Some(model))?).twin(twin);
    let data = whole.find_data(data)?;
    Ok(Registry::new(project!()).data_set(data.as_ref().clone()).model(model))
}

/// The PyTorch version overflows in step 3, so it skips this step, and the Rust model does not. The
/// report shows the largest gradient of each of the first steps. Before step 3, the two largest
/// gradients are nearly equal.
#[rstest]
#[case::automatic(lstm("return F.mse_loss(", &format!("return {} * F.mse_loss(", overflows("self")))?)]
#[case::manual(wgan("loss = gap +", &format!("loss = gap + {} *", overflows("self")))?)]
fn other_skips_are_shown_with_the_largest_gradients(#[case] registry: Registry) -> Result<()> {
    let arguments =
        ["--max-steps", "6", "--seeds", "2", "--precision", "16-mixed", "--margin", "0.014"];
    let row = run(&registry, &arguments)?.rows.remove(0);
    assert_eq!(row.status, Status::Disagree);
    for seed in &row.seeds {
        let own = &seed.skipped.ours;
        let expected: Vec<u64> = own.iter().copied().filter(|step| *step < 3).chain([3]).collect();
        assert_eq!(seed.skipped.theirs.get(..expected.len()), Some(&expected[..]));
        let again = seed.again.as_ref().expect("a second run");
        let (ours, theirs) = (&again.attempts.ours, &again.attempts.theirs);
        for (own, other) in ours.iter().zip(theirs).take(3) {
            assert_eq!((own.scale, own.skipped), (other.scale, other.skipped));
            let apart =
                own.largest.zip(other.largest).map(|(own, other)| (own / other - 1.0).abs());
            assert!(own.skipped || apart.is_some_and(|apart| apart < 0.02), "{own:?}, {other:?}");
        }
        assert!(theirs[3].skipped && theirs[3].largest.is_none(), "{:?}", theirs[3]);
        assert_eq!(ours.len(), 6);
    }
    let of_seeds: Vec<&String> =
        row.failures.iter().filter(|text| text.starts_with("seed")).collect();
    assert!(of_seeds.len() == 2 && row.notes.is_empty(), "{:?}, {:?}", row.failures, row.notes);
    assert!(of_seeds.iter().all(|text| text.contains("with libtorch's kernels")), "{of_seeds:?}");
    Ok(())
}

/// Returns a Python expression. Its value is 1e30 when it is evaluated the fourth time, and 1
/// otherwise.
fn overflows(module: &str) -> String {
    format!(
        "(setattr({module}, 'n', getattr({module}, 'n', -1) + 1) or (1e30 if {module}.n == 3 else 1.0))"
    )
}

/// If the PyTorch version trains differently, the model and the PyTorch version disagree. Each of
/// these changes affects the first losses more than rounding in f32 does.
#[rstest]
#[case::learning_rate("lr=self.learning_rate", "lr=1.0001 * self.learning_rate")]
#[case::epsilon("lr=self.learning_rate", "lr=self.learning_rate, eps=1e-7")]
#[case::weight_decay("lr=self.learning_rate", "lr=self.learning_rate, weight_decay=1e-4")]
#[case::averages("lr=self.learning_rate", "lr=self.learning_rate, betas=(0.9, 0.998)")]
#[case::loss("F.mse_loss(", "F.smooth_l1_loss(")]
#[case::states("states[:, -1]", "states[:, -2]")]
fn a_twin_that_trains_otherwise_disagrees(#[case] from: &str, #[case] to: &str) -> Result<()> {
    let arguments =
        ["--max-steps", "60", "--seeds", "2", "--precision", "32-true", "--margin", "0.0012"];
    let report = run(&lstm(from, to)?, &arguments)?;
    let said = report.rows[0].failures.join("; ");
    assert!(said.contains("the loss of batch"), "{said}");
    Ok(())
}

/// With `--cache`, a command takes the rows of its report from the folder. It computes a row again
/// if the options or the PyTorch version have changed, if the file of the row is damaged, or if the
/// PyTorch version failed.
#[test]
fn rows_are_kept_in_a_folder() -> Result<()> {
    const RATE: &str = "lr=self.learning_rate";
    let folder = tempdir().expect("a temporary folder");
    let trained = |registry: &Registry, steps: &str| -> Result<(usize, Report)> {
        let cache = folder.path().to_string_lossy();
        let arguments = [
            "parity",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--precision",
            "32-true",
            "--seeds",
            "2",
            "--max-steps",
            steps,
            "--margin",
            "0.0012",
            "--python",
            python(),
            "--cache",
            &cache,
        ];
        let count = Cell::new(0);
        let tell = |_: &str| count.set(count.get() + 1);
        let report = parity::run(registry, &Options::parse_from(arguments).parity, &tell)?;
        Ok((count.get(), report))
    };
    let same = lstm(RATE, RATE)?;
    let (count, first) = trained(&same, "20")?;
    assert_eq!(count, 1);
    let (count, again) = trained(&same, "20")?;
    assert_eq!((count, &again.rows), (0, &first.rows));
    assert_eq!(trained(&same, "21")?.0, 1);
    assert_eq!(trained(&lstm(RATE, "lr=1.0 * self.learning_rate")?, "20")?.0, 1);
    for file in fs::read_dir(folder.path()).expect("a folder") {
        fs::write(file.expect("a file").path(), "{").expect("it can be written");
    }
    assert_eq!(trained(&same, "20")?, (1, first));
    let other = lstm(RATE, "lr=1.1 * self.learning_rate")?;
    for expected in [1, 0] {
        let (count, report) = trained(&other, "20")?;
        assert_eq!((count, report.status()), (expected, Status::Disagree));
    }
    let failing = lstm(RATE, "lr=no_rate")?;
    for _ in 0..2 {
        let (count, report) = trained(&failing, "20")?;
        assert_eq!((count, report.status()), (1, Status::Disagree));
    }
    Ok(())
}
