//! The peers: other training engines, such as Lightning, with which `bench` compares this trainer.
//! Each peer runs in its own process. The process executes the Python program that the registry
//! names.
//!
//! The program is called as `program --engine NAME --device cpu|cuda:N --threads N`. [`engines`]
//! lists the names of the engines. The process reads one JSON request per line from standard input,
//! and writes one JSON answer per line to standard output. If a request fails, the answer's field
//! `error` contains the error message, and the process stops training the workload that it has
//! prepared. These are the requests and their answers:
//!
//! ```text
//! (at the start)                               -> {"versions": {"torch": "2.11.0"}}
//! {"prepare": {model, precision, batch, ...}}  -> {"ready": true, "first_step_seconds": s}    after the warm-up
//! {"go": steps}                                -> {"steps": n, "seconds": s, "peak_memory_bytes": b}
//! {"end": true}                                -> {"ended": true}
//! ```
//!
//! `first_step_seconds` is the time from building the model to the end of the first training step.
//! The program may leave this field out.
//!
//! The request `prepare` contains the model's name and hyperparameters, the precision, `batch`
//! (examples in a batch), `batches`, `clip` (the norm to which gradients are clipped) and `warm_up`
//! (a number of steps). If the examples are random, it also contains `classes`, and either
//! `features` (the number of values in an example) or `tokens` (the number of ids in an example). A
//! field that does not apply is null. If `classes`, `features` and `tokens` are all null, the
//! program must know from the model's name which examples to make.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
};

use amp_core::{Error, Result, precision::Precision, tch, tch::Device};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{
    interleaved::{Candidate, Chunk, Engine},
    workload::{CLIP, Size, Task},
};
use crate::{
    python::{Process, device_name, unexpected},
    registry::{Peers, Registry},
};

/// The Python interpreter and the script that run the peers (other engines, such as Lightning).
pub struct Python {
    program: PathBuf,
    script: PathBuf,
    /// The temporary file with the script, or `None` if the script is the user's own file. This
    /// field is never read. The file is deleted when the `Python` is dropped.
    _own: Option<NamedTempFile>,
}

/// A running process that trains with one peer, which is another engine, such as Lightning.
pub struct Peer {
    engine: Engine,
    /// The versions of Python and of its packages, by the package's name.
    pub versions: BTreeMap<String, String>,
    process: Process,
}

impl Python {
    /// Creates a `Python` from the interpreter `program` and the script `script`. If `script` is
    /// `None`, uses the script that the registry names.
    ///
    /// # Errors
    /// When there is no script, or the script's file cannot be written.
    pub fn new(registry: &Registry, program: &Path, script: Option<&Path>) -> Result<Self> {
        let text = match (script, &registry.bench.peers) {
            (Some(script), _) => return Self::of_file(program, script.to_owned()),
            (None, Some(Peers::File(file))) => {
                return Self::of_file(program, registry.project().path(file));
            }
            (None, Some(Peers::Text(text))) => *text,
            (None, None) => {
                return Err(Error::config(format!(
                    "the registry of {} names no Python program that runs the peers (the other \
                     training engines): name one with `.peers(…)` or with --peers-script",
                    registry.project().name()
                )));
            }
        };
        let failed = |error| Error::io(std::env::temp_dir(), error);
        let mut own = tempfile::Builder::new().suffix(".py").tempfile().map_err(failed)?;
        own.write_all(text.as_bytes()).map_err(failed)?;
        Ok(Self { program: program.into(), script: own.path().into(), _own: Some(own) })
    }

    fn of_file(program: &Path, script: PathBuf) -> Result<Self> {
        if !script.is_file() {
            return Err(Error::config(format!(
                "{}: there is no such script; name one with --peers-script",
                script.display()
            )));
        }
        Ok(Self { program: program.into(), script, _own: None })
    }
}

impl Peer {
    /// Starts the process of another engine. Does not wait until the process is ready, so that
    /// several processes can start at the same time. [`Peer::greet`] waits until the process is
    /// ready.
    ///
    /// # Errors
    /// When the interpreter does not exist.
    pub fn start(python: &Python, engine: Engine, device: Device) -> Result<Self> {
        let arguments: [OsString; 7] = [
            python.script.clone().into(),
            "--engine".into(),
            engine.name().into(),
            "--device".into(),
            device_name(device).into(),
            "--threads".into(),
            tch::get_num_threads().to_string().into(),
        ];
        let process = Process::start(&python.program, arguments)?;
        Ok(Self { engine, versions: BTreeMap::new(), process })
    }

    /// Waits until the process has loaded its packages, and stores their versions.
    ///
    /// # Errors
    /// When a Python package is missing. The error names the package.
    pub fn greet(&mut self) -> Result<()> {
        self.versions = self.process.versions()?;
        Ok(())
    }
}

/// A peer (another engine, such as Lightning) that trains one workload under one precision.
pub struct Entry<'a> {
    peer: &'a mut Peer,
    task: Value,
    steps: u64,
    first_step_seconds: Option<f64>,
    stage: Stage,
}

/// What the process of a peer (another engine, such as Lightning) does at the moment.
#[derive(PartialEq, Eq)]
enum Stage {
    /// The process has no workload to prepare or to train.
    Idle,
    /// The process has received the request to prepare a workload. Its answer has not been read
    /// yet.
    Begun,
    /// The process is ready to train the workload. It waits for a request to train the next steps.
    Running,
}

impl Peer {
    /// Returns whether `bench` measures this peer (another engine, such as Lightning) on the
    /// workload.
    pub fn trains(&self, workload: &Task) -> bool {
        match self.engine {
            Engine::TorchCompileDefault | Engine::TorchCompileAutotuned => {
                workload.has_compiler_modes()
            }
            _ => true,
        }
    }
}

impl<'a> Entry<'a> {
    /// Prepares to measure the engine `peer` on a workload. Each measured chunk has at least
    /// `steps` steps, rounded up to whole epochs as in this trainer's measurements.
    pub fn new(peer: &'a mut Peer, workload: &Task, precision: Precision, steps: i64) -> Self {
        let epochs = (steps + workload.batches - 1) / workload.batches;
        let steps = (epochs * workload.batches).cast_unsigned();
        let task = json!({
            "model": workload.model(),
            "hyperparameters": workload.hyperparameters(Size::Full),
            "precision": precision.to_string(),
            "batch": workload.batch,
            "batches": workload.batches,
            "features": workload.features(),
            "tokens": workload.tokens(),
            "classes": workload.classes(),
            "clip": CLIP,
            "warm_up": workload.batches,
        });
        Self { peer, task, steps, first_step_seconds: None, stage: Stage::Idle }
    }
}

impl Candidate for Entry<'_> {
    fn engine(&self) -> Engine {
        self.peer.engine
    }

    fn begin(&mut self) -> Result<()> {
        self.peer.process.send(&json!({ "prepare": self.task }))?;
        self.stage = Stage::Begun;
        Ok(())
    }

    fn prepare(&mut self) -> Result<()> {
        if self.stage == Stage::Idle {
            self.begin()?;
        }
        self.stage = Stage::Idle;
        let answer = self.peer.process.answer()?;
        self.first_step_seconds = answer.get("first_step_seconds").and_then(Value::as_f64);
        self.stage = Stage::Running;
        Ok(())
    }

    fn first_step_seconds(&self) -> Option<f64> {
        self.first_step_seconds
    }

    fn chunk(&mut self) -> Result<Chunk> {
        // If the answer is an error, the process has stopped training the workload. The stage
        // therefore becomes `Running` again only after an answer without an error.
        self.stage = Stage::Idle;
        let answer = self.peer.process.ask(&json!({ "go": self.steps }))?;
        self.stage = Stage::Running;
        let chunk: Option<Chunk> = serde_json::from_value(answer.clone()).ok();
        let usable = |chunk: &Chunk| chunk.steps > 0 && chunk.seconds > 0.0;
        chunk.filter(usable).ok_or_else(|| unexpected(&answer))
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if self.stage == Stage::Begun && self.peer.process.answer().is_err() {
            return;
        }
        if self.stage != Stage::Idle {
            let _ = self.peer.process.ask(&json!({ "end": true }));
        }
    }
}

/// Returns the peers (other engines, such as Lightning) that are measured on `device`. If `only` is
/// not empty, returns only those that are also in `only`.
pub fn engines(device: Device, only: &[Engine]) -> Vec<Engine> {
    let measured = |engine: &Engine| {
        let everywhere = matches!(engine, Engine::Lightning | Engine::TorchLoop);
        (everywhere || device.is_cuda()) && (only.is_empty() || only.contains(engine))
    };
    Engine::PEERS.into_iter().filter(measured).collect()
}

/// Starts a process for each peer (another engine, such as Lightning) in `engines`. If a process
/// cannot be started, adds a line to `notes`.
pub fn start(
    python: &Python,
    engines: &[Engine],
    device: Device,
    notes: &mut Vec<String>,
) -> Vec<Peer> {
    let mut peers = Vec::new();
    let mut failures: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut fail = |engine: Engine, error: &Error| {
        failures.entry(error.to_string()).or_default().push(engine.name());
    };
    for engine in engines {
        match Peer::start(python, *engine, device) {
            Ok(peer) => peers.push(peer),
            Err(error) => fail(*engine, &error),
        }
    }
    peers.retain_mut(|peer| match peer.greet() {
        Ok(()) => true,
        Err(error) => {
            fail(peer.engine, &error);
            false
        }
    });
    for (error, engines) in failures {
        notes.push(format!("not measured: {}: {error}", engines.join(", ")));
    }
    peers
}
