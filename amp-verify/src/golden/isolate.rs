//! Trains the model of a golden test in a separate process.
//!
//! libtest runs the tests of a binary on threads of one process. The tests share libtorch's random
//! generator, its global settings (such as TF32) and its memory statistics. If the model were
//! trained in this process, its results would change whenever another test draws a random number.
//! Therefore [`verify!`](crate::verify) starts the test binary again, as a new process that runs
//! only this test. The new process trains, writes the results to a file and ends. The test then
//! compares the results with the golden.
//!
//! On a GPU, even tests that ran earlier in the process change the results, because they change the
//! order in which autograd adds gradients. Autograd runs the backward pass of a GPU on a thread of
//! its own, and executes the node with the largest sequence number first. Each thread numbers the
//! autograd nodes that it creates. In a double backward, for example of a gradient penalty, some
//! nodes were created by the test's thread and some by autograd's. So the order in which they run
//! depends on how many nodes each thread created in earlier tests.
//!
//! If the CPU has more instructions than the CPU on which the golden was recorded, the new process
//! uses the golden's [kernels]. The test's own process cannot do this, because libtorch chooses its
//! kernels when it is first used.

use std::{
    cell::Cell,
    env, fs,
    os::unix::process::parent_id,
    path::PathBuf,
    process::{self, Command, Output, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use amp_core::{Error, Result, file::Staged, random};
use serde::{Deserialize, Serialize};

use super::{
    Golden, Taken, Target,
    folder::Folder,
    kernels::{self, Variable},
};

/// The environment variable that tells the new process what to train. Its value is an [`Order`] in
/// JSON.
const ORDER: &str = "AMP_VERIFY_ORDER";

/// The name of the main thread. With `--test-threads=1`, libtest may run tests on the main thread.
/// Then the name of the thread is not the name of the test.
const MAIN_THREAD: &str = "main";

/// If a process fails, this number of lines from the end of its output is shown.
const SHOWN: usize = 15;

/// Locked while a process of a golden test trains on a GPU, so that only one such process trains at
/// a time.
static ON_GPU: Mutex<()> = Mutex::new(());

/// Where a call of [`verify!`](crate::verify) is in the source, and in which folder its goldens
/// are.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// The folder of the recorded results (goldens) for this call.
    pub folder: &'static str,
    /// The source file that contains the call of `verify!`.
    pub file: &'static str,
    /// Whether the crate that calls `verify!` was compiled with `cfg(test)`.
    pub is_test: bool,
}

/// What a call of [`verify!`](crate::verify) does in this process. In most cases, another process
/// trains, and this process compares.
pub enum Turn {
    /// Create the data and train in this process.
    Train(Training),
    /// Compare the results of another process, which has already trained, with the recorded ones
    /// (the golden).
    Compare(Box<Taken>),
    /// Do nothing: this process was started to train for another call of `verify!`.
    Pass,
}

/// The permission to train in this process. While this value exists, no other thread draws random
/// numbers through amp-core.
pub struct Training {
    folder: Folder,
    /// What this process was started to train. `None` if no other process waits for the results.
    order: Option<Order>,
    _section: random::Section,
}

/// The order for a new process: for which golden test to train, and where to write the results.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// The id of the process that waits for the results. Processes that the new process starts
    /// inherit the environment variable too, but ignore it, because their parent has another id.
    parent: u32,
    /// The name of the test, which is also the name of the thread that runs it.
    test: String,
    /// The number of calls of `verify!` that come before the call for which to train, in the same
    /// test.
    place: usize,
    /// The name of the golden (recorded results) for which to train.
    golden: String,
    /// The file to which the new process writes the results.
    answer: PathBuf,
}

/// What the new process writes to the file: the results of the training, or the text of an error.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Golden(Box<Golden>),
    Error(String),
}

thread_local! {
    /// The number of calls of `verify!` on this thread so far.
    static PLACE: Cell<usize> = const { Cell::new(0) };
}

impl Turn {
    /// Decides whether this call of `verify!` trains in this process, compares the results of a new
    /// process, or does nothing. First checks that no file of the golden is missing. Starts a new
    /// process if other tests could change the results, or if the golden's kernels must be
    /// selected. Then waits until the new process has trained.
    ///
    /// # Panics
    /// When a golden is missing and may not be written, the device is unknown, or the training in
    /// the new process fails. The panic fails the test.
    pub fn of(target: &Target, site: Site) -> Self {
        let place = PLACE.replace(PLACE.get() + 1);
        Self::find(target, site, place).unwrap_or_else(|error| panic!("{error}"))
    }

    fn find(target: &Target, site: Site, place: usize) -> Result<Self> {
        let folder = Folder::of(site);
        let fingerprint = target.fingerprint()?;
        let golden = target.file_name(Some(&fingerprint));
        let thread = thread::current();
        let test = thread.name();
        if let Some(order) = Order::given()? {
            let asked = (order.test.as_str(), order.place, &order.golden);
            return match test.is_some_and(|test| (test, place, &golden) == asked) {
                true => Training::begin(target, folder, Some(order)).map(Self::Train),
                false => Ok(Self::Pass),
            };
        }
        let recorded = folder.check_recorded(target, test)?;
        let kernels =
            recorded.map_or_else(Vec::new, |known| kernels::environment(&known, &fingerprint));
        let args: Vec<String> = env::args().skip(1).collect();
        let trained = match test {
            Some(test)
                if site.is_test
                    && test != MAIN_THREAD
                    && (!kernels.is_empty()
                        || other_tests_may_interfere(test, &args, target.device()?.is_cuda())) =>
            {
                trained_elsewhere(target, test, place, golden, &kernels)?
            }
            _ => None,
        };
        match trained {
            Some(golden) => Ok(Self::Compare(Box::new(folder.taken(target, &golden)?))),
            None => Training::begin(target, folder, None).map(Self::Train),
        }
    }
}

impl Training {
    fn begin(target: &Target, folder: Folder, order: Option<Order>) -> Result<Self> {
        // The seed is set before the data is created. So data that is generated at random is the
        // same in each run.
        Ok(Self { folder, order, _section: random::seeded(target.first_seed())? })
    }

    /// Trains the model of `target`. The caller must have set the target's data. If this process
    /// was started only for this training, writes the results to a file and ends the process.
    ///
    /// # Panics
    /// When a training run fails, or a value differs from the anchor by more than its budget. The
    /// panic fails the test.
    pub fn take(self, target: &Target) -> Taken {
        let golden = self
            .folder
            .with_recorded_spread(target)
            .and_then(|target| target.golden_like(|found| self.folder.known(&target, found)));
        if let Some(order) = self.order {
            order.answer(golden);
        }
        let taken = golden.and_then(|golden| self.folder.taken(target, &golden));
        taken.unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Order {
    /// Reads from the environment variable what to train. Returns `None` if this process was not
    /// started by `verify!`.
    fn given() -> Result<Option<Self>> {
        let Ok(text) = env::var(ORDER) else { return Ok(None) };
        let order: Self = serde_json::from_str(&text)
            .map_err(|error| Error::config(format!("{ORDER}: {error}; unset it")))?;
        Ok((order.parent == parent_id()).then_some(order))
    }

    /// Writes the results of the training, or the error, to the file that the waiting process
    /// reads. Then ends this process.
    fn answer(&self, golden: Result<Golden>) -> ! {
        let answer = match golden {
            Ok(golden) => Answer::Golden(Box::new(golden)),
            Err(error) => Answer::Error(error.to_string()),
        };
        let text = serde_json::to_string(&answer).expect("an answer is JSON");
        let written = Staged::create(&self.answer).and_then(|file| file.write(text.as_bytes()));
        if let Err(error) = written {
            eprintln!("{error}");
            process::exit(1);
        }
        process::exit(0)
    }
}

/// Returns whether other tests of this process may change the results of `test`. On a CPU, tests
/// that run at the same time may change them. On a GPU, tests that ran earlier may change them as
/// well. `args` are the arguments of the process, which decide which tests run, and how many at a
/// time.
fn other_tests_may_interfere(test: &str, args: &[String], is_on_gpu: bool) -> bool {
    const THREADS: &str = "--test-threads";
    let joined = args.iter().filter_map(|arg| arg.strip_prefix(THREADS)?.strip_prefix('='));
    let apart = args.windows(2).filter(|pair| pair[0] == THREADS).map(|pair| pair[1].as_str());
    let threads = joined.chain(apart).next().map(str::to_owned);
    let threads = threads.or_else(|| env::var("RUST_TEST_THREADS").ok());
    let in_turn = threads.is_some_and(|threads| threads == "1");
    if in_turn && !is_on_gpu {
        return false;
    }
    // cargo-nextest starts one process for each test, with the arguments `TEST --exact`. No other
    // test runs in such a process.
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    !(args.iter().any(|arg| arg == "--exact") && names == [test])
}

/// Trains in a new process with the environment variables `kernels`, and returns the results.
/// Returns `None` if the new process does not find the test, and so ends without training. This
/// happens if the thread of the test does not have the test's name.
fn trained_elsewhere(
    target: &Target,
    test: &str,
    place: usize,
    golden: String,
    kernels: &[Variable],
) -> Result<Option<Golden>> {
    let failed = |error| Error::io(&golden, error);
    let folder = tempfile::tempdir().map_err(failed)?;
    let answer = folder.path().join("answer.json");
    let (parent, test) = (process::id(), test.to_owned());
    let name = golden.clone();
    let order = Order { parent, test, place, golden: name, answer };
    let _alone = match target.device()?.is_cuda() {
        true => Some(ON_GPU.lock().unwrap_or_else(PoisonError::into_inner)),
        false => None,
    };
    let output = Command::new(env::current_exe().map_err(failed)?)
        .args(["--exact", &order.test])
        .args(["--include-ignored", "--nocapture", "--test-threads=1"])
        .env(ORDER, serde_json::to_string(&order).expect("an order is JSON"))
        .envs(kernels.iter().copied())
        .stdin(Stdio::null())
        .output()
        .map_err(failed)?;
    let said = said(&output, &order.test);
    if !kernels.is_empty() {
        let chosen: Vec<_> =
            kernels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        println!("{golden}: trained with the golden's CPU kernels: {}", chosen.join(" "));
    }
    // libtest captures what is printed here, and shows it if the test fails.
    print!("{said}");
    match fs::read_to_string(&order.answer) {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(Answer::Golden(golden)) => Ok(Some(*golden)),
            Ok(Answer::Error(text)) => Err(Error::config(text)),
            Err(error) => Err(Error::config(format!("{golden}: {error}"))),
        },
        Err(_) if output.status.success() => Ok(None),
        Err(_) => {
            let lines: Vec<&str> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
            Err(Error::config(format!(
                "{golden}: the process that trains the model ended with {} before it had results; \
                 its last lines:\n{last}",
                output.status
            )))
        }
    }
}

/// Returns what the new process printed, without the lines that libtest prints before the test.
fn said(output: &Output, test: &str) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let own = out.split_once(&format!("test {test} ... ")).map_or(&*out, |(_, own)| own);
    format!("{own}{}", String::from_utf8_lossy(&output.stderr))
}

#[cfg(test)]
mod tests {
    use super::other_tests_may_interfere;

    #[test]
    fn tests_in_turn_do_not_interfere() {
        let has = |test: &str, line: &str| {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            other_tests_may_interfere(test, &args, false)
        };
        assert!(has("a::b", "") && has("a::b", "a::b --nocapture") && has("a::b", "--exact a b"));
        assert!(has("a::b", "--test-threads=2") && has("a::b", "--test-threads 4"));
        assert!(has("a::b", "--exact a::b a::c"));
        assert!(!has("a::b", "--test-threads=1") && !has("a::b", "x --test-threads 1"));
        assert!(!has("a::b", "--exact a::b --nocapture") && !has("a::b", "a::b --exact"));
    }

    /// Checks that `--test-threads=1` is not enough on a GPU: tests that ran earlier in the same
    /// process may interfere. No test interferes if the process runs only this test.
    #[test]
    fn on_a_gpu_earlier_tests_interfere() {
        let has = |test: &str, line: &str| {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            other_tests_may_interfere(test, &args, true)
        };
        assert!(has("a::b", "--test-threads=1") && has("a::b", "a::b --test-threads 1"));
        assert!(!has("a::b", "--exact a::b --test-threads=1"));
    }
}
