//! Captures a training step as a CUDA graph.

use tch::{Device, Kind, Tensor};

use super::{
    super::{micro_batches::Examples, state::StepState, tensor_copies::Kept},
    refused,
};
use crate::{
    Error, LightningModule, Result,
    data::AnyBatch,
    ffi::{self, CudaEvent, CudaGraph, Grads},
    log::{CapturedLog, Interval, Log, LogRoom},
    nn::{Role, changed_in_forward, named_tensors},
    precision::Precision,
};

/// A training step that was captured as a CUDA graph, with the tensors from which the graph reads
/// and to which it writes.
pub(super) struct StepGraph {
    graph: CudaGraph,
    /// The tensors from which the graph reads the batches.
    inputs: Vec<AnyBatch>,
    /// The factor by which the loss of each batch is multiplied.
    shares: Vec<f64>,
    /// The dtype of the loss of each batch.
    losses: Vec<Kind>,
    /// For each optimizer, the parameters for which the graph computes a gradient, and the tensors
    /// into which it writes these gradients.
    grads: Vec<(Vec<Tensor>, Vec<Tensor>)>,
    pub(super) log: CapturedLog,
    /// A scalar on the device, which is 0 until a step is not finite and then becomes 1. As long as
    /// it is 1, the graph changes no parameter.
    pub(super) skip_flag: Tensor,
    /// `skip_flag` and the losses of the batches, in one tensor of shape `[1 + batches]` on the
    /// device.
    report: Tensor,
    /// For each step in flight, a copy of its `report` in pinned host memory.
    reports: Vec<Tensor>,
    /// For each step in flight, copies of the buffers and logged sums, made before the step.
    kept: Kept,
    precision: Precision,
    /// For each optimizer, whether the graph contains the optimizer's step.
    pub(super) steps: Vec<bool>,
    /// For each optimizer, whether the CUDA graph computes a gradient for any of its parameters.
    pub(super) stepped: Vec<bool>,
}

impl StepGraph {
    /// Captures a step on batches of the same shapes as `batches`. The capture only records the
    /// step: it computes nothing and changes no parameter. `slots` is the largest number of steps
    /// in flight.
    pub(super) fn capture(
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        batches: &[AnyBatch],
        shares: &[f64],
        slots: usize,
    ) -> Result<Self> {
        let Device::Cuda(index) = state.policy().device else {
            return Err(refused("CUDA graphs need a CUDA device"));
        };
        if state.seeding.was_found() {
            return Err(refused(
                "the training step seeds the random generator, or draws random numbers in some \
                 steps only, which a graph cannot repeat: seed the generator before the training, \
                 and draw numbers in each step",
            ));
        }
        let device = state.policy().device;
        let buffers = buffers(model, device)?;
        let inputs = batches.iter().map(AnyBatch::copied).collect::<Result<Vec<_>>>()?;
        let skip_flag = Tensor::f_zeros([0_i64; 0], (Kind::Float, device))?;
        state.optim.write_rates()?;
        let steps = captured_steps(state).collect();
        let mut room = LogRoom::new(device)?;
        let (graph, Captured { losses, report, log, grads, stepped }) = loop {
            state.optim.zero_grad()?;
            // The graph reserves memory of its own, so the memory that the caching allocator has
            // kept is freed first.
            ffi::cuda_empty_cache()?;
            let captured = CudaGraph::capture(index, || {
                capture_step(state, model, &inputs, shares, &skip_flag, &room)
            });
            state.optim.scaler.forget();
            match (captured, room.larger()?) {
                (Err(_), Some(larger)) => room = larger,
                (captured, _) => break captured.map_err(why)?,
            }
        };
        let on_host = Tensor::f_zeros([report.numel() as i64], (report.kind(), Device::Cpu))?;
        let reports = (0..slots).map(|_| ffi::pinned(&on_host)).collect::<Result<_>>()?;
        let sums = log.sums().map(Tensor::shallow_clone);
        let kept = Kept::new(buffers.into_iter().chain(sums).collect(), slots)?;
        let precision = state.policy().precision;
        Ok(Self {
            graph,
            inputs,
            shares: shares.to_vec(),
            losses,
            grads,
            log,
            skip_flag,
            report,
            reports,
            kept,
            precision,
            steps,
            stepped,
        })
    }

    /// Returns whether the graph computes in the run's current precision, and contains the steps of
    /// exactly those optimizers whose steps can currently be captured.
    pub(super) fn is_of(&self, state: &StepState<'_>) -> bool {
        self.precision == state.policy().precision
            && captured_steps(state).eq(self.steps.iter().copied())
    }

    /// Returns whether the graph can run a step on the batches of `examples`.
    pub(super) fn fits(&self, examples: &Examples, state: &StepState<'_>) -> bool {
        self.is_of(state)
            && self.shares == examples.shares
            && self.inputs.len() == examples.batches.len()
            && self.inputs.iter().zip(&examples.batches).all(|(own, other)| own.is_like(other))
    }

    /// Copies the sums of `log` into the tensors in which the graph adds up logged values. Sets the
    /// gradient of each parameter to the tensor into which the graph writes it.
    pub(super) fn enter(&mut self, log: &mut Log) -> Result<()> {
        self.log.take_over(log)?;
        let mut grads = self.grads.iter();
        grads.try_for_each(|(parameters, grads)| ffi::set_grads(parameters, grads))
    }

    /// Launches the step on these batches. The outcome of the step is known when the returned event
    /// has completed.
    pub(super) fn launch(&self, batches: &[AnyBatch], slot: usize) -> Result<CudaEvent> {
        let examples = self.inputs.iter().zip(batches).flat_map(|(own, batch)| {
            own.tensors().zip(batch.tensors()).map(|((_, own), (_, given))| [own, given])
        });
        let pairs: Vec<_> = self.kept.copies(slot).chain(examples).collect();
        ffi::copy_each(&pairs)?;
        self.graph.launch(&self.report, &self.reports[slot])
    }

    /// Returns whether the step whose report is in this slot was skipped. The event of the step
    /// must have completed.
    pub(super) fn is_void(&self, slot: usize) -> Result<bool> {
        Ok(self.reports[slot].f_double_value(&[0])? != 0.0)
    }

    /// Returns the loss of each batch of the step in this slot. The losses are on the host.
    pub(super) fn losses(&self, slot: usize) -> Result<Vec<Tensor>> {
        let losses = (1..).zip(&self.losses).map(|(at, kind)| {
            // The values are copied, because a later step will use the slot.
            Ok(self.reports[slot].f_select_copy(0, at)?.f_totype(*kind)?)
        });
        losses.collect()
    }

    /// Restores the buffers and the logged sums to their values before the skipped step in this
    /// slot. This also undoes the steps after the skipped step.
    pub(super) fn roll_back(&self, slot: usize) -> Result<()> {
        self.kept.restore(slot)?;
        let _ = self.skip_flag.shallow_clone().f_zero_()?;
        Ok(())
    }
}

/// Returns for each optimizer whether the optimizer's next step can be captured in a CUDA graph.
fn captured_steps(state: &StepState<'_>) -> impl Iterator<Item = bool> {
    state.optim.scheduled.iter().map(|scheduled| scheduled.optimizer.capabilities().captures)
}

struct Captured {
    losses: Vec<Kind>,
    report: Tensor,
    log: CapturedLog,
    grads: Vec<(Vec<Tensor>, Vec<Tensor>)>,
    stepped: Vec<bool>,
}

fn capture_step(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    batches: &[AnyBatch],
    shares: &[f64],
    skip_flag: &Tensor,
    room: &LogRoom,
) -> Result<Captured> {
    let (mut losses, mut logs) = (Vec::new(), Vec::new());
    let casts = state.keep_casts()?;
    for (index, (batch, share)) in (0..).zip(batches.iter().zip(shares)) {
        let mut log = Log::at(Interval::captured());
        losses.push(state.passes().run(model, batch, *share, index, &mut log)?);
        state.does_more |= log.interval().was_asked();
        log.interval().may_repeat()?;
        logs.push(log);
    }
    // The cached casts of the weights are valid only until the optimizer changes the weights.
    drop(casts);
    let gradients = state.optim.unscale_and_clip(true)?;
    state.optim.scaler.note_non_finite(skip_flag)?;
    let stepped = state.optim.apply_captured(&gradients, skip_flag)?;
    state.optim.scaler.update_applied()?;
    let log = CapturedLog::capture(logs, room)?;
    let reported = std::iter::once(skip_flag).chain(&losses).map(|tensor| tensor.f_reshape([1]));
    // The concatenation has the widest dtype among the flag and the losses, so it is exact.
    let report = Tensor::f_cat(&reported.collect::<std::result::Result<Vec<_>, _>>()?, 0)?;
    let losses = losses.iter().map(Tensor::kind).collect();
    let grads = state.optim.scheduled.iter().map(|scheduled| {
        let parameters = scheduled.optimizer.parameters();
        let grads = Grads::of(parameters)?;
        let pairs = grads
            .with_places()
            .map(|(place, grad)| (parameters[place].tensor.shallow_clone(), grad.shallow_clone()));
        Ok(pairs.unzip())
    });
    Ok(Captured { losses, report, log, grads: grads.collect::<Result<_>>()?, stepped })
}

fn buffers(model: &dyn LightningModule, device: Device) -> Result<Vec<Tensor>> {
    let mut buffers = Vec::new();
    for (name, tensor, role) in named_tensors(model) {
        if tensor.device() != device {
            return Err(refused(&format!("`{name}` is not on the run's device")));
        }
        if role == Role::Buffer {
            buffers.push(tensor);
        }
    }
    buffers.extend(changed_in_forward(model).into_iter().map(|parameter| parameter.tensor));
    Ok(buffers)
}

fn why(error: Error) -> Error {
    let text = error.to_string();
    // This is the driver's error text for an operation that a capturing thread must not call.
    match text.contains("operation not permitted when stream is capturing") {
        true => refused(&format!(
            "the step waits for the device, or calls something else that a capture forbids: {text}"
        )),
        false => refused(&text),
    }
}
