//! Trains a golden in a separate process.
//!
//! libtest runs the tests of a binary on threads of one process, and libtorch has random
//! generators, numeric switches and memory statistics once per process. If a golden trained in this
//! process, its figures would change whenever another test draws a random number. So
//! [`verify!`](crate::verify) starts the test binary again for its own test alone. That process
//! trains, writes the figures to a file and ends. The test then compares the figures with the
//! golden.
//!
//! On a GPU, earlier tests have an effect too. Autograd runs the backward pass there on its own
//! thread, and executes the node with the largest sequence number first; each thread numbers the
//! nodes that it creates. A second derivative, for example of a gradient penalty, contains nodes of
//! both threads. Their order, and so the order in which gradients are added, depends on how many
//! nodes each thread has created before.
//!
//! On a CPU with more instructions than the golden's, the separate process uses the golden's
//! [kernels]. libtorch chooses its kernels when it is first used, so this process cannot do that.

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

/// The environment variable with the order for the started process, as JSON.
const ORDER: &str = "AMP_VERIFY_ORDER";

/// The name of the main thread. With `--test-threads=1` libtest may run tests there, and their names
/// are then unknown.
const MAIN_THREAD: &str = "main";

/// The number of output lines to show of a failed process.
const SHOWN: usize = 15;

/// Allows one training at a time on a GPU.
static ON_GPU: Mutex<()> = Mutex::new(());

/// The position of a [`verify!`](crate::verify) in the source.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// The folder of its goldens.
    pub folder: &'static str,
    /// Its source file.
    pub file: &'static str,
    /// Whether the source was compiled as a test.
    pub is_test: bool,
}

/// The task of a [`verify!`](crate::verify) in this process.
pub enum Turn {
    /// Train in this process: the data is created next.
    Train(Training),
    /// Compare the figures that another process has written.
    Compare(Box<Taken>),
    /// Skip: this process trains the golden of another `verify!`.
    Pass,
}

/// A training in this process. While this value exists, no other thread draws random numbers.
pub struct Training {
    folder: Folder,
    /// If another process started this one and waits: the model to train and the file for the figures.
    order: Option<Order>,
    _section: random::Section,
}

/// The golden that a process must train, and the file for its figures.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// The id of the waiting process. It distinguishes the started process from processes that it
    /// starts itself.
    parent: u32,
    /// The test's name, which is also the name of its thread.
    test: String,
    /// The number of earlier `verify!` calls of the test.
    place: usize,
    /// The golden's name.
    golden: String,
    /// The file for the figures.
    answer: PathBuf,
}

/// The result of a training process.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Golden(Box<Golden>),
    Error(String),
}

thread_local! {
    /// The number of `verify!` calls of this thread so far.
    static PLACE: Cell<usize> = const { Cell::new(0) };
}

impl Turn {
    /// Reports missing files before the training. Starts another process for the training if other
    /// tests could disturb it, or if the golden's kernels must be selected.
    ///
    /// # Panics
    /// When a golden is missing and may not be written, the device is unknown, or the training in
    /// the other process fails. The panic fails the test.
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
        // The seed makes data that is drawn at random the same each time.
        Ok(Self { folder, order, _section: random::seeded(target.first_seed())? })
    }

    /// Trains `target`, whose data exists now. A process that was started for this training ends
    /// here.
    ///
    /// # Panics
    /// When a run fails, or a figure exceeds the budget of its anchor. The panic fails the test.
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
    /// Returns the order with which this process was started, or `None`.
    fn given() -> Result<Option<Self>> {
        let Ok(text) = env::var(ORDER) else { return Ok(None) };
        let order: Self = serde_json::from_str(&text)
            .map_err(|error| Error::config(format!("{ORDER}: {error}; unset it")))?;
        Ok((order.parent == parent_id()).then_some(order))
    }

    /// Writes the figures for the waiting process and ends this process.
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

/// Returns whether other tests of a process with these arguments may change the figures of `test`:
/// on a CPU, tests that run at the same time; on a GPU, also tests that run before it.
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
    // cargo-nextest starts a process for each test, with arguments of this form.
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    !(args.iter().any(|arg| arg == "--exact") && names == [test])
}

/// Trains in another process, with these environment variables in addition. Returns `None` if that process ends without training, because its
/// tests do not run on threads with the tests' names.
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
    // libtest shows this output if the test fails, or if it shows all output.
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
                "{golden}: the process that was to train it ended with {} before it had trained; \
                 its last lines:\n{last}",
                output.status
            )))
        }
    }
}

/// Returns the output of a process without libtest's first lines.
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

    /// On a GPU, a test that runs after others uses a separate process.
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
