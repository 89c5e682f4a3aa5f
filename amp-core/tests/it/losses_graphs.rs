//! Tests of losses in CUDA graphs. The CTC loss can run in a CUDA graph, although the lengths of
//! its sequences change from batch to batch. A loss that cannot run in a CUDA graph gives its
//! reason before a step is captured.

use amp_core::{
    Trainer, TrainerConfig,
    loss::{Ctc, Loss, MeanOver},
    nn,
    precision::Kernels,
    prelude::*,
    record::RunRecord,
    tch::Reduction,
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::support::{device, message, needs_cuda, seeded};

/// A user-defined loss that copies a number from the device to the host.
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

model!(Reading, 4, value = Read);
model!(Smooth, 4, mse_loss);

/// A batch of sequences that have different numbers of steps and of labels.
#[derive(Batch)]
struct Spoken {
    sounds: Tensor,
    lengths: Tensor,
    labels: Tensor,
}

#[derive(LightningModule)]
#[batch(Spoken, inputs(sounds), target = batch)]
#[loss(with = |output, batch| {
    Ctc::default().reduced(output, &batch.labels, &batch.lengths, Reduction::Mean)
}, of = examples)]
#[log(train_loss, on_epoch)]
#[optimizer(adamw, lr = 0.02)]
struct Letters {
    #[layer(sequential(linear(4, 16), relu, linear(16, 5), log_softmax(-1)))]
    head: Sequential,
}

model!(Whole, 5, ctc_loss);

#[test]
fn a_loss_says_why_it_is_outside_of_graphs() -> Result<()> {
    let _section = seeded(1);
    let own = StepAccess::InStep("Read reads its scale on the host");
    assert_eq!(Reading::builder().build()?.step_access(), own);
    for model in [
        &Smooth::builder().build()? as &dyn LightningModule,
        &Whole::builder().build()?,
        &Letters::builder().build()?,
    ] {
        assert_eq!(model.step_access(), StepAccess::Deferred);
    }
    Ok(())
}

/// Returns 48 sequences that are padded to 12 steps. Each sequence has 5 to 12 steps and 0 to 4
/// labels. The first steps of the input are two noisy one-hot vectors for each label, and the rest
/// is noise.
fn sequences() -> Result<Spoken> {
    let (mut labels, mut lengths) = (Vec::new(), Vec::new());
    for at in 0..48_i64 {
        let count = at % 5;
        labels.extend((0..4).map(|i| if i < count { 1 + (at / 5 + i * i) % 4 } else { -100 }));
        lengths.push((5 + at % 8).max(2 * count + 2));
    }
    let labels = Tensor::from_slice(&labels).view([48, 4]);
    let sounds = labels.f_sub_scalar(1)?.f_clamp_min(0)?.f_one_hot(4)?;
    let sounds = sounds.f_mul(&labels.f_gt(0)?.f_unsqueeze(-1)?)?.f_to_kind(Kind::Float)?;
    let sounds =
        sounds.f_repeat_interleave_self_int(2, 1, None)?.f_constant_pad_nd([0, 0, 0, 4])?;
    let noise = Tensor::f_randn(sounds.size(), (Kind::Float, Device::Cpu))?.f_mul_scalar(0.1)?;
    Ok(Spoken { sounds: sounds.f_add(&noise)?, lengths: Tensor::from_slice(&lengths), labels })
}

/// Trains for 24 epochs of six steps. `spoil` may change the sequences before the training.
fn train(
    precision: Precision,
    graph: Graph,
    kernels: Kernels,
    spoil: impl Fn(&mut Spoken),
) -> Result<(Letters, RunRecord)> {
    let (mut model, mut spoken) = {
        let _section = seeded(2);
        (Letters::builder().build()?, sequences()?)
    };
    spoil(&mut spoken);
    let data = DataModule::training("letters", spoken, 8).in_order();
    let config = TrainerConfig { max_epochs: 24, graph, ..TrainerConfig::new(precision, device()) }
        .with(|config| config.numerics.kernels = kernels);
    let record = Trainer::new(config).fit(&mut model, &data)?;
    Ok((model, record))
}

/// The loss of the last epoch is less than half the loss of the first epoch, on every device and in
/// every precision.
#[rstest]
fn a_model_learns_letters_without_alignment(
    #[values(
        Precision::F32True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F64True,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
) -> Result<()> {
    let (_, record) = train(precision, Graph::Auto, Kernels::Own, |_| ())?;
    let loss = |at: usize| record.epochs[at].value("train_loss").expect("a loss");
    assert!(loss(23) < 0.5 * loss(0), "the loss went from {} to {}", loss(0), loss(23));
    assert_eq!(record.end.replayed > 100, device().is_cuda(), "{}", record.end.replayed);
    Ok(())
}

/// Steps that run as CUDA graphs have the same losses and weights as eager steps, bit for bit.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn captured_steps_with_ctc_equal_eager_ones(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    needs_cuda();
    let (one, eager) = train(precision, Graph::Off, Kernels::Own, |_| ())?;
    let (other, graphs) = train(precision, Graph::On, Kernels::Own, |_| ())?;
    assert_eq!((eager.end.replayed, eager.end.skipped), (0, graphs.end.skipped));
    assert!(graphs.end.replayed > 100, "{}", graphs.end.replayed);
    for (eager, graphs) in eager.epochs.iter().zip(&graphs.epochs) {
        assert_eq!(eager.train, graphs.train);
    }
    for (one, other) in nn::parameters(&one).iter().zip(nn::parameters(&other)) {
        assert!(one.tensor.equal(&other.tensor), "`{}`", one.name);
    }
    Ok(())
}

/// An invalid example ends the run with the same error in a captured step as in an eager step.
#[rstest]
fn an_invalid_example_ends_the_run(
    #[values(Graph::Off, Graph::Auto)] graph: Graph,
    #[values("reserved for the blank", "a length is not between 0")] says: &str,
) -> Result<()> {
    // Makes the last of the first epoch's six batches invalid. This batch is read after a step was
    // captured.
    let spoil = |spoken: &mut Spoken| {
        let _ = match says {
            "reserved for the blank" => spoken.labels.narrow(0, 40, 8).narrow(1, 0, 1).fill_(0),
            _ => spoken.lengths.narrow(0, 40, 8).fill_(13),
        };
    };
    let text = message(train(Precision::F32True, graph, Kernels::Own, spoil));
    assert!(text.contains(says), "{text}");
    Ok(())
}

/// With libtorch's CTC loss, steps do not run as CUDA graphs, and one note gives the reason. A run
/// that requires CUDA graphs ends with this reason before any step.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn libtorchs_ctc_is_refused_before_a_step() -> Result<()> {
    needs_cuda();
    let mut model = {
        let _section = seeded(2);
        Whole::builder().build()?
    };
    let input = Tensor::f_randn([6, 9, 4], (Kind::Float, Device::Cpu))?;
    let labels = Tensor::from_slice(&[1_i64, 2, 3, -100, 4, 4, 2, -100, 1, 3, 2, 2]).view([6, 2]);
    let data = DataModule::training("letters", Batch::new(input, labels)?, 3);
    let mut fit = |graph: Graph| {
        let config = TrainerConfig {
            max_epochs: 6,
            graph,
            ..TrainerConfig::new(Precision::F32True, device())
        }
        .with(|config| config.numerics.kernels = Kernels::Libtorch);
        Trainer::new(config).fit(&mut model, &data)
    };
    let record = fit(Graph::Auto)?;
    let expected = "steps do not run as CUDA graphs: libtorch's ctc_loss reads the lengths of outputs and \
                    labels on the host";
    assert_eq!(record.notes, [expected]);
    assert_eq!((record.end.global_step, record.end.replayed), (12, 0));
    assert_eq!(message(fit(Graph::On)), expected);
    Ok(())
}
