//! Tests of TensorBoard's event files, which are read with code that was written from their
//! specification. `tests/tests/tensorboard.rs` reads them with TensorBoard's own reader.

use std::path::{Path, PathBuf};

use amp_core::{
    Result,
    logger::{MemoryLogger, TensorBoardLogger},
};

use crate::support::{
    logged_run,
    tfevents::{Field, fields, records},
};

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().expect("a folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// Returns the one event file of a run.
fn event_file(folder: &Path) -> Vec<u8> {
    let files = entries(folder);
    let [file] = files.as_slice() else { panic!("{files:?} is not one file") };
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(name.starts_with("events.out.tfevents."), "{name}");
    std::fs::read(file).expect("the event file")
}

fn bytes(fields: &[(u64, Field)], number: u64) -> Vec<Vec<u8>> {
    let of_number = fields.iter().filter(|(own, _)| *own == number);
    of_number
        .map(|(_, field)| match field {
            Field::Bytes(bytes) => bytes.clone(),
            other => panic!("field {number} is {other:?}"),
        })
        .collect()
}

/// An event file contains the whole run, and the checksums of all its records are correct. The
/// first record contains the file version. The other records contain every number of the run as an
/// f32 with its step, and the start and the end of a session of TensorBoard's HParams plugin.
#[test]
fn an_event_file_holds_the_run() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let mut memory = MemoryLogger::default();
    let mut logger = TensorBoardLogger::create(folder.path())?;
    let events = logged_run(&mut logger)?;
    for event in &events {
        amp_core::event::Subscriber::on_event(&mut memory, event)?;
    }
    let records = records(&event_file(&folder.path().join("Model/16-mixed/version_0")));
    let version = fields(&records[0]);
    assert_eq!(bytes(&version, 3), [b"brain.Event:2"]);
    let mut seen = Vec::new();
    let mut other_tags = Vec::new();
    for record in &records[1..] {
        let event = fields(record);
        assert!(matches!(event[0], (1, Field::F64(time)) if time > 1.7e9), "{:?}", event[0]);
        let step = event.iter().find_map(|field| match field {
            (2, Field::Varint(step)) => Some(*step),
            _ => None,
        });
        for summary in bytes(&event, 5) {
            for value in bytes(&fields(&summary), 1) {
                let value = fields(&value);
                let tag = String::from_utf8(bytes(&value, 1).remove(0)).expect("a text");
                let number = value.iter().find_map(|field| match field {
                    (2, Field::F32(number)) => Some(*number),
                    _ => None,
                });
                match number {
                    // Protobuf omits fields whose value is 0, so a missing step is step 0.
                    Some(number) => seen.push((tag, step.unwrap_or(0), number.to_bits())),
                    None => other_tags.push(tag),
                }
            }
        }
    }
    let mut expected: Vec<(String, u64, u32)> = Vec::new();
    for (tag, values) in memory.history() {
        let values = values.iter().map(|(step, value)| (*step, (*value as f32).to_bits()));
        expected.extend(values.map(|(step, value)| (tag.clone(), step, value)));
    }
    seen.sort();
    expected.sort();
    assert!(expected.len() > 10);
    assert_eq!(seen, expected);
    assert_eq!(other_tags, ["_hparams_/session_start_info", "_hparams_/session_end_info"]);
    Ok(())
}

/// Each run writes to its own folder `version_N`, whether the runs use the same logger or different
/// ones.
#[test]
fn every_run_has_a_folder_of_its_own() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for the test");
    for _ in 0..2 {
        let mut logger = TensorBoardLogger::create(folder.path().join("runs"))?;
        logged_run(&mut logger)?;
        logged_run(&mut logger)?;
    }
    let runs = entries(&folder.path().join("runs/Model/16-mixed"));
    let names: Vec<_> = runs.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert_eq!(names, ["version_0", "version_1", "version_2", "version_3"]);
    let lengths: Vec<usize> = runs.iter().map(|run| records(&event_file(run)).len()).collect();
    assert!(lengths[0] > 10 && lengths.iter().all(|length| *length == lengths[0]), "{lengths:?}");
    Ok(())
}
