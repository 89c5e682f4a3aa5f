//! Runs the commands. Each command reads its options, calls the module that does the work, and
//! prints the result.

use std::{io, process::ExitCode};

use amp_core::{
    Error, Result,
    callback::Callback,
    event::{Event, Subscriber},
    file::Staged,
    hardware,
    log::Logged,
    logger::ProgressBar,
    returned, tch,
    trainer::Averaging,
};

use super::{
    Cli, Command, DoctorArgs, Format, RunArgs, SummaryArgs, TrainArgs, VerifyArgs,
    evaluate::{self, Loop},
    exit::{FAILED, INCONCLUSIVE, USAGE, code},
    outcome::check_finite,
    signals,
};
use crate::{
    bench::{self, BenchArgs},
    case::{Case, Choices},
    diagnose::{DiagnoseArgs, PolicyFile},
    gate,
    layers::LayersArgs,
    margins, matrix,
    output::Logs,
    parity::{self, ParityArgs},
    registry::Registry,
    report::{self, RunHistories},
    runner::{self, Extras},
    selftest::{self, SelftestArgs},
    text::{one_line, remedied, usage_line},
    view::{self, EpochTable, PhaseTables, doctor, table},
};

/// Runs the command that the user called, with the models of `registry`. Returns the exit code for
/// the project's binary `amp`.
///
/// The exit code is 0 if the command succeeded, 1 if a run failed or a validation value is not
/// finite, 2 if the command line is invalid or cannot be carried out, and 4 if results would be
/// compared with values that were recorded on another kind of machine. A training run that a signal
/// ends exits with 128 plus the number of the signal. `gate` and `parity` have further exit codes,
/// which their help texts list.
pub fn main(registry: Registry) -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let command = || registry.check().and_then(|()| run(&registry, cli.command));
    let outcome = returned(command);
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // The message gets one line, because libtorch's error messages have several.
            complain(&format!("error: {}", one_line(&error.to_string())));
            ExitCode::from(code(&error))
        }
    }
}

fn run(registry: &Registry, command: Command) -> Result<ExitCode> {
    match command {
        Command::Verify(args) => verify(registry, &args)?,
        Command::Train(args) => return train(registry, &args),
        Command::Validate(args) => {
            show_values(&evaluate::evaluate(registry, &args, Loop::Validate)?, args.format)?;
        }
        Command::Test(args) => {
            show_values(&evaluate::evaluate(registry, &args, Loop::Test)?, args.format)?;
        }
        Command::Predict(args) => {
            let files = evaluate::predict(registry, &args)?;
            print(&format!("{files} files in {}\n", args.output.display()))?;
        }
        Command::Summary(args) => summarize(registry, &args)?,
        Command::Layers(args) => layers(registry, &args)?,
        Command::Diagnose(args) => explain(registry, &args)?,
        Command::Models => list(registry)?,
        Command::Doctor(args) => diagnose(&args)?,
        Command::Gate(args) => {
            let page = args.html.as_deref().map(Staged::create).transpose()?;
            let (report, text) = gate::command(registry, &args)?;
            if let Some(page) = page {
                page.write(report::gate_html(&report).as_bytes())?;
            }
            print(&text)?;
            return Ok(ExitCode::from(report.status.exit_code()));
        }
        Command::Bench(args) => benchmark(registry, &args)?,
        Command::Parity(args) => return compare_with_pytorch(registry, &args),
        Command::Margins(args) => print(&margins::command(registry, &args)?)?,
        Command::Selftest(args) => {
            if !self_test(registry, &args)? {
                return Ok(ExitCode::from(FAILED));
            }
        }
        Command::GateWorker { threads } => gate::work(registry, threads)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints clap's help as it is. Shortens clap's error messages to one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return match print(&error.to_string()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(FAILED),
        };
    }
    complain(&remedied(&usage_line(&error.to_string())));
    ExitCode::from(USAGE)
}

fn verify(registry: &Registry, args: &VerifyArgs) -> Result<()> {
    let case = prepare(registry, &args.run)?;
    let plan = matrix::plan(&args.precision);
    plan.iter().try_for_each(|precision| case.trainer(*precision).map(drop))?;
    let output = args.output.as_deref().map(Staged::create).transpose()?;
    let page = args.html.as_deref().map(Staged::create).transpose()?;
    let mut histories = RunHistories::default();
    let mut logs = Logs::new(&args.run.logs)?;
    let mut phases = PhaseTables::default();
    let runs = plan.len() * usize::try_from(args.seeds).unwrap_or(usize::MAX);
    let mut progress = progress(runs, args.run.quiet);
    let mut listen = |event: &Event| -> Result<()> {
        logs.on_event(event)?;
        phases.on_event(event)?;
        histories.on_event(event)?;
        progress.on_event(event)
    };
    let outcome = matrix::over_seeds(&case, &args.precision, args.seeds, &mut listen);
    progress.finish();
    let comparison = outcome?;
    let json = pretty(&comparison)?;
    if let Some(output) = output {
        output.write(json.as_bytes())?;
    }
    if let Some(page) = page {
        let steps = report::measure_steps(&case, &comparison);
        let content = report::Content {
            comparison: &comparison,
            histories: &histories,
            examples: case.data.val.examples(),
            steps: &steps,
        };
        page.write(report::html(&content)?.as_bytes())?;
    }
    let text = match args.format {
        // Some models measure the phases of their steps in every run. The table of these times is
        // shown only if the user asks for it.
        Format::Table if args.run.logs.profile.is_some() => table(&comparison) + phases.text(),
        Format::Table => table(&comparison),
        Format::Json => json,
    };
    print(&text)?;
    comparison.is_sound()
}

fn train(registry: &Registry, args: &TrainArgs) -> Result<ExitCode> {
    let signal = signals::noted()?;
    let mut case = prepare(registry, &args.run)?;
    case.trainer.loops = args.loops.loops(&case.trainer.loops);
    let optimization = &mut case.trainer.optimization;
    optimization.freeze.extend(args.freeze.iter().cloned());
    let ema = args.ema_decay.map(|decay| Averaging::Ema { decay });
    let swa = args.swa_start_epoch.map(|start_epoch| Averaging::Swa { start_epoch });
    optimization.averaging = ema.or(swa).or(optimization.averaging);
    case.trainer(args.precision)?;
    let resume_from = args.checkpoints.resume_from()?;
    if let Some(warning) = args.checkpoints.mixes_runs() {
        complain(&format!("note: {warning}"));
    }
    let mut logs = Logs::new(&args.run.logs)?;
    let had_folder = args.checkpoints.has_folder();
    let callbacks: Vec<Box<dyn Callback>> = args.monitors.callbacks();
    let judged_by = args.checkpoints.callback()?;
    let mut epochs = EpochTable::new(io::stdout());
    let mut progress = progress(1, args.run.quiet);
    // All options are checked above this line, before training prints anything. If an option is
    // refused, only the error is printed.
    let mut listen = |event: &Event| -> Result<()> {
        logs.on_event(event)?;
        progress.suspend(|| epochs.on_event(event))?;
        progress.on_event(event)
    };
    let interruption = Some((signal, args.checkpoints.last()));
    let resume_with = args.checkpoints.resume_with.clone();
    let save_on_error = args.checkpoints.on_error();
    let extras = Extras {
        callbacks,
        judged_by,
        resume_from,
        resume_with,
        interruption,
        save_on_error,
        is_compared: false,
    };
    let outcome = runner::run(&case, args.precision, extras, &mut listen);
    progress.finish();
    if !had_folder {
        args.checkpoints.remove_empty_folder();
    }
    let record = outcome?;
    match record.end.interrupted {
        None => check_finite(&record).map(|()| ExitCode::SUCCESS),
        Some(signal) => {
            signals::requeue(signal);
            Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(FAILED)))
        }
    }
}

fn progress(runs: usize, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::new().over_runs(runs).showing(["train_loss", "val_loss"]);
    if quiet { bar.hidden() } else { bar }
}

fn show_values(values: &[Logged], format: Format) -> Result<()> {
    match format {
        Format::Json => print(&pretty(&values)?),
        Format::Table => {
            let lines =
                values.iter().map(|Logged { name, value, .. }| format!("{name} {value:.6}\n"));
            print(&lines.collect::<String>())
        }
    }
}

fn summarize(registry: &Registry, args: &SummaryArgs) -> Result<()> {
    let measured = args.measure(&prepare(registry, &args.run)?)?;
    let failures = measured.failed.iter().map(view::failure);
    match args.format {
        Format::Table => {
            let lines = failures.map(|line| line + "\n").collect::<String>();
            print(&(view::summary(&measured.summaries) + &lines))?;
        }
        Format::Json => {
            failures.for_each(|line| complain(&line));
            print(&pretty(&measured.summaries)?)?;
        }
    }
    measured.are_complete()
}

fn layers(registry: &Registry, args: &LayersArgs) -> Result<()> {
    let case = prepare(registry, &args.run)?;
    let report = args.measure(&case)?;
    print(&match args.format {
        Format::Table => view::layers(&report),
        Format::Json => pretty(&report)?,
    })
}

fn explain(registry: &Registry, args: &DiagnoseArgs) -> Result<()> {
    let case = prepare(registry, &args.run)?;
    let diagnosis = args.diagnose(registry, &case)?;
    print(&match args.format {
        Format::Table => view::diagnosis(&diagnosis),
        Format::Json => pretty(&diagnosis)?,
    })
}

fn list(registry: &Registry) -> Result<()> {
    let mut text = String::new();
    for model in registry.models() {
        let about =
            if model.about.is_empty() { String::new() } else { format!("{}; ", model.about) };
        let data = model.data_name(registry)?;
        text += &format!("{}\n    {about}data: {data}, {}\n", model.name, model.length());
    }
    text += "\ndata:\n";
    for data_set in registry.data_sets() {
        text += data_set.name();
        if !data_set.description().is_empty() {
            text += &format!("\n    {}", data_set.description());
        }
        text.push('\n');
    }
    print(&text)
}

fn diagnose(args: &DoctorArgs) -> Result<()> {
    let report = hardware::Report::gather()?;
    print(&match args.format {
        Format::Table => doctor(&report),
        Format::Json => pretty(&report)?,
    })
}

fn benchmark(registry: &Registry, args: &BenchArgs) -> Result<()> {
    let json = args.json.as_deref().map(Staged::create).transpose()?;
    let markdown = args.markdown.as_deref().map(Staged::create).transpose()?;
    let report = bench::run(registry, args, &|what| {
        if !args.quiet {
            complain(&format!("measuring: {what}"));
        }
    })?;
    if let Some(json) = json {
        json.write(pretty(&report)?.as_bytes())?;
    }
    if let Some(markdown) = markdown {
        markdown.write(view::bench_markdown(&report).as_bytes())?;
    }
    print(&view::bench(&report))
}

fn compare_with_pytorch(registry: &Registry, args: &ParityArgs) -> Result<ExitCode> {
    let report = parity::run(registry, args, &|what| {
        if !args.quiet {
            complain(&format!("training: {what}"));
        }
    })?;
    print(&if args.json { pretty(&report)? } else { view::parity(&report) })?;
    Ok(match report.status() {
        parity::Status::Agree => ExitCode::SUCCESS,
        parity::Status::Disagree => ExitCode::from(FAILED),
        parity::Status::Inconclusive => ExitCode::from(INCONCLUSIVE),
    })
}

/// Returns whether the gate reported every fault and raised no false alarm.
fn self_test(registry: &Registry, args: &SelftestArgs) -> Result<bool> {
    if args.list {
        print(&selftest::fault_list())?;
        return Ok(true);
    }
    let report = selftest::run(registry, args)?;
    print(&if args.json { pretty(&report)? } else { report.table() })?;
    Ok(report.passes())
}

fn pretty(value: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    Ok(text.map_err(|error| Error::io("standard output", error.into()))? + "\n")
}

/// Builds the case (a model with its data and options) from the command line. Runs before the
/// command writes any file, so that an error here leaves no file behind.
fn prepare(registry: &Registry, args: &RunArgs) -> Result<Case> {
    prepare_as(registry, args, args.model.as_deref(), args.choices())
}

/// Builds the case (a model with its data and options) for the model `model` with `choices`, which
/// take the place of the model, the data and the training options of the command line.
pub(super) fn prepare_as(
    registry: &Registry,
    args: &RunArgs,
    model: Option<&str>,
    choices: Choices,
) -> Result<Case> {
    if let Some(threads) = args.threads {
        if threads < 1 {
            return Err(Error::config(format!("threads {threads}: it must be at least 1")));
        }
        tch::set_num_threads(threads);
    }
    let model = registry.find(model)?;
    let device = hardware::parse_device(&args.device)?;
    hardware::set_numerics(args.tf32, args.deterministic)?;
    let mut case = Case::new(registry, model, choices, device)?;
    if let Some(path) = &args.policy {
        let policy = PolicyFile::read(path, model.name, case.build()?.as_ref())?;
        case.trainer.numerics.overrides = policy.overrides.into();
    }
    Ok(case)
}

/// Writes a line to standard error. A closed pipe is not an error.
pub(super) fn complain(line: &str) {
    use io::Write;
    let _ = writeln!(io::stderr(), "{line}");
}

fn print(text: &str) -> Result<()> {
    use io::Write;
    match io::stdout().write_all(text.as_bytes()) {
        // The program that reads the output closed the pipe, as in `| head`. This is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|error| Error::io("standard output", error)),
    }
}
