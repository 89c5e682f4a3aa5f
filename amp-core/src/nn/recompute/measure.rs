//! Measures how many bytes each module keeps for the backward pass. Only one module at a time is
//! run with gradients, so even a model that does not fit into memory can be measured.

use std::{cell::RefCell, time::Instant};

use tch::{Device, Tensor};

use super::Segment;
use crate::{
    Result,
    ffi::CudaEvent,
    memory::{MemoryMeter, tensor_bytes},
    nn::{Context, Module, container},
    precision::is_floating,
};

/// The memory and time of a module, or of several layers that run fused.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cell {
    pub(crate) segment: Segment,
    /// The number of bytes that are kept for the backward pass, not counting the input and the
    /// output.
    pub(crate) own: u64,
    /// The number of bytes of the module's input.
    pub(crate) input: u64,
    /// The number of bytes of the module's output.
    pub(crate) output: u64,
    /// Whether the backward pass of the module needs the input.
    pub(crate) keeps_input: bool,
    /// Whether the backward pass of the module itself needs the output.
    pub(crate) keeps_output: bool,
    /// The seconds that one more forward pass of the module takes.
    pub(crate) seconds: f64,
    /// The measurements of the modules inside this module.
    pub(crate) within: Vec<Cell>,
}

/// Measures, in a forward pass, the modules that can be recomputed and the modules within them. The
/// pass must run without gradients, in a context that `Context::again` returned.
pub(crate) struct Survey {
    device: Device,
    meter: MemoryMeter,
    cells: RefCell<Vec<Cell>>,
}

impl Survey {
    pub(crate) fn start(device: Device) -> Result<Self> {
        Ok(Self { device, meter: MemoryMeter::untracked(device)?, cells: RefCell::default() })
    }

    /// Returns the measurements so far, in the order in which the modules ran, and removes them
    /// from the survey.
    pub(crate) fn take(&self) -> Vec<Cell> {
        self.cells.take()
    }

    /// Runs the layers of a container, and measures each layer that can be recomputed.
    pub(in crate::nn) fn layers<M: Module>(
        &self,
        layers: &[M],
        input: &Tensor,
        cx: &Context,
    ) -> Result<Tensor> {
        let (mut x, mut place) = (input.shallow_clone(), 0);
        while place < layers.len() {
            if layers[place].shared().is_none() {
                // The layer itself cannot be recomputed, but the modules inside it may be
                // recomputable.
                x = cx.call_nth(place, &layers[place], &x)?;
                place += 1;
                continue;
            }
            let alone = cx.recomputing();
            let mut count = 1;
            let segment =
                |count| Segment { path: cx.path().to_owned(), layers: Some(place..place + count) };
            let (cell, output) = self.measure(&x, |x| {
                let (in_one, output) = container::run_first(&layers[place..], place, x, &alone)?;
                count = in_one;
                Ok(output)
            })?;
            let within = self.within(|| container::run_first(&layers[place..], place, &x, cx))?;
            self.note(Cell { segment: segment(count), within, ..cell });
            (x, place) = (output, place + count);
        }
        Ok(x)
    }

    /// Runs and measures a module that can be recomputed as a whole.
    pub(in crate::nn) fn module(
        &self,
        module: &dyn Module,
        input: &Tensor,
        cx: &Context,
    ) -> Result<Tensor> {
        let alone = cx.recomputing();
        let (cell, output) = self.measure(input, |input| module.forward(input, &alone))?;
        self.note(Cell { segment: Segment { path: cx.path().to_owned(), layers: None }, ..cell });
        Ok(output)
    }

    /// Returns the measurements of the layers that `run` runs. They are not added to the other
    /// measurements of the survey.
    fn within<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<Vec<Cell>> {
        let before = self.cells.take();
        run()?;
        Ok(self.cells.replace(before))
    }

    /// Adds a measurement to the survey. If the same module runs several times in a forward pass,
    /// its bytes and seconds are added up.
    fn note(&self, cell: Cell) {
        let mut cells = self.cells.borrow_mut();
        match cells.iter_mut().find(|other| other.segment == cell.segment) {
            Some(other) => {
                other.own += cell.own + if cell.keeps_input { cell.input } else { 0 };
                other.seconds += cell.seconds;
            }
            None => cells.push(cell),
        }
    }

    /// Measures a module by running it twice on the input. The first run builds an autograd graph,
    /// and measures the bytes that this graph keeps alive. The second run measures the time.
    fn measure(
        &self,
        input: &Tensor,
        mut run: impl FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<(Cell, Tensor)> {
        let bytes = tensor_bytes(input);
        let history = history_for(input)?;
        let before = self.meter.allocated()?;
        // Makes an input that is not a leaf of the autograd graph: a graph keeps its leaves even if
        // no operation needs their values, so a leaf would always be counted.
        let own_input = match &history {
            Some(history) => tch::with_grad(|| input.f_detach()?.f_add(history))?,
            None => input.f_detach_copy()?,
        };
        let output = tch::with_grad(|| run(&own_input))?;
        let output_bytes = tensor_bytes(&output);
        let computed = self.meter.allocated()?;
        // `end` keeps the autograd graph alive, but not the output, so that the bytes of the output
        // can be measured separately.
        let end = tch::with_grad(|| output.f_sum(output.kind()))?;
        let held = self.meter.allocated()?;
        drop(output);
        let without_output = self.meter.allocated()?;
        drop(own_input);
        let left = self.meter.allocated()?;
        let keeps_output = held - without_output < output_bytes as i64;
        let keeps_input = without_output - left < bytes as i64;
        let kept = |is_kept: bool, bytes: u64| if is_kept { bytes } else { 0 };
        let ends = kept(keeps_input, bytes) + kept(keeps_output, output_bytes);
        let graph = left - before - (held - computed);
        drop(end);
        let (seconds, output) = self.timed(|| run(input))?;
        let cell = Cell {
            segment: Segment { path: String::new(), layers: None },
            // If the output is a view of the input, both share the same bytes, which are then
            // subtracted twice. The difference may be negative.
            own: (graph - ends as i64).max(0).cast_unsigned(),
            input: bytes,
            output: output_bytes,
            keeps_input,
            keeps_output,
            seconds,
            within: Vec::new(),
        };
        Ok((cell, output))
    }

    /// Measures the seconds that `body` takes. On CUDA, waits for the device.
    fn timed<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
        let started = Instant::now();
        if !self.device.is_cuda() {
            let value = body()?;
            return Ok((started.elapsed().as_secs_f64(), value));
        }
        let start = CudaEvent::record(self.device)?;
        let value = body()?;
        Ok((start.seconds_to(&CudaEvent::record(self.device)?)?, value))
    }
}

/// Returns a zero of shape `[1]` that requires a gradient, or `None` if `input` is not
/// floating-point. The sum of `input` and this zero equals `input`, but requires a gradient.
fn history_for(input: &Tensor) -> Result<Option<Tensor>> {
    if !is_floating(input.kind()) {
        return Ok(None);
    }
    let zero = Tensor::f_zeros([1], (input.kind(), input.device()))?;
    Ok(Some(zero.f_set_requires_grad(true)?))
}
