//! `cargo amp gate` from its options to its files.

use std::{env, fs::OpenOptions, io::Write, path::Path};

use amp_core::{Error, Result, file::Staged};

use super::{CACHE, GateArgs, Plan, Report, annotations, junit, markdown, pool, run, table};

/// Runs the gate and writes what was asked for; returns the report with what is to be printed.
///
/// # Errors
/// When an option is out of range or a file cannot be written.
pub fn command(args: &GateArgs) -> Result<(Report, String)> {
    let plan = Plan::new(args)?;
    let stage = |path: &Option<std::path::PathBuf>| path.as_deref().map(Staged::create).transpose();
    let (json_file, junit_file, markdown_file) =
        (stage(&args.json)?, stage(&args.junit)?, stage(&args.markdown)?);
    let cache = (!args.no_cache).then_some(Path::new(CACHE));
    let mut pool = pool(&args.device, args.processes, cache)?;
    let report = run(&plan, &mut pool)?;
    if let Some(file) = json_file {
        let text =
            serde_json::to_string_pretty(&report).map_err(|e| Error::io("report", e.into()))?;
        file.write(format!("{text}\n").as_bytes())?;
    }
    if let Some(file) = junit_file {
        let text = junit(&report).map_err(|e| Error::config(format!("JUnit: {e}")))?;
        file.write(text.as_bytes())?;
    }
    if let Some(file) = markdown_file {
        file.write(markdown(&report).as_bytes())?;
    }
    if let Some(path) = env::var_os("GITHUB_STEP_SUMMARY") {
        // Other steps write to it as well.
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(markdown(&report).as_bytes()))
            .map_err(|error| Error::io(&path, error))?;
    }
    let mut text = table(&report);
    if env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true") {
        text += &annotations(&report);
    }
    Ok((report, text))
}
