//! Tests of silent training errors that users have reported in public, and that TrainCheck (OSDI
//! 2025) has reproduced. There is one test for each report whose error can occur in this project.
//! The other reports are not tested, for one of three reasons:
//!
//! - They need several GPUs: deepspeed-1801, deepspeed-5794, pytorch-84803, pytorch-96600,
//!   baichuan2-86 and a run with diverging replicas.
//! - They concern code that this project does not have: pytorch-51800's spectral norm, generation
//!   in transformers-23723, an image processor in transformers-34204, and the repeated initial
//!   values of transformers-17877.
//! - They describe a deliberate choice: in pytorch-forum-84911, all parameters except those of the
//!   batch norms are frozen.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Hook, Result, Trainer,
    callback::Callback,
    nn::{self, named_tensors},
    optim::{AdamW, OptimizerConfig},
    precision::{AutocastGuard, Precision},
    tch::{Kind, Tensor},
    trainer::{Check, Invariant},
};
use rstest::rstest;

use super::{Odd, Planted, broken, config, fit, planted::Does};
use crate::support::{
    bits::wide,
    message,
    model::{Model, constant, demo, same},
    seeded,
};

fn says(odd: Odd, does: Does, invariant: Invariant) -> Result<String> {
    let mut model = Planted::new(odd, does)?;
    let _section = seeded(1);
    Ok(broken(fit(config(Check::Cheap), &mut model), invariant))
}

/// stackoverflow-60335387: `zero_grad` is never called, so the gradients of all steps add up, and
/// the loss rises, although the learning rate is suitable.
#[test]
fn stackoverflow_60335387_gradients_of_all_steps_add_up() -> Result<()> {
    let text = says(Odd::KeepsGradients, Does::Nothing, Invariant::GradientsAreCleared)?;
    assert!(
        text.starts_with("step 2: `model.0.weight` still has the last step's gradient"),
        "{text}"
    );
    Ok(())
}

/// pytorch-104336: after the optimizer was built, the model is moved to another device and back.
/// The optimizer still refers to the old parameters.
#[test]
fn pytorch_104336_parameters_are_replaced_after_the_optimizer_was_built() -> Result<()> {
    let text = says(Odd::Nothing, Does::ReplacesTensors, Invariant::OptimizerHoldsWeights)?;
    assert!(text.contains("the tensor that the optimizer holds as `model.0.weight`"), "{text}");
    Ok(())
}

/// pytorch-115607: if a parameter has no gradient when an optimizer is compiled, the compiled
/// optimizer never updates this parameter.
#[test]
fn pytorch_115607_what_had_no_gradient_in_the_first_step_is_never_stepped() -> Result<()> {
    let text = says(Odd::StepsTheFirst, Does::SkipsALayer, Invariant::WeightsMove)?;
    assert!(text.starts_with("step 10: `model.12.weight` has not changed in 10 applied"), "{text}");
    Ok(())
}

/// transformers-33844: an attention layer applies dropout in evaluation mode, because it does not
/// check the mode.
#[test]
fn transformers_33844_dropout_is_active_in_evaluation() -> Result<()> {
    let text = says(Odd::Nothing, Does::DropsInValidation, Invariant::EvaluationMode)?;
    assert!(text.contains("`dropout` runs in training mode"), "{text}");
    Ok(())
}

/// lightning-thunder-725: after a change in autocast, some matrix products no longer ran in 16
/// bits. In this project, the run records the dtypes of the first step, and ends with an error if
/// they are not those of the precision.
#[test]
fn lightning_thunder_725_autocast_leaves_products_out() -> Result<()> {
    let _section = seeded(0);
    let mut model = Model::regression(demo(0.0)?, |_| OptimizerConfig::new(AdamW::default()));
    model.loss = |output, target| {
        let _off = AutocastGuard::off(output.device())?;
        let logits = output.f_to_kind(Kind::Float)?;
        let mixed = logits.f_matmul(&Tensor::eye(10, (Kind::Float, output.device())))?;
        amp_core::loss::cross_entropy(&mixed, target)
    };
    let said = message(fit(config(Check::Cheap), &mut model));
    assert!(said.contains("the run does not compute in 16-mixed"), "{said}");
    Ok(())
}

/// mmpretrain-702: stages that are configured as frozen are trained, because the method that
/// freezes them is never called. In this project, the trainer itself freezes the layers that the
/// option `freeze` names, and their parameters do not change.
#[test]
fn mmpretrain_702_frozen_stages_do_not_train() -> Result<()> {
    let mut model = Planted::new(Odd::Nothing, Does::Nothing)?;
    let weights = |model: &Planted| -> Vec<Tensor> {
        named_tensors(model).into_iter().map(|(_, tensor, _)| wide(&tensor)).collect()
    };
    let before = weights(&model);
    let config = config(Check::Full).with(|config| {
        config.precision = Precision::F32True;
        config.optimization.freeze = vec!["model.0.*".parse().expect("an entry")];
    });
    let _section = seeded(1);
    fit(config, &mut model)?;
    let names = named_tensors(&model);
    for ((name, _, _), (before, after)) in names.iter().zip(before.iter().zip(weights(&model))) {
        assert_eq!(before.equal(&after), name.starts_with("model.0."), "{name}");
    }
    Ok(())
}

/// stackoverflow-67180955: all workers of a data loader use the same random numbers and therefore
/// produce the same augmentations. In this project, the random numbers depend only on the example,
/// and not on the worker. `draws.rs` tests the values of the random numbers.
#[test]
fn stackoverflow_67180955_no_two_examples_draw_the_same() {
    let draws = amp_core::random::Draws::new(3, 1);
    let mut seeds: Vec<u64> = (0..1000).map(|index| draws.seed(index)).collect();
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 1000);
}

/// Errors that TrainCheck's invariants cover, but for which there is no numbered report: a
/// scheduler that never steps or that steps twice, and a parameter group whose learning rate is
/// ignored.
#[rstest]
#[case::never(Odd::SchedulesNever)]
#[case::twice(Odd::SchedulesTwice)]
#[case::ignored(Odd::IgnoresRates)]
fn schedulers_that_have_no_effect_are_reported(#[case] odd: Odd) -> Result<()> {
    says(odd, Does::Nothing, Invariant::RatesAreScheduled).map(drop)
}

/// A model whose encoder and decoder are the same layer, until `Unties` gives the decoder another
/// layer.
struct Tied {
    layer: nn::Linear,
    apart: Rc<RefCell<Option<nn::Linear>>>,
}

impl nn::Visit for Tied {
    fn visit(&self, visitor: &mut dyn nn::Visitor) {
        nn::visit_child(visitor, "encoder", None, &self.layer);
        let apart = self.apart.borrow();
        nn::visit_child(visitor, "decoder", None, apart.as_ref().unwrap_or(&self.layer));
    }
}

impl nn::Module for Tied {
    fn forward(&self, input: &Tensor, cx: &nn::Context) -> Result<Tensor> {
        let hidden = cx.call("encoder", None, &self.layer, input)?;
        let apart = self.apart.borrow();
        cx.call("decoder", None, apart.as_ref().unwrap_or(&self.layer), &hidden)
    }
}

/// A callback that gives the decoder a layer of its own when the run begins, so that it no longer
/// shares its weights with the encoder. Code that loads weights may separate tied weights in the
/// same way, if it creates a new tensor for each name in the file.
struct Unties(Rc<RefCell<Option<nn::Linear>>>);

impl Callback for Unties {
    fn name(&self) -> String {
        "Unties".to_owned()
    }

    fn on_train_start(&mut self, _: &mut Hook<'_>) -> Result<()> {
        self.0.replace(Some(nn::Linear::new(nn::LinearConfig::new(4, 4))?));
        Ok(())
    }
}

/// If tied weights are separated after the optimizer was built, no optimizer contains the new
/// weight. The run ends with an error that names this weight.
#[rstest]
fn tied_weights_that_were_untied_are_reported(#[values(false, true)] unties: bool) -> Result<()> {
    let _section = seeded(0);
    let apart = Rc::new(RefCell::new(None));
    let layer = nn::Linear::new(nn::LinearConfig::new(4, 4))?;
    let tied = Tied { layer, apart: Rc::clone(&apart) };
    let mut model = Model::regression(tied, |_| OptimizerConfig::new(AdamW::default()));
    let mut trainer = Trainer::new(config(Check::Cheap));
    if unties {
        trainer = trainer.callback(Unties(apart));
    }
    let outcome = trainer.fit(&mut model, &same(constant(32, 4, 1.0)?, 4)?);
    if unties {
        let text = broken(outcome, Invariant::OptimizerHoldsWeights);
        assert!(
            text.starts_with("before step 1: no optimizer holds `model.decoder.weight`"),
            "{text}"
        );
    } else {
        outcome?;
    }
    Ok(())
}
