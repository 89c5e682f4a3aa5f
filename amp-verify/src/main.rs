//! `cargo amp`: what the bootstrap crate hands over to.

use std::{io, process::ExitCode};

use amp_core::{
    Error, Result,
    callback::Callback,
    event::{Event, Subscriber},
    file::Staged,
    hardware, tch,
};
use amp_verify::{
    bench::{self, BenchArgs},
    case::Case,
    cli::{Cli, Command, DoctorArgs, Format, RunArgs, TrainArgs, VerifyArgs},
    diagnose::{DiagnoseArgs, PolicyFile},
    gate,
    layers::LayersArgs,
    matrix,
    output::Logs,
    report::{self, Courses},
    runner::{self, Extras},
    selftest::{self, SelftestArgs},
    text::one_line,
    view::{self, EpochTable, PhaseTables, Progress, doctor, table},
};
use clap::Parser;
use fixtures::models;

/// The run itself failed.
const FAILED: u8 = 1;
/// The user asked for something that cannot be done; clap uses the same code.
const USAGE: u8 = 2;
/// What was to be compared with is another machine's; the gate's code for it.
const NOT_COMPARABLE: u8 = 4;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let outcome = match cli.command {
        Command::Verify(args) => verify(&args),
        Command::Train(args) => train(&args),
        Command::Layers(args) => layers(&args),
        Command::Diagnose(args) => explain(&args),
        Command::Models => list(),
        Command::Doctor(args) => diagnose(&args),
        Command::Gate(args) => match gate::command(&args) {
            Ok((report, text)) => match print(&text) {
                Ok(()) => return ExitCode::from(report.status.exit_code()),
                failed => failed,
            },
            Err(error) => Err(error),
        },
        Command::Bench(args) => benchmark(&args),
        Command::Selftest(args) => match self_test(&args) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::from(FAILED),
            Err(error) => Err(error),
        },
        Command::GateWorker { threads } => gate::work(threads),
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // One line, whatever libtorch put into its text.
    eprintln!("error: {}", one_line(&error.to_string()));
    ExitCode::from(code(&error))
}

fn code(error: &Error) -> u8 {
    match error {
        // Whatever was asked for where.
        Error::In { source, .. } => code(source),
        Error::Config(_) | Error::Io { .. } => USAGE,
        Error::NotComparable(_) => NOT_COMPARABLE,
        _ => FAILED,
    }
}

/// Help as clap prints it; a mistake as one line, like every other error.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with("Usage:")).collect();
    let line = lines.join(" ");
    eprintln!(
        "{}",
        line.strip_suffix("For more information, try '--help'.").unwrap_or(&line).trim_end()
    );
    ExitCode::from(USAGE)
}

fn verify(args: &VerifyArgs) -> Result<()> {
    let case = prepare(&args.run)?;
    let plan = matrix::plan(&args.precision);
    plan.iter().try_for_each(|precision| case.trainer(*precision).map(drop))?;
    let output = args.output.as_deref().map(Staged::create).transpose()?;
    let page = args.html.as_deref().map(Staged::create).transpose()?;
    let mut courses = Courses::default();
    let mut logs = Logs::new(&args.run.logs)?;
    let mut phases = PhaseTables::default();
    let runs = plan.len() * usize::try_from(args.seeds).unwrap_or(usize::MAX);
    let mut progress = if args.run.quiet { Progress::hidden(runs) } else { Progress::new(runs) };
    let mut listen = |event: &Event| -> Result<()> {
        logs.on_event(event)?;
        phases.on_event(event)?;
        courses.on_event(event)?;
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
            courses: &courses,
            examples: case.data.val.len(),
            steps: &steps,
        };
        page.write(report::html(&content)?.as_bytes())?;
    }
    let text = match args.format {
        // A model that profiles itself does so in every run: its times are shown when asked for.
        Format::Table if args.run.logs.profile.is_some() => table(&comparison) + phases.text(),
        Format::Table => table(&comparison),
        Format::Json => json,
    };
    print(&text)
}

fn train(args: &TrainArgs) -> Result<()> {
    let case = prepare(&args.run)?;
    case.trainer(args.precision)?;
    let resume_from = args.checkpoints.resume_from()?;
    let mut logs = Logs::new(&args.run.logs)?;
    let had_folder = args.checkpoints.has_folder();
    let mut callbacks: Vec<Box<dyn Callback>> = args.monitors.callbacks();
    if let Some(checkpoint) = args.checkpoints.callback(case.model.metric)? {
        callbacks.push(Box::new(checkpoint));
    }
    let mut epochs = EpochTable::new(io::stdout());
    let mut progress = if args.run.quiet { Progress::hidden(1) } else { Progress::new(1) };
    // What can fail comes first: what is shown has happened.
    let mut listen = |event: &Event| -> Result<()> {
        logs.on_event(event)?;
        progress.suspend(|| epochs.on_event(event))?;
        progress.on_event(event)
    };
    let extras = Extras { callbacks, resume_from };
    let outcome = runner::run(&case, args.precision, extras, &mut listen);
    progress.finish();
    if outcome.is_err() && !had_folder {
        args.checkpoints.remove_empty_folder();
    }
    outcome.map(drop)
}

fn layers(args: &LayersArgs) -> Result<()> {
    let case = prepare(&args.run)?;
    let report = args.measure(&case)?;
    print(&match args.format {
        Format::Table => view::layers(&report),
        Format::Json => pretty(&report)?,
    })
}

fn explain(args: &DiagnoseArgs) -> Result<()> {
    let case = prepare(&args.run)?;
    let diagnosis = args.diagnose(&case)?;
    print(&match args.format {
        Format::Table => view::diagnosis(&diagnosis),
        Format::Json => pretty(&diagnosis)?,
    })
}

fn list() -> Result<()> {
    let lines = models::ALL.iter().map(|model| {
        format!(
            "{}\n    {}; data: {}, {} epochs\n",
            model.name, model.about, model.data, model.epochs
        )
    });
    print(&lines.collect::<String>())
}

fn diagnose(args: &DoctorArgs) -> Result<()> {
    let report = hardware::Report::gather()?;
    print(&match args.format {
        Format::Table => doctor(&report),
        Format::Json => pretty(&report)?,
    })
}

fn benchmark(args: &BenchArgs) -> Result<()> {
    let json = args.json.as_deref().map(Staged::create).transpose()?;
    let markdown = args.markdown.as_deref().map(Staged::create).transpose()?;
    let report = bench::run(args, &|what| {
        if !args.quiet {
            eprintln!("measuring: {what}");
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

/// Whether every fault was caught and nothing else.
fn self_test(args: &SelftestArgs) -> Result<bool> {
    let report = selftest::run(args)?;
    print(&if args.json { pretty(&report)? } else { report.table() })?;
    Ok(report.passes())
}

fn pretty(value: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    Ok(text.map_err(|error| Error::io("standard output", error.into()))? + "\n")
}

/// Checks everything that can be checked before a file is touched.
fn prepare(args: &RunArgs) -> Result<Case> {
    if let Some(threads) = args.threads {
        if threads < 1 {
            return Err(Error::config(format!("threads {threads}: it must be at least 1")));
        }
        tch::set_num_threads(threads);
    }
    let model = models::find(&args.model)?;
    let device = hardware::parse_device(&args.device)?;
    hardware::set_numerics(args.tf32, args.deterministic)?;
    let mut case = Case::new(model, args.choices(), device)?;
    if let Some(path) = &args.policy {
        let policy = PolicyFile::read(path, model.name, case.build()?.as_ref())?;
        case.trainer.islands = policy.islands.into();
    }
    Ok(case)
}

fn print(text: &str) -> Result<()> {
    use io::Write;
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|error| Error::io("standard output", error)),
    }
}
