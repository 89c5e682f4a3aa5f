//! Signals that end a training run. The run saves a checkpoint before it ends.

use std::{
    env, io,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
};

use amp_core::{Error, Result};

use super::commands::complain;
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGUSR1},
    flag,
};

/// Installs handlers for SIGTERM, SIGINT and SIGUSR1. Returns a variable that is 0 until the first
/// signal arrives, and then contains the number of this signal. A second signal ends the process at
/// once.
///
/// # Errors
/// When the system refuses to install a handler.
pub(super) fn noted() -> Result<Arc<AtomicUsize>> {
    let (signal, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    for number in [SIGTERM, SIGINT, SIGUSR1] {
        let note = Arc::clone(&signal);
        let registered = flag::register_conditional_shutdown(number, 128 + number, again.clone())
            .and_then(|_| flag::register(number, again.clone()))
            .and_then(|_| flag::register_usize(number, note, number.unsigned_abs() as usize));
        registered.map_err(|error: io::Error| {
            Error::config(format!("cannot install a handler for signal {number}: {error}"))
        })?;
    }
    Ok(signal)
}

/// Asks SLURM to start this job again, as Lightning does. SLURM sends SIGUSR1 to a job with
/// `#SBATCH --signal=USR1@90` 90 seconds before the job's time limit. Does nothing outside SLURM,
/// or if `signal` is not SIGUSR1.
pub(super) fn requeue(signal: u32) {
    let Some(job) = env::var_os("SLURM_JOB_ID").filter(|_| signal == SIGUSR1.unsigned_abs()) else {
        return;
    };
    let job_name = job.display();
    complain(&match Command::new("scontrol").arg("requeue").arg(&job).status() {
        Ok(status) if status.success() => format!("SLURM starts job {job_name} again"),
        Ok(status) => format!("SLURM did not requeue job {job_name}: scontrol ended with {status}"),
        Err(error) => format!("SLURM did not requeue job {job_name}: scontrol: {error}"),
    });
}
