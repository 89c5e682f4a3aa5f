//! Tests that activation checkpointing changes nothing about a training run except its memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use amp_core::{
    Module, Result,
    loss::cross_entropy,
    memory::MemoryMeter,
    nn::{
        BatchNorm, BatchNormConfig, Checkpoint, Context, Dropout, FusedTimes, Gelu, Linear,
        LinearConfig, Relu, Sequential, Visit, Visitor, named_tensors, parameters, place,
    },
    precision::{Kernels, Policy, Precision},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::{device, message, seeded};

fn block(inputs: i64, outputs: i64, checkpointed: bool) -> Result<Box<dyn Module>> {
    let layers: Vec<Box<dyn Module>> = vec![
        Box::new(Linear::new(LinearConfig::new(inputs, outputs))?),
        Box::new(BatchNorm::new(BatchNormConfig::new(outputs))?),
        Box::new(Gelu),
        Box::new(Dropout::new(0.3)?),
    ];
    Ok(Box::new(Checkpoint::new(Sequential::new(layers), checkpointed)))
}

struct Outcome {
    loss: Tensor,
    peak: u64,
    gradients: Vec<Tensor>,
    tensors: Vec<(String, Tensor)>,
    after: Tensor,
}

/// Runs one training step of four blocks on the device of the tests.
fn step(precision: Precision, checkpointed: bool) -> Result<Outcome> {
    let _generator = seeded(1);
    let policy = Policy::new(precision, device());
    let model = Sequential::new(vec![
        block(32, 256, checkpointed)?,
        block(256, 256, checkpointed)?,
        block(256, 256, checkpointed)?,
        Box::new(Linear::new(LinearConfig::new(256, 4))?),
    ]);
    place(&model, policy, &Default::default())?;
    let options = (precision.storage(), policy.device);
    let x = Tensor::randn([512, 32], (Kind::Float, policy.device)).to_kind(options.0);
    let y = Tensor::randint(4, [512], (Kind::Int64, policy.device));
    let meter = MemoryMeter::start(policy.device)?;
    let loss = {
        let _autocast = policy.autocast()?;
        cross_entropy(&model.forward(&x, &Context::new(policy, true))?, &y)?
    };
    loss.f_backward()?;
    Ok(Outcome {
        loss: loss.detach(),
        peak: meter.read()?.peak_allocated,
        gradients: parameters(&model).iter().map(|p| p.tensor.grad()).collect(),
        tensors: named_tensors(&model).into_iter().map(|(name, t, _)| (name, t)).collect(),
        after: Tensor::rand([8], (Kind::Float, policy.device)),
    })
}

/// With activation checkpointing, the loss, the gradients, the batch statistics and the next random
/// numbers have the same bits as without checkpointing. The wrapper `Checkpoint` does not change
/// the names of parameters. The peak memory is lower by more than a fifth, although the peak
/// includes the workspace of CUDA's matrix library.
#[rstest]
#[case::f32(Precision::F32True)]
#[case::f16_mixed(Precision::F16Mixed)]
#[case::bf16_mixed(Precision::Bf16Mixed)]
#[case::f64(Precision::F64True)]
fn checkpointing_changes_nothing_but_the_memory(#[case] precision: Precision) -> Result<()> {
    if device().is_cuda() {
        // This step is not measured: libraries allocate workspaces in the first forward and
        // backward pass of a process.
        step(precision, true)?;
    }
    let (kept, again) = (step(precision, false)?, step(precision, true)?);
    assert!(kept.loss.equal(&again.loss), "loss");
    assert_eq!(kept.gradients.len(), 14);
    for (at, (a, b)) in kept.gradients.iter().zip(&again.gradients).enumerate() {
        assert!(a.equal(b), "gradient {at}");
    }
    for ((name, a), (other, b)) in kept.tensors.iter().zip(&again.tensors) {
        assert_eq!(name, other);
        assert!(a.equal(b), "{name}");
    }
    assert!(kept.after.equal(&again.after), "the next random numbers");
    assert!(
        again.peak * 5 < kept.peak * 4,
        "peak {} with checkpoints, {} without",
        again.peak,
        kept.peak
    );
    Ok(())
}

/// A layer whose forward pass fails when it is recomputed.
struct FailsAgain;

impl Visit for FailsAgain {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for FailsAgain {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        match cx.is_recomputing() {
            true => Err(amp_core::Error::config("no second time")),
            false => Ok(input.f_mul_scalar(2.0)?),
        }
    }
}

#[test]
fn a_failure_while_recomputing_is_an_error_with_its_text() -> Result<()> {
    let policy = Policy::new(Precision::F32True, device());
    let x = Tensor::ones([3], (Kind::Float, policy.device)).set_requires_grad(true);
    let y = Checkpoint::new(FailsAgain, true).forward(&x, &Context::new(policy, true))?;
    let text = message(y.sum(Kind::Float).f_backward().map_err(amp_core::Error::from));
    assert!(text.contains("recomputing a checkpointed module: no second time"), "{text}");
    Ok(())
}

/// A layer that draws random numbers only when it is recomputed. It imitates another thread that
/// draws random numbers during the recomputation.
struct DrawsAgain;

impl Visit for DrawsAgain {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for DrawsAgain {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        if cx.is_recomputing() {
            let _ = Tensor::rand([4], (Kind::Float, input.device()));
        }
        Ok(input.f_mul_scalar(2.0)?)
    }
}

/// The recomputation of a checkpointed module that uses no random numbers does not reset the random
/// generator. A reset would also change the random numbers of another thread.
#[test]
fn a_module_without_random_numbers_leaves_the_generator_alone() -> Result<()> {
    let policy = Policy::new(Precision::F32True, device());
    let draw = || Tensor::rand([4], (Kind::Float, policy.device));
    let _generator = seeded(1);
    let x = Tensor::ones([3], (Kind::Float, policy.device)).set_requires_grad(true);
    let y = Checkpoint::new(DrawsAgain, true).forward(&x, &Context::new(policy, true))?;
    y.sum(Kind::Float).f_backward()?;
    let next = draw();
    let _again = seeded(1);
    let first = draw();
    assert!(!next.equal(&first) && next.equal(&draw()));
    Ok(())
}

/// A layer that records whether it ran while another thread was inside a section of
/// `random::seeded`.
struct Notes {
    is_in_section: Arc<AtomicBool>,
    ran_beside: Arc<AtomicBool>,
}

impl Visit for Notes {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Notes {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        self.ran_beside.fetch_or(self.is_in_section.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(input.f_mul_scalar(2.0)?)
    }
}

/// A checkpointed module does not run while another thread is inside a section of `random::seeded`.
/// Otherwise it would take the thread's random numbers for its own, and reset the generator in the
/// middle of the section when it is recomputed.
#[test]
fn a_checkpoint_waits_for_sections_of_other_threads() -> Result<()> {
    let (is_in_section, ran_beside) = (Arc::new(AtomicBool::new(true)), Arc::default());
    let section = seeded(1);
    let notes = Notes { is_in_section: is_in_section.clone(), ran_beside: Arc::clone(&ran_beside) };
    let other = thread::spawn(move || {
        let policy = Policy::new(Precision::F32True, device());
        let x = Tensor::ones([3], (Kind::Float, policy.device)).set_requires_grad(true);
        let y = Checkpoint::new(notes, true).forward(&x, &Context::new(policy, true));
        y.map(drop).map_err(|error| error.to_string())
    });
    thread::sleep(Duration::from_millis(100));
    is_in_section.store(false, Ordering::SeqCst);
    drop(section);
    assert_eq!(other.join().expect("the thread ends"), Ok(()));
    assert!(
        !ran_beside.load(Ordering::SeqCst),
        "the module ran within the section of the other thread"
    );
    Ok(())
}

#[test]
fn a_second_backward_pass_is_refused() -> Result<()> {
    let _generator = seeded(1);
    let policy = Policy::new(Precision::F32True, device());
    let module = Checkpoint::new(Linear::new(LinearConfig::new(3, 3))?, true);
    place(&module, policy, &Default::default())?;
    let x = Tensor::ones([2, 3], (Kind::Float, policy.device));
    let loss = module.forward(&x, &Context::new(policy, true))?.sum(Kind::Float);
    loss.f_backward()?;
    let _ = message(loss.f_backward().map_err(amp_core::Error::from));
    Ok(())
}

/// A recomputation uses the same kernels as the forward pass that it repeats, and the same injected
/// fault, even if both settings have changed before the backward pass. The fault doubles the
/// gradient of fused layers. libtorch's kernels fuse no layers, so with them the gradient does not
/// change.
#[rstest]
#[case::libtorch(Kernels::Libtorch, 1.0)]
#[case::own(Kernels::Own, 2.0)]
fn a_recomputation_takes_the_kernels_of_its_pass(
    #[case] kernels: Kernels,
    #[case] factor: f64,
) -> Result<()> {
    let _generator = seeded(3);
    let policy = Policy::new(Precision::F32True, device());
    let layers: Vec<Box<dyn Module>> =
        vec![Box::new(Linear::new(LinearConfig::new(4, 4))?), Box::new(Relu)];
    let model = Checkpoint::new(Sequential::new(layers), true);
    place(&model, policy, &Default::default())?;
    let x = Tensor::randn([8, 4], (Kind::Float, policy.device)).set_requires_grad(true);
    let gradient = |planted: bool| -> Result<Tensor> {
        let fault = planted.then(|| FusedTimes::new(2.0));
        let pass = kernels.enter();
        let output = model.forward(&x, &Context::new(policy, true))?;
        drop((pass, fault));
        Ok(Tensor::run_backward(&[output.sum(Kind::Float)], &[&x], false, false).remove(0))
    };
    assert!(gradient(true)?.equal(&(gradient(false)? * factor)));
    Ok(())
}
