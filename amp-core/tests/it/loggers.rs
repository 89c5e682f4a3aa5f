//! The files that loggers write, read back.

use amp_core::{
    Error, Result, Trainer, TrainerConfig,
    event::{Event, Subscriber},
    log::Logged,
    logger::{CsvLogger, JsonLinesLogger},
    optim::{AdamW, OptimizerConfig},
    precision::{GradScalerConfig, Precision},
    tch::Device,
};
use tempfile::TempDir;

use crate::support::{
    message,
    model::{Model, constant, linear, same},
    seeded,
};

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

/// A short 16-mixed run with skips under this listener; every event comes back.
fn run(listener: &mut dyn Subscriber) -> Result<Vec<Event>> {
    let _generator = seeded(0);
    let mut config = TrainerConfig::new(Precision::F16Mixed, Device::Cpu);
    (config.max_epochs, config.log_every_n_steps) = (2, 2);
    config.scaler = GradScalerConfig { init_scale: 2.0_f64.powi(22), ..Default::default() };
    let mut model = Model::regression(linear(3, 3)?, |_| OptimizerConfig::new(AdamW::default()));
    let mut events = Vec::new();
    let mut keep = |event: &Event| -> Result<()> {
        events.push(event.clone());
        Ok(())
    };
    let data = same(constant(10, 3, 1.0)?, 2)?;
    Trainer::new(config).subscribe(listener).subscribe(&mut keep).fit(&mut model, &data)?;
    Ok(events)
}

/// One line an event, each the event again to the last digit; single batches are left out.
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

/// A row a value: those of the logging interval with the step, those of the epoch with both; the
/// numbers are exact.
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

/// A name or model with a comma stays one field.
#[test]
fn csv_fields_are_quoted() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("run.csv");
    let mut logger = CsvLogger::create(&path)?;
    let events = run(&mut |_: &Event| Ok(()))?;
    let Some(Event::FitStart(mut start)) = events.first().cloned() else { panic!("a start") };
    start.model = "A, \"B\"".into();
    let loss = Logged { name: "loss, total".into(), value: 0.1, prog_bar: false };
    logger.on_event(&Event::FitStart(start))?;
    logger.on_event(&Event::Logged { global_step: 1, values: vec![loss] })?;
    drop(logger);
    let mut reader = csv::Reader::from_path(&path).expect("the file is there");
    let row = reader.records().next().expect("a row").expect("six fields");
    assert_eq!(row, vec!["A, \"B\"", "16-mixed", "", "1", "loss, total", "0.1"]);
    Ok(())
}

/// A file that cannot be made is named with the system's reason.
#[test]
fn a_file_that_cannot_be_made_is_named() {
    let folder = folder();
    let path = folder.path().join("missing").join("run.jsonl");
    let outcomes = [CsvLogger::create(&path).map(drop), JsonLinesLogger::create(&path).map(drop)];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::Io { .. })));
        assert!(message(outcome).contains("run.jsonl: No such file"));
    }
}
