//! Reads back the files that loggers write, and tests the threads that write these files.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, Sender, channel},
};

use amp_core::{
    Error, Result,
    event::{Event, Subscriber},
    log::Logged,
    logger::{Background, CsvLogger, JsonLinesLogger, MemoryLogger, Sink, TensorBoardLogger},
};
use tempfile::TempDir;

use crate::support::{logged_run as run, message};

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

/// The JSON lines file has one line for each event. Each line can be parsed to the same event, with
/// all digits. Events of single batches are not written.
#[test]
fn json_lines_are_the_events() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("run.jsonl");
    let events = run(&mut JsonLinesLogger::create(&path)?)?;
    let text = std::fs::read_to_string(&path).expect("the file is there");
    let read: Vec<Event> =
        text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    let kept: Vec<Event> =
        events.into_iter().filter(|event| !matches!(event, Event::Batch { .. })).collect();
    assert!(kept.iter().any(|event| matches!(event, Event::Skipped { .. })));
    assert_eq!(read, kept);
    Ok(())
}

/// The CSV file has one row for each value. For a value that is logged every n steps, the column
/// `epoch` is empty. For a value of an epoch, the columns `epoch` and `step` are filled. Numbers
/// are written with all digits.
#[test]
fn csv_rows_are_the_logged_values() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("run.csv");
    let events = run(&mut CsvLogger::create(&path)?)?;
    let mut reader = csv::Reader::from_path(&path).expect("the file is there");
    let header = reader.headers().expect("a header").clone();
    assert_eq!(header, vec!["model", "precision", "epoch", "step", "name", "value"]);
    let rows: Vec<Vec<String>> = reader
        .records()
        .map(|row| row.expect("a row").iter().map(str::to_owned).collect())
        .collect();
    let mut expected = Vec::new();
    let mut add = |epoch: String, step: u64, values: &[Logged]| {
        for Logged { name, value, .. } in values {
            let fields = ["Model", "16-mixed", &epoch, &step.to_string(), name, &value.to_string()];
            expected.push(fields.map(str::to_owned).to_vec());
        }
    };
    for event in &events {
        match event {
            Event::Logged { global_step, values } => add(String::new(), *global_step, values),
            Event::EpochEnd(end) => {
                add(end.epoch.to_string(), end.global_step, &end.train);
                add(end.epoch.to_string(), end.global_step, &end.val);
            }
            _ => {}
        }
    }
    assert_eq!(rows, expected);
    for row in &rows {
        assert!(row[5].parse::<f64>().is_ok_and(|value| value.to_string() == row[5]));
    }
    Ok(())
}

/// The name of a value or of the model is one quoted field, even if it contains commas.
#[test]
fn csv_fields_are_quoted() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("run.csv");
    let mut logger = CsvLogger::create(&path)?;
    let events = run(&mut |_: &Event| Ok(()))?;
    let Some(Event::FitStart(mut start)) = events.first().cloned() else { panic!("a start") };
    start.run.model = "A, \"B\"".into();
    let loss = Logged { name: "loss, total".into(), value: 0.1, prog_bar: false };
    logger.on_event(&Event::FitStart(start))?;
    logger.on_event(&Event::Logged { global_step: 1, values: vec![loss] })?;
    drop(logger);
    let mut reader = csv::Reader::from_path(&path).expect("the file is there");
    let row = reader.records().next().expect("a row").expect("six fields");
    assert_eq!(row, vec!["A, \"B\"", "16-mixed", "", "1", "loss, total", "0.1"]);
    Ok(())
}

/// If a log file cannot be created, the error contains the path of the file and the reason that the
/// system gives.
#[test]
fn a_file_that_cannot_be_made_is_named() {
    let folder = folder();
    let path = folder.path().join("missing").join("run.jsonl");
    let file = folder.path().join("run.jsonl");
    std::fs::write(&file, "").expect("a file");
    let outcomes = [
        CsvLogger::create(&path).map(drop),
        JsonLinesLogger::create(&path).map(drop),
        TensorBoardLogger::create(&file).map(drop),
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::Io { .. })));
        let text = message(outcome);
        let reasons = ["run.jsonl: No such file", "run.jsonl: the folder cannot be created"];
        assert!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
    }
}

/// The memory logger stores the numbers of each event, under the names that its documentation
/// lists.
#[test]
fn the_memory_logger_keeps_every_number() -> Result<()> {
    let mut logger = MemoryLogger::default();
    // When the next run begins, the logger drops the values of the previous run.
    run(&mut logger)?;
    let events = run(&mut logger)?;
    let mut expected: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
    let mut add =
        |name: &str, step, value| expected.entry(name.to_owned()).or_default().push((step, value));
    for event in &events {
        match event {
            Event::Logged { global_step, values } => values.iter().for_each(|logged| {
                add(&format!("{}_step", logged.name), *global_step, logged.value)
            }),
            Event::EpochEnd(end) => {
                add("train_loss", end.global_step, end.value("train_loss").expect("a loss"));
                add("val_loss", end.global_step, end.value("val_loss").expect("a loss"));
                add("epoch", end.global_step, end.epoch as f64);
                add("lr", end.global_step, end.lr);
            }
            Event::Skipped(skipped) => add("grad_scaler/skipped", skipped.attempt, 1.0),
            Event::Scale { attempt, scale } => add("grad_scaler/scale", *attempt, *scale),
            _ => {}
        }
    }
    assert_eq!(logger.history(), &expected);
    assert!(expected.contains_key("grad_scaler/skipped") && expected.len() == 7);
    assert_eq!(logger.get("val_loss"), expected["val_loss"]);
    assert_eq!(logger.last("lr"), Some(1e-3));
    assert_eq!((logger.get("accuracy"), logger.last("accuracy")), (&[][..], None));
    Ok(())
}

/// A logger that blocks at the first event until the test lets it continue. At the end, it sends
/// the events that it has written to the test.
struct Gated {
    /// Receives the test's permission to continue. `None` after the permission was received.
    gate: Option<Receiver<()>>,
    written: Vec<Event>,
    out: Sender<Vec<Event>>,
}

impl Sink for Gated {
    fn write(&mut self, event: &Event) -> Result<()> {
        if let Some(gate) = self.gate.take() {
            gate.recv().expect("the test opens the gate");
        }
        self.written.push(event.clone());
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        // If the test has already ended, nobody receives the events, and the error is ignored.
        let _ = self.out.send(std::mem::take(&mut self.written));
        Ok(())
    }
}

/// A blocked logger does not delay the events of a run. The run waits only at its end, until all
/// events are written, each once and in order. If the logger is dropped before the end of the run,
/// dropping waits too.
#[test]
fn no_event_waits_for_the_sink_and_none_is_lost() -> Result<()> {
    let events = run(&mut |_: &Event| Ok(()))?;
    let (end, before) = events.split_last().expect("events");
    for ended in [true, false] {
        let ((open, gate), (out, written)) = (channel(), channel());
        let mut logger = Background::start(Gated { gate: Some(gate), written: Vec::new(), out })?;
        // Sends more events than the buffer of a file can hold, while the logger is blocked at the
        // first event.
        let sent: Vec<&Event> = before.iter().cycle().take(1000).collect();
        sent.iter().try_for_each(|event| logger.on_event(event))?;
        open.send(()).expect("the sink waits");
        if ended {
            logger.on_event(end)?;
        } else {
            drop(logger);
        }
        let written: Vec<Event> = written.try_iter().flatten().collect();
        let expected: Vec<&Event> = sent.into_iter().chain(ended.then_some(end)).collect();
        assert_eq!(written.iter().collect::<Vec<_>>(), expected);
    }
    Ok(())
}

/// A logger that returns an error, or panics, at each event for which `at` returns true.
struct Failing {
    at: fn(&Event) -> bool,
    panics: bool,
}

impl Sink for Failing {
    fn write(&mut self, event: &Event) -> Result<()> {
        if !(self.at)(event) {
            return Ok(());
        }
        assert!(!self.panics, "a bug in the sink");
        Err(Error::config("the disk is on fire"))
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// If a logger returns an error, at any event, the run ends with the text of this error. If a
/// logger panics, the run ends with an error too.
#[test]
fn a_sinks_error_ends_the_run() -> Result<()> {
    let first: fn(&Event) -> bool = |event| matches!(event, Event::FitStart(_));
    let last: fn(&Event) -> bool = |event| matches!(event, Event::FitEnd(_));
    for (at, panics, says) in [
        (first, false, "the disk is on fire"),
        (last, false, "the disk is on fire"),
        (last, true, "a logger panicked"),
    ] {
        let mut logger = Background::start(Failing { at, panics })?;
        let text = message(run(&mut logger).map(drop));
        assert!(text.starts_with(says), "{text}");
        let text = message(logger.flush());
        assert!(text.starts_with("a logger failed earlier"), "{text}");
    }
    Ok(())
}

/// If the disk is full, the error names the file, even if the failure is noticed only after later
/// events.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_ends_the_run() -> Result<()> {
    let text = message(run(&mut JsonLinesLogger::create("/dev/full")?).map(drop));
    assert!(text.starts_with("/dev/full: No space left on device"), "{text}");
    let text = message(CsvLogger::create("/dev/full").map(drop));
    assert!(text.starts_with("/dev/full: No space left on device"), "{text}");
    Ok(())
}
