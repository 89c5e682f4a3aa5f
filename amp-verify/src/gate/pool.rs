//! Runs the gate's jobs (training runs and checks) in several processes, and caches their outcomes.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use amp_core::{Error, Result, tch};
use serde::{Deserialize, Serialize};

use super::{
    cache::Cache,
    job::Job,
    outcome::Outcome,
    plan::{Plan, Subject},
    reason::{Failure, Reason},
    report::JobTime,
};
use crate::registry::Registry;

/// If a job that runs in this process, or a stage of any job, takes at least this many seconds, its
/// duration is printed on standard error.
pub(super) const LONG: f64 = 5.0;

/// The hidden command that starts the binary as a worker process of the gate.
pub const WORKER: &str = "gate-worker";
/// The text before an outcome in the standard output of a worker.
const OUTCOME: &str = "gate-outcome ";

/// Runs the gate's jobs and stores their outcomes, so that no job runs twice.
pub struct Pool {
    registry: Registry,
    workers: Vec<Worker>,
    /// The number of threads that each process uses for one operation.
    threads: usize,
    cache: Cache,
    /// The jobs that have run and their outcomes, by [`Job::key`].
    outcomes: BTreeMap<String, (Job, Outcome)>,
    /// The number of jobs that were run.
    pub executed: usize,
    /// The number of jobs whose outcome was cached.
    pub cached: usize,
}

/// A request to a worker to run a job.
#[derive(Serialize, Deserialize)]
struct Order {
    job: Job,
    /// The number of seconds after which the job stops checking the gate's rules. `None` means that
    /// there is no time limit.
    seconds: Option<f64>,
}

/// A process that runs the jobs that it receives, one after another.
struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Pool {
    /// Starts `processes` workers. Each worker is a process of this binary with `threads` threads.
    /// If `processes` is 1, no worker is started, and jobs run in this process. On a GPU, jobs must
    /// run in this process.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn new(
        registry: &Registry,
        processes: usize,
        threads: usize,
        cache: Cache,
    ) -> Result<Self> {
        let mut workers = Vec::new();
        if processes > 1 {
            for _ in 0..processes {
                workers.push(Worker::start(threads)?);
            }
        }
        let pool = Self {
            registry: registry.clone(),
            workers,
            threads,
            cache,
            outcomes: BTreeMap::new(),
            executed: 0,
            cached: 0,
        };
        if pool.workers.is_empty() {
            pool.join();
        }
        Ok(pool)
    }

    /// Sets the number of threads of this process to that of a worker. With another number, sums
    /// would be split differently, and a run would not have the same results as in a worker.
    pub(super) fn join(&self) {
        tch::set_num_threads(i32::try_from(self.threads).unwrap_or(1));
    }

    /// Returns the outcome of a job that [`run`](Self::run) has run.
    pub fn outcome(&self, job: &Job) -> Option<&Outcome> {
        self.outcomes.get(&job.key()).map(|(_, outcome)| outcome)
    }

    /// Returns how long each job of the plan took, the longest first.
    pub(super) fn times(&self, plan: &Plan) -> Vec<JobTime> {
        let of_plan = |job: &Job| {
            let own = |model: &Subject| plan.job(model, job.precision, job.seed, job.task);
            plan.models.iter().any(|model| *job == own(model))
        };
        let all = self.outcomes.values().filter(|(job, _)| of_plan(job));
        let time = |(job, outcome): &(Job, Outcome)| JobTime {
            model: job.model.clone(),
            precision: job.precision,
            task: job.task,
            seed: job.seed,
            seconds: outcome.seconds,
            peak_memory_bytes: outcome.peak_memory_bytes,
        };
        let mut times: Vec<JobTime> = all.map(time).collect();
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }

    /// Runs those of the jobs whose outcomes are neither in this pool nor in the cache.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn run(&mut self, jobs: impl IntoIterator<Item = Job>) -> Result<()> {
        self.run_until(None, jobs)
    }

    /// Runs the jobs as [`run`](Self::run) does, but only until the time `end`. After `end` no
    /// further job begins, and a running job stops checking rules.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub(super) fn run_until(
        &mut self,
        end: Option<Instant>,
        jobs: impl IntoIterator<Item = Job>,
    ) -> Result<()> {
        let mut open = Vec::new();
        let jobs: BTreeMap<String, Job> = jobs.into_iter().map(|job| (job.key(), job)).collect();
        for (key, job) in jobs {
            if self.outcomes.contains_key(&key) {
                continue;
            }
            match self.cache.get(&job) {
                Some(outcome) => {
                    self.cached += 1;
                    self.outcomes.insert(key, (job, outcome));
                }
                None => open.push(job),
            }
        }
        // Runs long jobs first. If a long job began last, the other processes would have to wait
        // for its end.
        open.sort_by_key(|job| std::cmp::Reverse(job.length));
        self.executed += open.len();
        for (job, outcome) in self.execute(&open, end) {
            // Two kinds of outcomes are not cached, so that the next call of the gate runs the job
            // again: crashes, because the machine may have caused them, and outcomes that the time
            // limit left incomplete.
            let crashed = outcome.failures.iter().any(|failure| failure.reason == Reason::Crashed);
            if !crashed && !outcome.ended {
                self.cache.put(&job, &outcome)?;
            }
            self.outcomes.insert(job.key(), (job, outcome));
        }
        Ok(())
    }

    fn execute(&mut self, jobs: &[Job], end: Option<Instant>) -> Vec<(Job, Outcome)> {
        let left = || end.map(|end| end.saturating_duration_since(Instant::now()));
        if self.workers.is_empty() {
            let run = |job: &Job| {
                let outcome = job.execute_within(&self.registry, left());
                if outcome.seconds >= LONG {
                    eprintln!("{job}: {:.0} s", outcome.seconds);
                }
                (job.clone(), outcome)
            };
            return jobs.iter().map(run).collect();
        }
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(jobs.len()));
        thread::scope(|scope| {
            for worker in &mut self.workers {
                let (next, done, left) = (&next, &done, &left);
                scope.spawn(move || {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = worker.execute(job, left());
                        let mut done = done.lock().unwrap_or_else(|error| error.into_inner());
                        done.push((job.clone(), outcome));
                    }
                });
            }
        });
        done.into_inner().unwrap_or_else(|error| error.into_inner())
    }
}

impl Worker {
    /// Starts a process with this number of threads per operation.
    fn start(threads: usize) -> Result<Self> {
        let failed = |error| Error::io("a worker process of the gate", error);
        let binary = env::current_exe().map_err(failed)?;
        let mut child = Command::new(binary)
            .args([WORKER, &threads.to_string()])
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let missing = || failed(std::io::ErrorKind::BrokenPipe.into());
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        Ok(Self { child, input, output })
    }

    fn execute(&mut self, job: &Job, left: Option<Duration>) -> Outcome {
        let order = Order { job: job.clone(), seconds: left.map(|left| left.as_secs_f64()) };
        let mut ask = || -> std::io::Result<Outcome> {
            writeln!(self.input, "{}", serde_json::to_string(&order)?)?;
            outcome(&mut self.output, &mut std::io::stderr())
        };
        ask().unwrap_or_else(|error| {
            let text = format!("the worker process ended before it sent a result: {error}");
            Outcome::failed(Failure::new(Reason::Crashed, text))
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A worker ends when its input is closed, but it may first finish its job. The result of
        // this job is not needed, so the worker is killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the outcome of a job. The model and its data may print to standard output too: `other`
/// gets what they have printed.
fn outcome(output: &mut impl BufRead, other: &mut impl Write) -> std::io::Result<Outcome> {
    loop {
        let mut line = Vec::new();
        if output.read_until(b'\n', &mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match line.strip_prefix(OUTCOME.as_bytes()) {
            Some(outcome) => return Ok(serde_json::from_slice(outcome)?),
            // Drops the empty line that may result from the line break that `sent` writes before
            // each outcome.
            None if line == b"\n" => {}
            None => other.write_all(&line)?,
        }
    }
}

/// Runs jobs from standard input, one per line, until the input is closed.
///
/// # Errors
/// When a line is not a job or standard output is closed.
pub fn work(registry: &Registry, threads: i32) -> Result<()> {
    tch::set_num_threads(threads);
    let failed = |error| Error::io("standard input", error);
    for line in std::io::stdin().lock().lines() {
        let Order { job, seconds } = serde_json::from_str(&line.map_err(failed)?)
            .map_err(|error| Error::config(format!("not a job: {error}")))?;
        // If the number of seconds is too large for a `Duration`, there is no limit.
        let left = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        println!("{}", sent(&job.execute_within(registry, left)).map_err(|e| failed(e.into()))?);
    }
    Ok(())
}

/// Returns the text that a worker writes for an outcome. The text begins with a line break, because
/// what the model has printed may not end with one.
fn sent(outcome: &Outcome) -> serde_json::Result<String> {
    Ok(format!("\n{OUTCOME}{}", serde_json::to_string(outcome)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that outcomes are found among the lines that the model prints, and that it is an
    /// error if a worker's output ends without an outcome.
    #[test]
    fn a_model_may_print() {
        let outcome_sent = Outcome::failed(Failure::new(Reason::Crashed, "a text"));
        let text = sent(&outcome_sent).expect("JSON");
        let output = format!("epoch 1\nloss 0.5, {text}\nepoch 2\n{text}\n");
        let (mut output, mut printed) = (output.as_bytes(), Vec::new());
        let found = outcome(&mut output, &mut printed).expect("an outcome");
        assert_eq!(found, outcome_sent);
        assert_eq!(String::from_utf8_lossy(&printed), "epoch 1\nloss 0.5, \n");
        printed.clear();
        outcome(&mut output, &mut printed).expect("a second outcome");
        assert_eq!(String::from_utf8_lossy(&printed), "epoch 2\n");
        let end = outcome(&mut output, &mut printed).expect_err("no outcome");
        assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}
