//! Records how much the results of a golden (the recorded results of a run) differ between CPUs:
//! trains the golden's model with several sets of kernels, and writes the results to
//! `NAME.spread.json` next to the golden.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use amp_core::{Error, Result, file::Staged, precision::Precision};

use super::kernel_sets::{self, KernelSet};
use crate::{
    comparison::Comparison,
    golden::{self, Golden, Samples, Spread},
    registry::Registry,
};

/// Records the spread (the differences between CPUs) of every golden in `folder` that was recorded
/// on a CPU and whose model is in `models`. If `models` is empty, includes the goldens of all
/// registered models. Returns the names of the goldens.
///
/// If `adds` is true, keeps the values that the spread file already has, and adds the metrics and
/// losses of runs on this CPU with its own kernels. The recorded peak memory is not changed,
/// because peak memory is compared only between equal kernels.
///
/// # Errors
/// When the folder has no golden of these models, a run fails, or a file cannot be written.
pub(super) fn record(
    registry: &Registry,
    folder: &Path,
    models: &[String],
    adds: bool,
) -> Result<Vec<String>> {
    let goldens = of_cpus(registry, folder, models)?;
    if goldens.is_empty() {
        return Err(Error::config(format!(
            "{}: this folder has no golden recorded on a CPU: record one first with `cargo amp test`",
            folder.display()
        )));
    }
    let (sets, kernels) = match adds {
        true => (kernel_sets::own_of_cpu(), kernel_sets::OWN_DESCRIPTION),
        false => (kernel_sets::all(), kernel_sets::DESCRIPTION),
    };
    let by = format!("cargo amp margins on {}: {kernels}", kernel_sets::processor());
    let mut names = Vec::new();
    for (name, golden) in goldens {
        let path = folder.join(format!("{name}.spread.json"));
        let known = if adds { Some(recorded(&path)?) } else { None };
        let file = Staged::create(&path)?;
        let own = Spread {
            recorded_by: by.clone(),
            examples: u32::try_from(golden.examples).unwrap_or(u32::MAX),
            samples: samples(&golden, &sets)?,
        };
        let spread = known.map_or_else(|| own.clone(), |known| added(known, &own));
        let json = serde_json::to_string_pretty(&spread);
        let json = json.map_err(|error| Error::io(&path, error.into()))? + "\n";
        file.write(json.as_bytes())?;
        names.push(name);
    }
    Ok(names)
}

/// Reads the goldens in `folder` that were recorded on a CPU. The keys of the result are file names
/// without the extension.
fn of_cpus(
    registry: &Registry,
    folder: &Path,
    models: &[String],
) -> Result<BTreeMap<String, Golden>> {
    let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    let mut goldens = BTreeMap::new();
    for entry in entries {
        let path: PathBuf = entry.map_err(|error| Error::io(folder, error))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|name| name.strip_suffix(".snap")) else { continue };
        let text = fs::read_to_string(&path).map_err(|error| Error::io(&path, error))?;
        let golden = golden::parse(&text).map_err(|error| error.at(&path.display().to_string()))?;
        let is_of_cpu = golden.fingerprint.as_ref().is_some_and(|machine| machine.threads > 0);
        let is_chosen = match models {
            [] => registry.find(Some(&golden.model)).is_ok(),
            chosen => chosen.contains(&golden.model),
        };
        if is_of_cpu && is_chosen {
            goldens.insert(name.to_owned(), golden);
        }
    }
    Ok(goldens)
}

/// Reads how much recorded results differ between CPUs (the spread) from `path`, the file to which
/// the results of this CPU are added.
fn recorded(path: &Path) -> Result<Spread> {
    Spread::read(path)?.ok_or_else(|| {
        Error::config(format!(
            "{}: this file is missing, so --add cannot extend it: record it first, without --add",
            path.display()
        ))
    })
}

/// Trains the model of a golden (recorded results) with each set of kernels. Each run is a new
/// process of this binary, because the environment variables that select kernels are read when a
/// process starts.
fn samples(golden: &Golden, sets: &[KernelSet]) -> Result<BTreeMap<String, Samples>> {
    let mut all: BTreeMap<String, Samples> = BTreeMap::new();
    for set in sets {
        for run in verify(golden, set)?.runs {
            let empty = || Samples {
                accuracy: Vec::new(),
                loss: Vec::new(),
                peak_memory_bytes: Vec::new(),
            };
            let own = all.entry(run.precision.name().to_owned()).or_insert_with(empty);
            let (Some(accuracy), Some(loss)) = (run.accuracy, run.loss) else {
                return Err(Error::config(format!(
                    "{} under {}: the metric or the loss is not finite; nothing was recorded",
                    golden.model, run.precision
                )));
            };
            own.accuracy.push(accuracy);
            own.loss.push(loss);
            own.peak_memory_bytes.push(run.peak_memory_bytes as f64);
        }
    }
    Ok(all)
}

fn verify(golden: &Golden, set: &KernelSet) -> Result<Comparison> {
    let failed = |error| Error::io("a process of this binary", error);
    let baseline = Precision::F32True.name();
    let precisions: Vec<&str> =
        golden.runs.keys().map(String::as_str).filter(|name| *name != baseline).collect();
    let seed = golden.seeds.first().copied().unwrap_or_default();
    // What the model prints goes to standard output. The results are therefore read from a file.
    let folder = tempfile::tempdir().map_err(failed)?;
    let results = folder.path().join("results.json");
    let mut command = Command::new(env::current_exe().map_err(failed)?);
    command
        .args(["verify", "--device", "cpu", "--format", "json", "--quiet"])
        .args(["--model", &golden.model, "--data", &golden.data, "--seed", &seed.to_string()])
        .args(["--epochs", &golden.epochs.to_string(), "--precision", &precisions.join(",")])
        .args(["--batch-size", &golden.batch_size.to_string()])
        .args(["--threads", &set.threads.to_string()])
        .arg("--output")
        .arg(&results)
        .env("OMP_NUM_THREADS", set.threads.to_string())
        .envs(set.environment.iter().map(|(name, value)| (name, value)))
        .args(
            golden
                .hyperparameters
                .iter()
                .flat_map(|(name, value)| ["--set".to_owned(), format!("{name}={value}")]),
        )
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let output = command.output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed_run(&golden.model, set, output.status, said.trim()));
    }
    let text = fs::read_to_string(&results).map_err(|error| Error::io(&results, error))?;
    serde_json::from_str(&text).map_err(|error| failed(error.into()))
}

/// Returns the error for a run that failed. `said` is what the run wrote to standard error. It is
/// empty if a signal ended the process.
fn failed_run(model: &str, set: &KernelSet, status: ExitStatus, said: &str) -> Error {
    if !said.is_empty() {
        return Error::config(format!("{model}: {said}"));
    }
    let set: Vec<_> =
        set.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Error::config(format!(
        "{model}: the run with {} ended with {status}: if this CPU lacks the instructions of these \
         kernels, use a CPU with AVX-512",
        set.join(" ")
    ))
}

/// Adds the metrics and losses that were measured with this machine's own kernels to the recorded
/// spread.
fn added(mut known: Spread, own: &Spread) -> Spread {
    known.recorded_by = format!("{}; {}", known.recorded_by, own.recorded_by);
    for (precision, samples) in &mut known.samples {
        if let Some(own) = own.samples.get(precision) {
            samples.accuracy.extend(&own.accuracy);
            samples.loss.extend(&own.loss);
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// Checks that the error of a process that a signal ended names the signal and the kernels.
    #[test]
    fn a_run_that_says_nothing_is_explained() {
        let set =
            KernelSet { threads: 1, environment: vec![("ATEN_CPU_CAPABILITY", "avx512".into())] };
        let of = |said: &str| failed_run("Net", &set, ExitStatus::from_raw(4), said).to_string();
        let told = of("");
        assert!(
            told.contains("the run with ATEN_CPU_CAPABILITY=avx512 ended with signal: 4"),
            "{told}"
        );
        assert!(told.ends_with("use a CPU with AVX-512"), "{told}");
        assert_eq!(of("error: no data"), "Net: error: no data");
    }
}
