//! Records the modules of a forward pass, with their shapes and operations.

use std::{cell::RefCell, rc::Rc};

use crate::{
    LightningModule, Result, Step,
    data::AnyBatch,
    ffi::FlopCounter,
    log::Log,
    module::first_loss,
    nn::{Context, Trace},
    trainer::TrainerConfig,
};

/// The shapes of a module's input or output tensors.
type Shapes = Vec<Vec<i64>>;

/// The record of a forward pass.
#[derive(Debug, Default)]
pub(super) struct Traced {
    /// The calls of modules, in the order in which they began.
    pub(super) calls: Vec<Call>,
    /// The number of floating-point operations of the forward pass, including the loss.
    pub(super) flops: u64,
}

/// One call of a module.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) path: String,
    pub(super) type_name: &'static str,
    pub(super) input: Shapes,
    pub(super) output: Shapes,
    /// The number of floating-point operations of the call, including the modules that it calls.
    pub(super) flops: u64,
}

/// Runs the forward pass and the loss of a training step, and records each module that runs.
pub(super) fn trace(
    model: &mut dyn LightningModule,
    batch: &AnyBatch,
    config: &TrainerConfig,
) -> Result<Traced> {
    let policy = config.policy();
    let tracer = Rc::new(Tracer { counter: FlopCounter::start()?, seen: RefCell::default() });
    let context = Context::new(policy, true)
        .with_overrides(config.numerics.overrides.clone())
        .without_checkpointing()
        .without_dropout()
        .again()
        .with_trace(tracer.clone());
    let _autocast = policy.autocast()?;
    let mut log = Log::default();
    let _loss = first_loss(model, batch, &mut Step::new(&context, &mut log, 0, 0))?;
    let flops = tracer.counter.read()?;
    let calls = std::mem::take(&mut tracer.seen.borrow_mut().calls);
    Ok(Traced { calls, flops })
}

struct Tracer {
    counter: FlopCounter,
    seen: RefCell<Seen>,
}

#[derive(Default)]
struct Seen {
    calls: Vec<Call>,
    /// The indices of the calls that have begun and not ended.
    open: Vec<usize>,
}

impl Tracer {
    fn count(&self) -> u64 {
        // Reading the counter only copies a number, so it does not fail.
        self.counter.read().unwrap_or_default()
    }
}

impl Trace for Tracer {
    fn began(&self, path: &str, type_name: &'static str, input: Shapes) {
        let mut seen = self.seen.borrow_mut();
        let place = seen.calls.len();
        seen.open.push(place);
        let (path, flops) = (path.to_owned(), self.count());
        seen.calls.push(Call { path, type_name, input, output: Vec::new(), flops });
    }

    fn ended(&self, output: Shapes) {
        let mut seen = self.seen.borrow_mut();
        let Some(place) = seen.open.pop() else { return };
        let call = &mut seen.calls[place];
        call.flops = self.count() - call.flops;
        call.output = output;
    }
}
