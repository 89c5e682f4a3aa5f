//! Tests of the trace file of profiled steps. The tests read the file as JSON, the format that
//! chrome://tracing reads.

use std::{collections::BTreeSet, fs, path::Path};

use amp_core::{
    Result, TrainerConfig,
    event::{Event, Subscriber},
    logger::ChromeTrace,
    optim::{OptimizerConfig, Sgd},
    precision::Precision,
    trainer::{Phase, Profile},
};
use serde_json::Value;
use tempfile::tempdir;

use crate::support::{
    device, heard,
    model::{Model, linear},
    seeded,
};

/// Runs two epochs of three steps each and returns the events. A step accumulates at most two
/// batches.
fn run(listener: &mut dyn Subscriber, every: i64) -> Result<Vec<Event>> {
    let _generator = seeded(0);
    let config =
        TrainerConfig { max_epochs: 2, ..TrainerConfig::new(Precision::F32True, device()) }.with(
            |config| {
                config.optimization.accumulate_grad_batches = 2;
                config.logging.profile_every_n_steps = Some(every);
            },
        );
    let mut model = Model::regression(linear(3, 3)?, |_| OptimizerConfig::new(Sgd::default()));
    heard(config, &mut model, listener)
}

fn profiles(events: &[Event]) -> Vec<Profile> {
    let profiles = events.iter().filter_map(|event| match event {
        Event::Profiled(profile) => Some(profile.clone()),
        _ => None,
    });
    profiles.collect()
}

fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the trace");
    serde_json::from_str(&text).expect("a JSON array")
}

fn number(event: &Value, key: &str) -> f64 {
    event[key].as_f64().unwrap_or_else(|| panic!("`{key}` in {event}"))
}

/// Returns the events of one process that have a start and a duration (`ph: X`).
fn complete(trace: &[Value], pid: u64) -> Vec<&Value> {
    trace.iter().filter(|event| event["ph"] == "X" && event["pid"] == pid).collect()
}

/// Each profile has one event called `step`. The phases of the step lie within this event, in order
/// and without gaps. Their durations add up to the times in the profile.
#[test]
fn spans_nest_and_add_up_to_the_profile() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("trace.json");
    let profiles = profiles(&run(&mut ChromeTrace::create(&path)?, 2)?);
    assert_eq!(profiles.len(), 3, "steps 0, 2 and 4 of six are profiled");
    let trace = read(&path);
    let (host, gpu) = (complete(&trace, 2), complete(&trace, 3));
    assert_eq!(gpu.is_empty(), !device().is_cuda());
    for (events, on_device) in [(&host, false), (&gpu, true)] {
        if events.is_empty() {
            continue;
        }
        let mut rest = events.iter();
        for profile in &profiles {
            let step = rest.next().expect("a step");
            assert_eq!(step["name"], "step");
            let place =
                |event: &Value| (event["args"]["epoch"].clone(), event["args"]["batch"].clone());
            assert_eq!(place(step), (profile.epoch.into(), profile.batch.into()));
            let mut at = number(step, "ts");
            for span in &profile.spans {
                let event = rest.next().expect("a phase");
                assert_eq!(event["name"], span.phase.name());
                assert_eq!(place(event), place(step));
                let gap = number(event, "ts") - at;
                // The device's clock has a resolution of half a microsecond.
                assert!(gap.abs() < if on_device { 2.0 } else { 1e-3 }, "{gap} µs before {event}");
                at = number(event, "ts") + number(event, "dur");
            }
            let end = number(step, "ts") + number(step, "dur");
            assert!((end - at).abs() < 1e-3, "the step ends with its last phase");
        }
        assert!(rest.next().is_none());
    }
    // The times in the profile are those of the GPU, if there is one. They are compared with the
    // events of the GPU, or else with the events of the host.
    let events = if gpu.is_empty() { &host } else { &gpu };
    for phase in Phase::ALL {
        let own = events.iter().filter(|event| event["name"] == phase.name());
        let traced: f64 = own.map(|event| number(event, "dur")).sum();
        let seconds: f64 = profiles.iter().map(|profile| profile.seconds(phase)).sum();
        assert!((traced - 1e6 * seconds).abs() <= 1e-9 * traced.abs(), "{phase:?}");
    }
    Ok(())
}

/// The trace shows the host and the device of each run as processes with the run's name. Every event
/// belongs to a process.
#[test]
fn every_process_and_thread_has_a_name() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("trace.json");
    let mut trace = ChromeTrace::create(&path)?;
    run(&mut trace, 1)?;
    run(&mut trace, 1)?;
    let trace = read(&path);
    let named = |what: &str| -> BTreeSet<u64> {
        let names = trace.iter().filter(|event| event["ph"] == "M" && event["name"] == what);
        names.map(|event| event["pid"].as_u64().expect("a number")).collect()
    };
    let used: BTreeSet<u64> =
        trace.iter().map(|event| event["pid"].as_u64().expect("a number")).collect();
    assert_eq!(named("process_name"), used);
    assert_eq!(named("thread_name"), used);
    let runs = if device().is_cuda() { vec![2, 3, 4, 5] } else { vec![2, 4] };
    assert!(used.iter().copied().eq(runs), "{used:?}");
    assert_eq!(trace[0]["args"]["name"], "Model 32-true: host");
    assert_eq!(trace.iter().any(|event| event["name"] == "memory"), device().is_cuda());
    Ok(())
}

/// The file is valid JSON before the first step, after each run, and even if the last run never
/// ends.
#[test]
fn an_unfinished_trace_is_valid() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("trace.json");
    let mut trace = ChromeTrace::create(&path)?;
    assert_eq!(read(&path), Vec::<Value>::new());
    let steps = || read(&path).iter().filter(|event| event["name"] == "step").count();
    let events = run(&mut trace, 1)?;
    let expected = profiles(&events).len() * if device().is_cuda() { 2 } else { 1 };
    assert_eq!(steps(), expected);
    run(&mut trace, 1)?;
    assert_eq!(steps(), 2 * expected);
    for event in events.iter().filter(|event| !matches!(event, Event::FitEnd(_))) {
        trace.on_event(event)?;
    }
    drop(trace);
    assert_eq!(steps(), 3 * expected);
    Ok(())
}
