//! A Python process that does the same work as the benchmark and takes turns with it, for a
//! comparison.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use rustix::time::{ClockId, clock_gettime};

/// Wall-clock seconds, and CPU seconds of all threads.
pub(crate) type Seconds = [f64; 2];

/// Measures how long this process takes for `work`.
pub(crate) fn seconds(work: impl FnOnce()) -> Seconds {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let (start, before) = (Instant::now(), cpu());
    work();
    [start.elapsed().as_secs_f64(), cpu() - before]
}

/// Returns the median of the wall-clock seconds and the median of the CPU seconds.
pub(crate) fn medians(all: &[Seconds]) -> Seconds {
    [0, 1].map(|at| {
        let mut values: Vec<f64> = all.iter().map(|seconds| seconds[at]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    })
}

/// A process of `peer/peer.py`. It ends when it is dropped.
pub(crate) struct Peer {
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the script with the Python that `AMP_PYTHON` names. Returns `None` if this variable
    /// is not set.
    pub(crate) fn start(work: &str, path: &OsStr) -> Option<Self> {
        let python = env::var_os("AMP_PYTHON")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peer/peer.py");
        let mut process = Command::new(python)
            .args([OsStr::new(script), OsStr::new(work), path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the Python of AMP_PYTHON");
        let requests = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("its answers"));
        Some(Self { process, requests, answers })
    }

    /// Sends a request, which is one line, to the script. Returns the two numbers of its answer:
    /// the wall-clock and CPU seconds, unless the request asks for others.
    pub(crate) fn run(&mut self, line: &str) -> Seconds {
        let mut requests = self.requests.as_ref().expect("it runs");
        writeln!(requests, "{line}").expect("it reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("it answers");
        let mut numbers = answer.split_whitespace().map(|number| number.parse().expect("a number"));
        [(); 2].map(|()| numbers.next().expect("two numbers"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.process.wait();
    }
}
