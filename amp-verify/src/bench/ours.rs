//! Measures this trainer as users call it, through [`Trainer::fit`]. The callback
//! [`SpeedBenchmark`] measures the times.

use std::{cell::Cell, rc::Rc, time::Instant};

use amp_core::{
    Error, Hook, LightningModule, Result, Trainer, TrainerConfig,
    callback::{Action, Callback, SpeedBenchmark},
    data::DataModule,
    event::Event,
    memory::MemoryMeter,
    optim::Moments,
    precision::{GradientStorage, Precision, StepOutcome},
    tch::{Cuda, Device},
    trainer::{Check, Graph, StepAccess},
};

use super::{
    interleaved::{Candidate, Chunk, Engine},
    workload::{Size, Task, config},
};

/// Trains a workload (a model with its data) with this trainer. Each chunk of steps is a separate
/// call of `fit` that continues to train the same model. The first epoch of each call is not
/// measured, because it loads kernels and captures CUDA graphs.
pub(super) struct Ours<'a> {
    engine: Engine,
    workload: &'a Task,
    size: Size,
    config: TrainerConfig,
    ready: Option<(Box<dyn LightningModule>, DataModule)>,
    first_step_seconds: Option<f64>,
    /// The largest number of bytes that tensors occupied in [`prepare`](Candidate::prepare), which
    /// builds the model and trains it for two epochs.
    peak_memory_bytes: Option<u64>,
}

impl<'a> Ours<'a> {
    /// Prepares to measure this trainer. Each measured chunk has at least `steps` steps, rounded up
    /// to whole epochs.
    pub(super) fn new(
        engine: Engine,
        workload: &'a Task,
        size: Size,
        precision: Precision,
        device: Device,
        steps: i64,
    ) -> Self {
        let epochs = (steps + workload.batches - 1) / workload.batches;
        let graph = if engine.is_graph() { Graph::On } else { Graph::Off };
        let (gradients, moments) = match engine {
            Engine::Graph16Bit => (GradientStorage::SixteenBit, Moments::Full),
            Engine::GraphLean => (GradientStorage::SixteenBit, Moments::EightBit),
            _ => (GradientStorage::Full, Moments::Full),
        };
        let own = config(precision, device);
        let config = TrainerConfig { max_epochs: 1 + epochs, graph, ..own }.with(|config| {
            config.numerics.gradients = gradients;
            config.numerics.moments = moments;
            if engine == Engine::GraphUnchecked {
                config.checks.level = Check::Off;
            }
        });
        Self {
            engine,
            workload,
            size,
            config,
            ready: None,
            first_step_seconds: None,
            peak_memory_bytes: None,
        }
    }
}

/// Trains `model`. Returns the total time in seconds of the epochs from number `first` (counted
/// from 0) on, and the number of steps that ran as CUDA graphs. An epoch lasts until its last
/// kernel has ended.
pub(super) fn seconds_of(
    config: &TrainerConfig,
    first: i64,
    model: &mut dyn LightningModule,
    data: &DataModule,
) -> Result<(f64, u64)> {
    let mut seconds = 0.0;
    let mut listen = |event: &Event| -> Result<()> {
        match event {
            Event::EpochEnd(end) if end.epoch >= first => {
                seconds += end.value("epoch_seconds").unwrap_or(f64::NAN);
            }
            _ => {}
        }
        Ok(())
    };
    let trainer = Trainer::new(config.clone()).subscribe(&mut listen);
    let record = trainer.callback(SpeedBenchmark::new()).fit(model, data)?;
    Ok((seconds, record.end.replayed))
}

/// A callback that measures the seconds from the time `begun` until the device has finished the
/// first training step.
struct FirstStep {
    begun: Instant,
    seconds: Rc<Cell<Option<f64>>>,
}

impl Callback for FirstStep {
    fn name(&self) -> String {
        "FirstStep".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        if self.seconds.get().is_none() {
            if let Device::Cuda(index) = hook.device {
                Cuda::synchronize(index as i64);
            }
            self.seconds.set(Some(self.begun.elapsed().as_secs_f64()));
        }
        Ok(Vec::new())
    }
}

impl Candidate for Ours<'_> {
    fn engine(&self) -> Engine {
        self.engine
    }

    fn prepare(&mut self) -> Result<()> {
        let data = self.workload.data(self.size)?;
        let meter = MemoryMeter::start(self.config.device)?;
        let first = FirstStep { begun: Instant::now(), seconds: Rc::default() };
        let seconds = first.seconds.clone();
        let mut model = self.workload.build(self.size)?;
        let once = TrainerConfig { max_epochs: 2, ..self.config.clone() };
        let record = Trainer::new(once).callback(first).fit(model.as_mut(), &data)?;
        let replayed = record.end.replayed;
        self.first_step_seconds = seconds.get();
        if self.engine.is_graph() && replayed == 0 {
            return Err(Error::config("no step ran as a CUDA graph"));
        }
        self.peak_memory_bytes = Some(meter.read()?.peak_allocated);
        self.ready = Some((model, data));
        Ok(())
    }

    fn first_step_seconds(&self) -> Option<f64> {
        self.first_step_seconds
    }

    fn chunk(&mut self) -> Result<Chunk> {
        let Some((model, data)) = &mut self.ready else {
            return Err(Error::config("not prepared"));
        };
        let (seconds, _) = seconds_of(&self.config, 1, model.as_mut(), data)?;
        let steps = (self.config.max_epochs - 1) * self.workload.batches;
        let peak_memory_bytes = self.peak_memory_bytes;
        Ok(Chunk { steps: steps.cast_unsigned(), seconds, peak_memory_bytes })
    }
}
