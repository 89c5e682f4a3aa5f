//! The command `cargo amp gate`: makes a plan from the options, runs the gate and writes the
//! requested files.

use std::{env, fs::OpenOptions, io::Write, path::Path};

use amp_core::{Error, Result, file::Staged, precision::Region};

use crate::{diagnose::PolicyFile, registry::Registry};

use super::{CACHE, GateArgs, Plan, Report, annotations, junit, markdown, pool, run, table};

/// Writes the policy file. It contains all modules that must stay in FP32 under at least one
/// precision, as the diagnosis found them. Returns a line that tells the user what was written.
fn write_policy(plan: &Plan, report: &Report, file: Staged) -> Result<&'static str> {
    let Some(model) = report.models.first() else { return Ok("") };
    let mut overrides = plan.overrides.clone();
    let mut precisions = Vec::new();
    for result in &model.results {
        let modules = result.finding.iter().flat_map(|finding| &finding.modules);
        let before = overrides.len();
        overrides.extend(modules.map(|path| (path.clone(), Region::Fp32)));
        if overrides.len() > before {
            precisions.push(result.precision);
        }
    }
    let (Some(first), Some(machine)) = (precisions.first(), &report.fingerprint) else {
        return Ok("no policy was written: no module was found that must stay in FP32\n");
    };
    let names = precisions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let reason = format!("cargo amp gate: {} under {names}", report.status.name());
    PolicyFile::new(&model.model, *first, machine.clone(), reason, overrides).write(file)?;
    Ok("the policy was written: to judge the model with it, use --policy FILE\n")
}

/// Runs the gate, writes the requested files, and returns the report and the text to print.
///
/// # Errors
/// When an option is out of range or a file cannot be written.
pub fn command(registry: &Registry, args: &GateArgs) -> Result<(Report, String)> {
    let plan = Plan::new(registry, args)?;
    let stage = |path: &Option<std::path::PathBuf>| path.as_deref().map(Staged::create).transpose();
    let (json_file, junit_file, markdown_file) =
        (stage(&args.json)?, stage(&args.junit)?, stage(&args.markdown)?);
    let fix = stage(&args.fix)?;
    let cache = (!args.no_cache).then_some(Path::new(CACHE));
    let mut pool = pool(registry, &args.device, args.processes, args.threads, cache)?;
    let report = run(&plan, &mut pool)?;
    let fixed = fix.map(|file| write_policy(&plan, &report, file)).transpose()?;
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
        // The file is opened to append, because other steps of the CI job write to the same file.
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(markdown(&report).as_bytes()))
            .map_err(|error| Error::io(&path, error))?;
    }
    let mut text = table(&report);
    text += fixed.unwrap_or_default();
    if env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true") {
        text += &annotations(&report);
    }
    Ok((report, text))
}
