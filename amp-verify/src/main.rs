//! `cargo amp`: what the bootstrap crate hands over to.

use std::{io, process::ExitCode};

use amp_core::{
    Error, Result,
    callback::{Callback, Mode, ModelCheckpoint},
    event::{Event, Subscriber},
    file::Staged,
    hardware, tch,
};
use amp_verify::{
    case::Case,
    cli::{Cli, Command, DoctorArgs, Format, RunArgs, TrainArgs, VerifyArgs},
    gate, matrix,
    output::Logs,
    runner,
    selftest::{self, SelftestArgs},
    view::{EpochTable, Progress, doctor, table},
};
use clap::Parser;
use fixtures::models;

/// The run itself failed.
const FAILED: u8 = 1;
/// The user asked for something that cannot be done; clap uses the same code.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let outcome = match cli.command {
        Command::Verify(args) => verify(&args),
        Command::Train(args) => train(&args),
        Command::Models => list(),
        Command::Doctor(args) => diagnose(&args),
        Command::Gate(args) => match gate::command(&args) {
            Ok((report, text)) => match print(&text) {
                Ok(()) => return ExitCode::from(report.status.exit_code()),
                failed => failed,
            },
            Err(error) => Err(error),
        },
        Command::Selftest(args) => match self_test(&args) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::from(FAILED),
            Err(error) => Err(error),
        },
        Command::GateWorker { threads } => gate::work(threads),
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // One line, whatever libtorch put into its text.
    let text = error.to_string();
    eprintln!("error: {}", text.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    ExitCode::from(match error {
        Error::Config(_) | Error::Io { .. } => USAGE,
        _ => FAILED,
    })
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
    let output = args.output.as_deref().map(Staged::create).transpose()?;
    let mut logs = Logs::create(&args.run.logs)?;
    let runs = matrix::plan(&args.precision).len();
    let mut progress = if args.run.quiet { Progress::hidden(runs) } else { Progress::new(runs) };
    let mut listen = |event: &Event| -> Result<()> {
        progress.on_event(event)?;
        logs.on_event(event)
    };
    let outcome = matrix::run(&case, &args.precision, &mut listen);
    progress.finish();
    let comparison = outcome?;
    let json = pretty(&comparison)?;
    if let Some(output) = output {
        output.write(json.as_bytes())?;
    }
    let text = match args.format {
        Format::Table => table(&comparison),
        Format::Json => json,
    };
    print(&text)
}

fn train(args: &TrainArgs) -> Result<()> {
    let case = prepare(&args.run)?;
    let mut logs = Logs::create(&args.run.logs)?;
    let mut epochs = EpochTable::new(io::stdout());
    let mut progress = if args.run.quiet { Progress::hidden(1) } else { Progress::new(1) };
    let mut listen = |event: &Event| -> Result<()> {
        progress.suspend(|| epochs.on_event(event))?;
        progress.on_event(event)?;
        logs.on_event(event)
    };
    let mut callbacks: Vec<Box<dyn Callback>> = Vec::new();
    if let Some(folder) = &args.checkpoint_dir {
        let checkpoint = ModelCheckpoint::new(folder, case.model.metric, Mode::Max)?;
        callbacks.push(Box::new(checkpoint.save_top_k(args.save_top_k).save_last(true)));
    }
    let outcome = runner::run(&case, args.precision, callbacks, &mut listen);
    progress.finish();
    outcome.map(drop)
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
    Case::new(model, args.choices(), device)
}

fn print(text: &str) -> Result<()> {
    use io::Write;
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|error| Error::io("standard output", error)),
    }
}
