//! Tests of the reasons why steps cannot run as CUDA graphs, and of the notes that name these
//! reasons.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use amp_core::{
    Hook, Module, Result,
    callback::{Action, Callback, LearningRateMonitor, SpeedBenchmark},
    memory::MemoryMeter,
    nn::{Context, Sequential, Visit, Visitor},
    precision::{Precision, StepOutcome},
    tch::{Device, Tensor},
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::{
    graphs::{config, one_cycle, train, train_on},
    support::{
        device, message,
        model::{demo, linear},
        needs_cuda, seeded,
    },
};

#[rstest]
fn the_step_timer_is_deferred_and_the_rate_monitor_is_not() {
    assert_eq!(SpeedBenchmark::new().step_access(), StepAccess::Deferred);
    assert_eq!(LearningRateMonitor::new().step_access(), StepAccess::PerStep);
}

/// A layer that reads a number from the device in every forward pass. A step with this layer cannot
/// run as a CUDA graph.
struct Reads;

impl Visit for Reads {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Reads {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let largest = input.f_max()?.f_double_value(&[])?;
        Ok(input.f_mul_scalar(if largest > 1e9 { 0.5 } else { 1.0 })?)
    }
}

/// A layer that copies from host memory that is not pinned. Such a copy is not allowed while a CUDA
/// graph is captured.
struct Copies;

impl Visit for Copies {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Copies {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let factor =
            Tensor::from_slice(&[1_f32]).f_to_device_(input.device(), input.kind(), true, false)?;
        Ok(input.f_mul(&factor)?)
    }
}

/// A layer that seeds the random generators in every forward pass. Without a CUDA graph, dropout
/// then zeroes the same elements in each step.
struct Seeds(i64);

impl Visit for Seeds {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Seeds {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        tch::manual_seed(self.0);
        Ok(input.shallow_clone())
    }
}

/// A layer because of which a step cannot run as a CUDA graph.
#[derive(Debug, Clone, Copy)]
enum Obstacle {
    Reads,
    Copies,
    Seeds(i64),
}

impl Obstacle {
    fn layer(self) -> Box<dyn Module> {
        match self {
            Self::Reads => Box::new(Reads),
            Self::Copies => Box::new(Copies),
            Self::Seeds(seed) => Box::new(Seeds(seed)),
        }
    }

    /// Returns a part of the note that names the layer's fault.
    fn why(self) -> &'static str {
        match self {
            Self::Reads => "the step waits for the device",
            Self::Copies => "steps do not run as CUDA graphs",
            Self::Seeds(_) => "the training step seeds the random generator",
        }
    }
}

/// A callback that saves a checkpoint after each of the first steps.
struct Saves(std::path::PathBuf);

impl Callback for Saves {
    fn name(&self) -> String {
        "Saves".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        let save = || Action::Save { path: self.0.clone(), weights_only: false };
        Ok((hook.global_step < 8).then(save).into_iter().collect())
    }
}

/// While a thread copies a checkpoint to the host, a step can still be captured as a CUDA graph.
#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn saving_does_not_disturb_a_capture() -> Result<()> {
    needs_cuda();
    let _generator = seeded(7);
    let folder = tempfile::tempdir().expect("a folder");
    let wide = Box::new(linear(64, 1 << 16)?) as Box<dyn Module>;
    let network = Sequential::new(vec![wide, Box::new(linear(1 << 16, 10)?)]);
    let saves: Box<dyn Callback> = Box::new(Saves(folder.path().join("run.safetensors")));
    let config = config(Precision::Bf16Mixed, Graph::On);
    let outcome = train_on(&config, network, StepAccess::Deferred, one_cycle, vec![saves])?;
    assert!(outcome.record.end.replayed > 0);
    Ok(())
}

/// Several threads can train with CUDA graphs at the same time. Meanwhile another thread measures
/// memory, and waits for the device in each measurement.
#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn threads_capture_one_after_the_other() -> Result<()> {
    needs_cuda();
    let train = || -> Result<()> {
        for _ in 0..5 {
            let config = config(Precision::Bf16Mixed, Graph::On);
            let outcome =
                train_on(&config, demo(0.2)?, StepAccess::Deferred, one_cycle, Vec::new())?;
            assert!(outcome.record.end.replayed > 0);
        }
        Ok(())
    };
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let trained: Vec<_> = (0..4).map(|_| scope.spawn(train)).collect();
        let measured = scope.spawn(|| -> Result<()> {
            let meter = MemoryMeter::start(device())?;
            while !ended.load(Ordering::Relaxed) {
                meter.allocated()?;
            }
            Ok(())
        });
        let trained: Result<Vec<()>> =
            trained.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        ended.store(true, Ordering::Relaxed);
        measured.join().expect("no panic")?;
        trained.map(drop)
    })
}

#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_step_that_cannot_be_captured_runs_without_a_graph(
    #[values(Graph::On, Graph::Auto)] graph: Graph,
    // The generators have the seed 7 when the training begins.
    #[values(Obstacle::Reads, Obstacle::Copies, Obstacle::Seeds(7), Obstacle::Seeds(11))]
    obstacle: Obstacle,
) -> Result<()> {
    needs_cuda();
    let why = obstacle.why();
    let run = |graph| {
        let _generator = seeded(7);
        let network = Sequential::new(vec![
            obstacle.layer(),
            Box::new(linear(64, 32)?),
            Box::new(amp_core::nn::Dropout::new(0.5)?),
            Box::new(linear(32, 10)?),
        ]);
        let mut config = config(Precision::Bf16Mixed, graph);
        config.max_epochs = 2;
        train_on(&config, network, StepAccess::Deferred, one_cycle, Vec::new())
    };
    match graph {
        Graph::On => {
            let text = message(run(graph));
            assert!(text.contains(why), "{text}");
        }
        _ => {
            let (outcome, eager) = (run(graph)?, run(Graph::Off)?);
            let notes = outcome.record.notes;
            assert_eq!(notes.len(), 1, "{notes:?}");
            assert!(notes[0].contains(why), "{notes:?}");
            // The failed attempt to capture a step has changed nothing, not even the random
            // generator.
            assert_eq!(outcome.weights, eager.weights);
        }
    }
    Ok(())
}

#[rstest]
fn a_note_gives_the_reason_why_a_hand_written_step_is_not_a_graph() -> Result<()> {
    let within = StepAccess::InStep("the model is peculiar");
    let run = |graph| {
        let _generator = seeded(7);
        let mut config = config(Precision::F32True, graph);
        config.max_epochs = 1;
        train_on(&config, demo(0.2)?, within, one_cycle, Vec::new())
    };
    let text = message(run(Graph::On));
    let cuda = device().is_cuda();
    let why = if cuda { "the model is peculiar" } else { "CUDA graphs need a CUDA device" };
    assert_eq!(text, format!("steps do not run as CUDA graphs: {why}"));
    // With `Graph::Auto`, a note is printed on CUDA. A CPU has no CUDA graphs, so no note is
    // printed there.
    let notes = run(Graph::Auto)?.record.notes;
    assert_eq!(notes.len(), usize::from(cuda), "{notes:?}");
    Ok(())
}

/// Runs with and without graphs leave no memory in use. The first run is not measured: its capture
/// frees the workspaces that cuBLAS has kept from other tests.
#[rstest]
fn the_memory_of_a_graph_is_released() -> Result<()> {
    let Device::Cuda(_) = device() else { return Ok(()) };
    let run = |graph| {
        let mut config = config(Precision::Bf16Mixed, graph);
        config.max_epochs = 2;
        train(&config, one_cycle, Vec::new()).map(drop)
    };
    run(Graph::On)?;
    let meter = MemoryMeter::start(device())?;
    let mut left = Vec::new();
    for graph in [Graph::Off, Graph::On, Graph::Off, Graph::On] {
        run(graph)?;
        left.push(meter.allocated()?);
    }
    assert_eq!(left, [0; 4]);
    Ok(())
}
