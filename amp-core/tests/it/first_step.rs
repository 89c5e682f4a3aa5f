//! Tests the first step of a run, in which the trainer records dtypes. The first step must compute
//! the same as any other step.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Module, Result, Trainer, TrainerConfig,
    data::DataModule,
    event::Event,
    memory::MemoryMeter,
    nn::{Call, Context, DtypeProbe, ModuleOutput, Op, Probe, Sequential, place},
    precision::{Policy, Precision, Region},
    tch::{self, Kind, Tensor},
    trainer::Graph,
};
use rstest::rstest;

use crate::{
    budget::{config, examples, mixed},
    support::{
        device,
        model::{Model, demo, digits, fit},
        seeded,
    },
};

/// Returns the peak memory of each batch of a run, minus the memory that was allocated before the
/// run.
fn peaks(config: &TrainerConfig, model: &mut Model, data: &DataModule) -> Result<Vec<u64>> {
    let (mut peaks, mut held) = (Vec::new(), 0_i64);
    let mut meter: Option<MemoryMeter> = None;
    let mut listen = |event: &Event| -> Result<()> {
        if !matches!(event, Event::FitStart(_) | Event::Batch { .. }) {
            return Ok(());
        }
        // The meter of the previous batch is read before the next meter starts, so that each meter
        // measures one batch.
        if let Some(meter) = meter.take() {
            peaks.push(held.cast_unsigned() + meter.read()?.peak_allocated);
            held += meter.allocated()?;
        }
        meter = Some(MemoryMeter::start(device())?);
        Ok(())
    };
    Trainer::new(config.clone()).subscribe(&mut listen).fit(model, data)?;
    Ok(peaks)
}

/// The first of four steps has the same peak memory as the later steps. A difference of 4 KiB is
/// allowed for logged scalars.
#[rstest]
fn the_first_step_has_the_same_peak_memory(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed, Precision::Bf16True)]
    precision: Precision,
) -> Result<()> {
    let _generator = seeded(3);
    let config = TrainerConfig { graph: Graph::Off, ..config(precision, None) };
    let data = examples()?;
    // This run is not measured, because in the first run of a process on CUDA, libraries allocate
    // workspaces that they never free.
    fit(&config, &mut mixed()?, &data).1?;
    let peaks = peaks(&config, &mut mixed()?, &data)?;
    assert_eq!(peaks.len(), 4);
    let off = peaks[1..].iter().map(|later| later.abs_diff(peaks[0])).max();
    assert!(off.is_some_and(|off| off <= 4096), "{precision}: {peaks:?}");
    Ok(())
}

/// What a probe receives about a layer: path, operation, planned dtype and actual dtype.
type Row = (String, Op, Kind, Kind);

/// A probe that reads only the dtypes of tensors.
#[derive(Default)]
struct Dtypes(RefCell<Vec<Row>>);

impl DtypeProbe for Dtypes {
    fn module_output(&self, output: &ModuleOutput<'_>) {
        let ModuleOutput { path, op, plan, kind } = *output;
        self.0.borrow_mut().push((path.to_owned(), op, plan.compute, kind));
    }
}

/// A probe that reads the values of tensors.
#[derive(Default)]
struct Tensors(RefCell<Vec<Row>>);

impl Probe for Tensors {
    fn ran(&self, call: &Call<'_>) {
        let (expected, seen) = (call.plan.compute, call.output.kind());
        self.0.borrow_mut().push((call.path.to_owned(), call.op, expected, seen));
    }
}

/// Runs a forward pass in training mode over some digits. Returns the output, and the number of
/// bytes that are kept for a backward pass.
fn pass(layers: &Sequential, policy: Policy, context: Context) -> Result<(Tensor, i64)> {
    let input = digits(330)?.place(policy)?.input;
    tch::manual_seed(5);
    let meter = MemoryMeter::start(policy.device)?;
    let output = {
        let _autocast = policy.autocast()?;
        layers.forward(&input, &context)?
    };
    Ok((output, meter.allocated()?))
}

/// On CUDA, one kernel computes batch norm, ReLU and dropout. A probe that reads only dtypes still
/// gets a report of each of these layers, like a probe that reads values. The forward pass has the
/// same bits, and keeps as many bytes, as a forward pass without a probe.
#[rstest]
fn fused_layers_are_reported_one_by_one(
    #[values(
        Precision::F32True,
        Precision::F64True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True
    )]
    precision: Precision,
    #[values(false, true)] has_island: bool,
) -> Result<()> {
    let _generator = seeded(3);
    let policy = Policy::new(precision, device());
    let layers = demo(0.2)?;
    // In an FP32 region, the first ReLU cannot be fused with the batch norm before it and the
    // dropout after it.
    let islands = has_island.then(|| ("2".to_owned(), Region::Fp32));
    let islands = Rc::new(islands.into_iter().collect());
    place(&layers, policy, &islands)?;
    let context = || Context::new(policy, true).with_overrides(islands.clone());
    // This forward pass is not measured, because in the first forward pass of a process on CUDA,
    // libraries allocate workspaces that they never free.
    drop(pass(&layers, policy, context())?);
    let (unseen, bytes) = pass(&layers, policy, context())?;
    let (dtypes, tensors) = (Rc::new(Dtypes::default()), Rc::new(Tensors::default()));
    let seen = pass(&layers, policy, context().with_dtype_probe(dtypes.clone()))?;
    let (_, apart) = pass(&layers, policy, context().with_probe(tensors.clone()))?;
    let rows = dtypes.0.take();
    assert_eq!(rows, tensors.0.take());
    let paths = rows.iter().map(|(path, ..)| path.parse::<usize>().expect("a place"));
    assert!(paths.eq(0..13), "{rows:?}");
    assert!(seen.0.equal(&unseen));
    assert_eq!(seen.1, bytes, "bytes kept for the backward pass under a dtype probe");
    if device().is_cuda() {
        assert!(bytes < apart, "fused layers keep {bytes} bytes, separate layers {apart}");
    }
    Ok(())
}
