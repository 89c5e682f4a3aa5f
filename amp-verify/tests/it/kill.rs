//! `kill -9` at any moment leaves a checkpoint to go on from, and goes unnoticed in the result.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use amp_core::{
    LightningModule, checkpoint,
    tch::{Kind, Tensor},
    weights,
};
use serde_json::json;
use tempfile::tempdir;

use crate::support::{amp, files, text};

const KILLS: u32 = 200;
/// Of the delays before a kill; they are the same in every run, though not what they hit.
const SEED: u64 = 20_260;
/// The longest of them: time for dozens of steps, each with its checkpoint.
const LONGEST: Duration = Duration::from_millis(60);
/// Where both runs save, below folders of their own.
const CHECKPOINTS: &str = "checkpoints";

/// A model so small that most of the time goes into saving it. Dropout and batch statistics are
/// part of what has to be restored.
fn model() -> Box<dyn LightningModule> {
    let entry = fixtures::models::find("MixedPrecisionDemo").expect("the model");
    let mut hyperparameters = entry.hyperparameters();
    hyperparameters.insert("hidden_size".to_owned(), json!(4));
    entry.build(&hyperparameters).expect("a model")
}

fn train(folder: &Path) -> Command {
    let mut command = amp(folder);
    command
        .args(["train", "--device", "cpu", "--threads", "1", "--quiet", "--epochs", "100000"])
        .args(["--set", "hidden_size=4", "--checkpoint-dir", CHECKPOINTS])
        .env("OMP_NUM_THREADS", "1");
    command
}

/// Starts a run and returns once it trains.
fn started(command: &mut Command) -> Child {
    let mut run =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut title = String::new();
    let stdout = run.stdout.as_mut().expect("piped");
    // Unbuffered beyond the line: what follows is never read.
    BufReader::with_capacity(1, stdout).read_line(&mut title).expect("text");
    if title.is_empty() {
        let mut why = String::new();
        run.stderr.take().expect("piped").read_to_string(&mut why).expect("text");
        panic!("the run ended before it began: {why}");
    }
    run
}

fn finished(command: &mut Command) {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Reads the newest checkpoint whole, its checksum included; its texts.
fn newest(folder: &Path, model: &dyn LightningModule) -> Option<BTreeMap<String, String>> {
    let path = checkpoint::latest(&folder.join(CHECKPOINTS)).expect("every file reads")?;
    Some(weights::load(model, &path).expect("the newest is whole"))
}

fn steps(texts: &BTreeMap<String, String>) -> u64 {
    texts["global_step"].parse().expect("a count")
}

fn unfinished(folder: &Path) -> usize {
    files(&folder.join(CHECKPOINTS)).iter().filter(|name| name.starts_with(".unfinished")).count()
}

/// All tensors of a file by name: those of the model, the optimizer and the random generator.
fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let path = folder.join(CHECKPOINTS).join("last.safetensors");
    Tensor::read_safetensors(path).expect("a safetensors file").into_iter().collect()
}

fn same_bits(one: &Tensor, other: &Tensor) -> bool {
    let bytes = |tensor: &Tensor| tensor.contiguous().view([-1]).view_dtype(Kind::Uint8);
    one.kind() == other.kind() && one.size() == other.size() && bytes(one) == bytes(other)
}

#[test]
fn two_hundred_kills_leave_no_trace() {
    let (killed, straight) = (tempdir().expect("a folder"), tempdir().expect("a folder"));
    let model = model();
    let mut delays = fastrand::Rng::with_seed(SEED);
    let (mut reached, mut while_writing) = (0, 0);
    for kill in 0..KILLS {
        let mut command = train(killed.path());
        command.args(["--every-n-train-steps", "1"]);
        if reached > 0 {
            command.args(["--resume", CHECKPOINTS]);
        }
        let mut run = started(&mut command);
        let delay = LONGEST.mul_f64(delays.f64());
        thread::sleep(delay);
        run.kill().expect("it is still running");
        run.wait().expect("it has ended");

        let which = format!("kill {kill} of seed {SEED}, {delay:?} after the start");
        let left = unfinished(killed.path());
        assert!(left <= 1, "{which}: unfinished files of earlier runs were left: {left}");
        while_writing += u32::from(left == 1);
        match newest(killed.path(), model.as_ref()) {
            Some(texts) => {
                let steps = steps(&texts);
                assert!(steps >= reached, "{which}: back from step {reached} to {steps}");
                reached = steps;
            }
            None => assert_eq!(reached, 0, "{which}: no checkpoint is left"),
        }
    }
    println!("{while_writing} of {KILLS} kills hit a file being written; step {reached} reached");
    assert!(while_writing > 0, "no kill came while a file was being written: nothing was tested");
    assert!(reached > 23, "step {reached}: no epoch's end was reached");

    let end = (reached + 7).to_string();
    finished(train(killed.path()).args(["--resume", CHECKPOINTS, "--max-steps", &end]));
    assert_eq!(unfinished(killed.path()), 0);
    finished(train(straight.path()).args(["--max-steps", &end]));

    let (one, other) = (tensors(killed.path()), tensors(straight.path()));
    assert!(one.keys().eq(other.keys()));
    for (name, tensor) in &one {
        assert!(same_bits(tensor, &other[name]), "`{name}` differs");
    }
    assert!(one.contains_key("model.0.weight") && one.keys().any(|name| name.contains('/')));
    // Schedule, counts, position, callbacks.
    let texts = |folder: &Path| newest(folder, model.as_ref()).expect("a checkpoint");
    assert_eq!(texts(killed.path()), texts(straight.path()));
}
