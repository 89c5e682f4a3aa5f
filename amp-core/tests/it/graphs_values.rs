//! Tests that a hook can change a number that the loss reads, such as a weight of the loss, and
//! that the next step uses the new number. This must hold even if the number is not in a tensor and
//! steps run as CUDA graphs (`AMP_DEVICE=cuda`).

use amp_core::{
    event::Event,
    prelude::*,
    state::State,
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::support::{
    device,
    model::{digits, same},
    needs_cuda, seeded,
};

/// A model whose loss is multiplied by a weight that rises in the first steps and is constant after
/// them.
#[derive(LightningModule)]
#[loss(with = |output, target| Ok(loss::cross_entropy(output, target)?.f_mul_scalar(self.beta)?))]
#[log(train_loss(on_epoch))]
#[optimizer(sgd, lr = 0.1)]
#[on_train_batch_end(Self::raise)]
struct WarmedUp {
    #[hparam(default = 12)]
    steps: u64,
    #[state(0.1)]
    beta: f64,
    #[state]
    seen: u64,
    #[layer(linear(64, 10))]
    model: Linear,
}

impl WarmedUp {
    fn raise(&mut self, _: &Tensor, _: Option<&StepOutcome>, hook: &mut Hook<'_>) -> Result<()> {
        self.seen += 1;
        self.beta = (0.1 + hook.global_step as f64 / self.steps as f64).min(1.0);
        Ok(())
    }
}

/// A model like `WarmedUp`, whose loss is computed by a method. The hook is marked `late`, which
/// lets the trainer call a hook some steps later. As each step reads `beta`, which the hook
/// changes, the trainer must nevertheless call it after each step.
#[derive(LightningModule)]
#[loss(with = |output, target| self.weighted(output, target))]
#[log(train_loss(on_epoch))]
#[optimizer(sgd, lr = 0.1)]
#[on_train_batch_end(Self::raise, late)]
struct Late {
    #[state(0.1)]
    beta: f64,
    #[layer(linear(64, 10))]
    model: Linear,
}

impl Late {
    fn raise(&mut self, _: &Tensor, _: Option<&StepOutcome>, hook: &mut Hook<'_>) -> Result<()> {
        self.beta = (0.1 + hook.global_step as f64 / 12.0).min(1.0);
        Ok(())
    }

    fn weighted(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        Ok(loss::cross_entropy(output, target)?.f_mul_scalar(self.beta)?)
    }
}

/// A model whose loss reads a `#[transient]` field. The trainer cannot compare the value of such a
/// field.
#[derive(LightningModule)]
#[loss(with = |output, target| Ok(loss::cross_entropy(output, target)?.f_mul_scalar(self.factor)?))]
#[optimizer(sgd, lr = 0.1)]
struct Transient {
    #[transient(1.0)]
    factor: f64,
    #[layer(linear(64, 10))]
    model: Linear,
}

/// A model whose own training step is marked `captured` and reads a `#[transient]` field.
#[derive(LightningModule)]
#[training_step(Self::step, captured)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct TransientInStep {
    #[transient(1.0)]
    factor: f64,
    #[layer(linear(64, 10))]
    model: Linear,
}

impl TransientInStep {
    fn step(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
        let output = self.forward(&batch.input, step.context())?;
        Ok(loss::cross_entropy(&output, &batch.target)?.f_mul_scalar(self.factor)?)
    }
}

/// A model whose forward pass passes `self` to a function that reads a `#[transient]` field.
#[derive(LightningModule)]
#[forward(|x| self.scaled(&model(x)?))]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct TransientInMethod {
    #[transient(1.0)]
    factor: f64,
    #[layer(linear(64, 10))]
    model: Linear,
}

impl TransientInMethod {
    fn scaled(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_mul_scalar(self.factor)?)
    }
}

fn read(model: &dyn LightningModule) -> Result<Vec<String>> {
    let mut values = State::default();
    model.values_in_step(&mut values)?;
    Ok(values.values().keys().cloned().collect())
}

#[test]
fn only_fields_that_the_step_reads_are_compared() -> Result<()> {
    assert_eq!(read(&WarmedUp::builder().build()?)?, ["beta"]);
    assert_eq!(read(&Late::builder().build()?)?, ["beta"]);
    Ok(())
}

#[test]
fn a_late_hook_of_a_step_that_reads_state_is_called_after_each_step() -> Result<()> {
    assert_eq!(Late::builder().build()?.step_access(), StepAccess::PerStep);
    Ok(())
}

#[test]
fn a_step_that_reads_a_transient_field_is_not_a_graph() -> Result<()> {
    let accesses = [
        Transient::builder().build()?.step_access(),
        TransientInStep::builder().build()?.step_access(),
        TransientInMethod::builder().build()?.step_access(),
    ];
    for access in accesses {
        let refused = matches!(access, StepAccess::InStep(why) if why.contains("#[transient]"));
        assert!(refused, "{access:?}");
    }
    Ok(())
}

#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_changed_value_reaches_the_next_step(#[values(false, true)] late: bool) -> Result<()> {
    needs_cuda();
    let run = |graph| {
        let _generator = seeded(7);
        let mut model: Box<dyn LightningModule> = match late {
            true => Box::new(Late::builder().build()?),
            false => Box::new(WarmedUp::builder().build()?),
        };
        let config = TrainerConfig {
            max_epochs: 4,
            graph,
            ..TrainerConfig::new(Precision::F32True, device())
        };
        let mut notes = Vec::new();
        let mut listen = |event: &Event| -> Result<()> {
            if let Event::Note { text } = event {
                notes.push(text.clone());
            }
            Ok(())
        };
        let data = same(digits(320)?, 32)?;
        let record = Trainer::new(config).subscribe(&mut listen).fit(model.as_mut(), &data)?;
        let losses = record.epochs.iter().map(|epoch| epoch.value("train_loss"));
        Ok::<_, amp_core::Error>((losses.collect::<Vec<_>>(), notes, record.end))
    };
    let ((eager, ..), (graphed, notes, end)) = (run(Graph::Off)?, run(Graph::On)?);
    assert_eq!(eager, graphed);
    // From step 12 on, the weight of the loss stays the same, so the steps run as CUDA graphs.
    assert!(end.replayed > 15, "{end:?} {notes:?}");
    Ok(())
}
