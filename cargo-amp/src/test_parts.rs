//! Divides the tests of a project into parts, and runs two parts at a time.
//!
//! A plain `cargo test` runs one test binary at a time and often uses a single core, because many
//! tests of a project wait for a process that they have started, or for the random generator that
//! all tests of a process share. With two parts at a time, fewer cores are idle.

use std::env;
use std::io::{self, IsTerminal, Read, Write};
use std::iter;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::cargo;
use crate::error::Error;
use crate::project::Package;

/// The number of parts that run at the same time.
const AT_ONCE: usize = 2;

/// How long the output of a part is still read after the part's cargo process has ended. A process
/// that a test has left running may keep the pipe open for longer.
const LEFT_OPEN: Duration = Duration::from_secs(1);

/// The environment variable that sets whether cargo prints colours. By default cargo prints none
/// into a pipe.
const COLOR: &str = "CARGO_TERM_COLOR";

/// The tests that one run of cargo runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    name: String,
    /// The options of `cargo test` that select these tests.
    pub(crate) options: Vec<String>,
}

impl Part {
    fn new(name: impl Into<String>, options: Vec<String>) -> Self {
        Self { name: name.into(), options }
    }
}

/// A message about a part, from the thread that runs it or the thread that reads its output.
enum Report {
    Output(Vec<u8>),
    End(io::Result<ExitStatus>),
}

/// Divides the tests of `packages` into parts that together run the same tests as a plain `cargo
/// test`. The parts are: all unit tests, all documentation tests, and for each name of an
/// integration test target all targets of this name. Returns no parts if no options of `cargo test`
/// select the same tests as a plain `cargo test`.
pub(crate) fn parts(packages: &[Package]) -> Vec<Part> {
    let targets: Vec<_> = packages.iter().flat_map(|package| &package.targets).collect();
    // Two kinds of targets cannot be selected as in a plain `cargo test`: libraries with `test =
    // false`, whose tests `--lib` runs too, and targets with required features, for which cargo
    // ends with an error if the features are off.
    let differs = targets.iter().any(|target| {
        target.is_library() && !target.has_tests || target.has_tests && target.needs_features
    });
    if differs {
        return Vec::new();
    }
    let (mut unit, mut integration) = (Vec::new(), Vec::new());
    for target in targets.iter().filter(|target| target.has_tests) {
        let options = match &*target.kind {
            kind @ ("bin" | "example" | "bench" | "test") => {
                vec![format!("--{kind}"), target.name.clone()]
            }
            _ => vec!["--lib".to_owned()],
        };
        let list = if target.kind == "test" { &mut integration } else { &mut unit };
        // Several packages may have a target of the same name. The option selects all of them.
        if !list.contains(&options) {
            list.push(options);
        }
    }
    let unit = (!unit.is_empty()).then(|| Part::new("unit tests", unit.concat()));
    let integration = integration.into_iter().map(|options| Part::new(options[1].clone(), options));
    let has_docs = |package: &Package| package.targets.iter().any(|target| target.has_doc_tests);
    // `--doc` would also run the documentation tests of libraries with `doctest = false`, which a
    // plain `cargo test` skips. Therefore these packages are excluded.
    let excluded = packages.iter().filter(|package| package.has_library() && !has_docs(package));
    let excluded = excluded.flat_map(|package| ["--exclude".to_owned(), package.name.clone()]);
    let docs = packages.iter().any(has_docs).then(|| {
        let options = iter::once("--doc".to_owned()).chain(excluded).collect();
        Part::new("documentation tests", options)
    });
    unit.into_iter().chain(integration).chain(docs).collect()
}

/// Runs all parts. `command` creates the command for a part. Prints the output of one part after
/// the other, in the order of the parts. If a part fails, still runs the others, and returns the
/// exit code of the first that failed.
pub(crate) fn run(
    parts: &[Part],
    command: impl Fn(&Part) -> Command + Sync,
) -> Result<ExitCode, Error> {
    let (reports, incoming) = mpsc::channel();
    let next = AtomicUsize::new(0);
    let ends = thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let reports = reports.clone();
            let (next, command) = (&next, &command);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(part) = parts.get(at) else { break };
                    let end = run_part(at, command(part), &reports);
                    let _ = reports.send((at, Report::End(end)));
                }
            });
        }
        drop(reports);
        print(parts.len(), incoming)
    });
    let (mut code, mut failed) = (ExitCode::SUCCESS, Vec::new());
    for (part, end) in parts.iter().zip(ends) {
        let status = end.map_err(|error| cargo::could_not_start(&error))?;
        if !status.success() {
            if failed.is_empty() {
                code = cargo::exit_code(status);
            }
            failed.push(&*part.name);
        }
    }
    if !failed.is_empty() {
        note!("error: tests failed in {}", failed.join(", "));
    }
    Ok(code)
}

/// Runs the command of the part `at`, and reports what it prints.
fn run_part(
    at: usize,
    mut command: Command,
    reports: &Sender<(usize, Report)>,
) -> io::Result<ExitStatus> {
    // Each cargo process first locks files of the project. Processes start one after the other,
    // because otherwise one of them would print that it waits for the lock.
    static STARTS: Mutex<()> = Mutex::new(());
    let starts = STARTS.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut from, to) = io::pipe()?;
    if io::stdout().is_terminal() && env::var_os(COLOR).is_none() {
        command.env(COLOR, "always");
    }
    // Both streams share one pipe, which keeps their lines in order.
    let mut child = command.stdin(Stdio::null()).stdout(to.try_clone()?).stderr(to).spawn()?;
    // Closes the writing ends of the pipe in this process, which `command` owns. Otherwise `read`
    // would wait for more output after cargo has ended.
    drop(command);
    let reports = reports.clone();
    let ((reads, first_read), (ends, end_read)) = (mpsc::channel(), mpsc::channel());
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let _ = reports.send((at, Report::Output(buffer[..count].to_vec())));
            let _ = reads.send(());
        }
        // Ends the wait for the command's first output (`first_read` below) if there was none.
        drop(reads);
        let _ = ends.send(());
    });
    // When cargo prints its first line, it has released the locks.
    let _ = first_read.recv();
    drop((starts, first_read));
    let status = child.wait();
    let _ = end_read.recv_timeout(LEFT_OPEN);
    status
}

/// Prints the output of `count` parts in their order, and returns how each part ended. The output of
/// the first part that has not ended is printed as it arrives. The output of a later part is kept
/// until all parts before it have ended.
fn print(count: usize, incoming: Receiver<(usize, Report)>) -> Vec<io::Result<ExitStatus>> {
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new(); count];
    let mut ends: Vec<Option<io::Result<ExitStatus>>> = (0..count).map(|_| None).collect();
    let mut first = 0;
    for (at, report) in incoming {
        match report {
            Report::Output(bytes) => waiting[at].extend(bytes),
            Report::End(end) => ends[at] = Some(end),
        }
        while first < count {
            let mut stdout = io::stdout();
            let _ = stdout.write_all(&waiting[first]).and_then(|()| stdout.flush());
            waiting[first].clear();
            if ends[first].is_none() {
                break;
            }
            first += 1;
        }
        if first == count {
            break;
        }
    }
    ends.into_iter().flatten().collect()
}
