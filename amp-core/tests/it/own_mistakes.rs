//! Tests of mistakes in a user's step that libtorch does not report, or reports without saying where
//! they are.

use amp_core::{
    data::{Batch, DataModule},
    event::Event,
    optim::{OptimizerConfig, Sgd},
    prelude::*,
    trainer::ManualStep,
};
use rstest::rstest;

use crate::support::{
    message,
    model::{Model, fit, linear},
    seeded,
};

/// Returns eight examples of three classes, in which the class of the example `at` is `class`.
fn classes(at: i64, class: i64) -> Result<Batch> {
    let target = Tensor::f_from_slice(&[0_i64, 1, 2, 0, 1, 2, 0, 1])?;
    let _ = target.f_select(0, at)?.f_fill_(class)?;
    let input = Tensor::f_arange(32, (Kind::Float, Device::Cpu))?.f_view([8, 4])?;
    Batch::new(input.f_sin()?, target)
}

fn config() -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, Device::Cpu) }
}

fn classifier(loss: fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Model> {
    let _generator = seeded(1);
    let optimizer = |_: &_| OptimizerConfig::new(Sgd { lr: 0.1, ..Sgd::default() });
    Ok(Model { loss, ..Model::regression(linear(4, 3)?, optimizer) })
}

/// libtorch's message is `element 0 of tensors does not require grad and does not have a grad_fn`.
const NO_GRADIENT: &str = "the loss depends on no trained parameter, so that the backward pass gives \
                           no gradient: compute it from the output of `forward`, without `detach`";

#[test]
fn a_detached_loss_is_explained() -> Result<()> {
    let mut model =
        classifier(|output, target| Ok(loss::cross_entropy(output, target)?.f_detach()?))?;
    let data = DataModule::new("classes", classes(0, 0)?, classes(0, 0)?, 2);
    let said = message(fit(&config(), &mut model, &data).1);
    assert!(said.starts_with(NO_GRADIENT), "{said}");
    Ok(())
}

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[manual_step(Self::detached)]
#[optimizer(sgd, lr = 0.1)]
struct ByHand {
    #[layer(linear(4, 3))]
    head: Linear,
}

impl ByHand {
    fn detached(&mut self, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
        let value = step.forward(|step| {
            loss::cross_entropy(&self.forward(&batch.input, step.context())?, &batch.target)
        })?;
        let mut optimizer = step.optimizer(0)?;
        let gradients = optimizer.backward(&value.f_detach()?)?;
        let gradients = optimizer.unscale(gradients)?;
        optimizer.step(gradients).map(drop)
    }
}

#[test]
fn a_detached_loss_of_a_manual_step_is_explained() -> Result<()> {
    let mut model = {
        let _generator = seeded(1);
        ByHand::builder().build()?
    };
    let data = DataModule::training("classes", classes(0, 0)?, 2);
    let said = message(Trainer::new(config()).fit(&mut model, &data));
    assert!(said.starts_with(NO_GRADIENT), "{said}");
    Ok(())
}

/// A class that is out of range in the third batch of a set. Validation before training would report
/// the first two batches, so it is off.
#[rstest]
#[case::training([5, 0, 0], " (batch 2 of epoch 0)")]
#[case::validation([0, 5, 0], " (batch 2 of the validation set)")]
#[case::named([0, 0, 5], " (batch 2 of the validation set `other`)")]
fn a_class_out_of_range_names_its_batch(
    #[case] classes_of_sets: [i64; 3],
    #[case] place: &str,
) -> Result<()> {
    let [train, val, other] = classes_of_sets;
    let mut model = classifier(loss::cross_entropy)?;
    let set = |class| classes(5, if class == 0 { 2 } else { class });
    let data = match other {
        0 => DataModule::new("classes", set(train)?, set(val)?, 2),
        _ => DataModule::training("classes", set(train)?, 2).with_val("other", set(other)?),
    };
    let mut config = config();
    config.loops.num_sanity_val_steps = 0;
    let said = message(fit(&config, &mut model, &data.in_order()).1);
    assert!(said.contains("Target 5 is out of bounds") && said.ends_with(place), "{said}");
    Ok(())
}

#[test]
fn a_class_out_of_range_names_its_batch_in_a_test() -> Result<()> {
    let _generator = seeded(1);
    let mut model = Net::builder().build()?;
    let data = DataModule::training("classes", classes(0, 0)?, 2).with_test(classes(5, 5)?);
    let said = message(Trainer::new(config()).test(&mut model, &data));
    assert!(said.ends_with(" (batch 2 of the test set)"), "{said}");
    Ok(())
}

/// An error of libtorch in a layer has the place, too.
#[test]
fn an_id_out_of_range_names_its_batch() -> Result<()> {
    let ids = |id: i64| -> Result<Batch> {
        let input = Tensor::f_from_slice(&[0_i64, 1, 2, 0, id, 2, 0, 1])?;
        Batch::new(input, Tensor::f_from_slice(&[0_i64, 1, 2, 0, 1, 2, 0, 1])?)
    };
    let _generator = seeded(1);
    let mut model = Words::builder().build()?;
    let data = DataModule::training("ids", ids(9)?, 2).in_order();
    let said = message(Trainer::new(config()).fit(&mut model, &data));
    assert!(said.starts_with("in `table`: libtorch: index out of range"), "{said}");
    assert!(said.ends_with(" (batch 2 of epoch 0)"), "{said}");
    Ok(())
}

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Words {
    #[layer(embedding(3, 3))]
    table: Embedding,
}

#[derive(LightningModule)]
#[forward(|x| {
    let logits = head(x)?;
    Ok(if self.normalizes { logits.f_softmax(-1, logits.kind())? } else { logits })
})]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[hparam(default = false)]
    normalizes: bool,
    #[layer(linear(4, 3))]
    head: Linear,
}

/// The note comes once, from the first batch.
#[rstest]
fn probabilities_in_cross_entropy_are_noted(
    #[values(true, false)] normalizes: bool,
    #[values(Precision::F32True, Precision::Bf16Mixed, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(1);
    let mut model = Net::builder().normalizes(normalizes).build()?;
    let mut notes = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::Note { text } = event {
            notes.push(text.clone());
        }
        Ok(())
    };
    let data = DataModule::new("classes", classes(0, 0)?, classes(0, 0)?, 2);
    let config = TrainerConfig { precision, ..config() };
    Trainer::new(config).subscribe(&mut listen).fit(&mut model, &data)?;
    notes.retain(|text| text.contains("softmax"));
    assert_eq!(notes.len(), usize::from(normalizes), "{notes:?}");
    assert!(notes.iter().all(|text| text.starts_with("cross_entropy takes logits")), "{notes:?}");
    Ok(())
}
