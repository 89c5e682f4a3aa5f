//! Losses that cannot run in a CUDA graph: the reason is known before a step is captured.

use amp_core::{
    Trainer, TrainerConfig,
    loss::{Ctc, Loss, MeanOver},
    prelude::*,
    record::RunRecord,
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::support::{device, message, needs_cuda, seeded};

/// A user's own loss that reads a number from the device.
#[derive(Debug)]
struct Read;

impl Loss for Read {
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        let scale = output.f_abs()?.f_max()?.f_double_value(&[])?;
        amp_core::loss::mse_loss(output, target)?
            .f_mul_scalar(1.0 / (1.0 + scale))
            .map_err(Into::into)
    }

    fn mean_over(&self) -> MeanOver<'_> {
        MeanOver::Examples
    }

    fn outside_graphs(&self) -> Option<&'static str> {
        Some("Read reads its scale on the host")
    }
}

macro_rules! model {
    ($name:ident, $features:expr, $($loss:tt)*) => {
        #[derive(LightningModule)]
        #[loss($($loss)*)]
        #[optimizer(sgd, lr = 0.1)]
        struct $name {
            #[layer(sequential(linear(4, $features), log_softmax(-1)))]
            head: Sequential,
        }
    };
}

model!(Letters, 5, ctc_loss, zero_infinity = true);
model!(Reading, 4, value = Read);
model!(Smooth, 4, mse_loss);

const CTC: &str = "ctc_loss reads the lengths of outputs and labels on the host";

#[test]
fn a_loss_says_why_it_is_outside_of_graphs() -> Result<()> {
    let _section = seeded(1);
    assert_eq!(Letters::builder().build()?.step_access(), StepAccess::InStep(CTC));
    let own = StepAccess::InStep("Read reads its scale on the host");
    assert_eq!(Reading::builder().build()?.step_access(), own);
    assert_eq!(Smooth::builder().build()?.step_access(), StepAccess::Deferred);
    assert_eq!(StepAccess::of_loss(&Ctc::default()), StepAccess::InStep(CTC));
    Ok(())
}

/// Trains `Letters` with the CTC loss on six sequences of nine time steps, each with one or two
/// labels.
fn fit(graph: Graph) -> Result<RunRecord> {
    let _section = seeded(2);
    let input = Tensor::f_randn([6, 9, 4], (Kind::Float, Device::Cpu))?;
    let labels = Tensor::from_slice(&[1_i64, 2, 3, -100, 4, 4, 2, -100, 1, 3, 2, 2]).view([6, 2]);
    let data = DataModule::training("letters", Batch::new(input, labels)?, 3);
    let mut config = TrainerConfig::new(Precision::F32True, device());
    (config.max_epochs, config.graph) = (6, graph);
    Trainer::new(config).fit(&mut Letters::builder().build()?, &data)
}

/// Steps with the CTC loss run without a graph, on any device.
#[test]
fn steps_with_ctc_run_without_a_graph() -> Result<()> {
    let record = fit(Graph::Off)?;
    assert_eq!((record.end.global_step, record.end.skipped, record.end.replayed), (12, 0, 0));
    Ok(())
}

/// With `Graph::Auto` one note gives the reason, and the numbers are those of a run without graphs.
/// With `Graph::On` the run ends with an error before any step.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn ctc_on_cuda_is_refused_before_a_step() -> Result<()> {
    needs_cuda();
    let record = fit(Graph::Auto)?;
    let expected = format!("steps do not run as CUDA graphs: {CTC}");
    assert_eq!(record.notes, std::slice::from_ref(&expected));
    assert_eq!((record.end.global_step, record.end.replayed), (12, 0));
    assert_eq!(message(fit(Graph::On)), expected);
    Ok(())
}
