//! Tests of the memory plan, which says which activations are recomputed to stay below a memory
//! budget. A resumed run uses the saved plan. The trial steps that make the plan do not change the
//! state of the model.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use amp_core::{
    Module, Result, Trainer, TrainerConfig,
    callback::{Mode, ModelCheckpoint},
    event::Event,
    nn::{Context, Gelu, Sequential, Visit, Visitor},
    precision::Precision,
    tch::Tensor,
    trainer::MemoryPlan,
};
use tempfile::tempdir;

use crate::{
    budget::{WIDTH, config, examples, mlp, sgd, unlimited},
    support::{
        model::{Counting, Model, linear},
        seeded,
    },
};

/// A layer that counts how often its forward pass runs.
struct Counts(Arc<AtomicUsize>);

impl Visit for Counts {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Counts {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(input.f_gelu("none")?)
    }
}

/// A run that resumes with the same memory budget uses the saved plan and does not measure memory.
/// With another budget, it measures memory again.
#[test]
fn a_resumed_run_uses_the_saved_plan() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let passes = Arc::new(AtomicUsize::new(0));
    let build = || -> Result<Model> {
        let mut layers: Vec<Box<dyn Module>> = vec![Box::new(Counts(passes.clone()))];
        for _ in 0..8 {
            layers.push(Box::new(linear(WIDTH, WIDTH)?));
            layers.push(Box::new(Gelu));
        }
        Ok(Model::regression(Sequential::new(layers), sgd))
    };
    let (peak, beside) = unlimited(&config(Precision::F32True, None), build)?;
    let budget = beside + peak * 7 / 10;
    let part = |budget, max_epochs, resume: bool| -> Result<(Vec<MemoryPlan>, usize)> {
        let _generator = seeded(3);
        let data = examples()?;
        let config = TrainerConfig { max_epochs, ..config(Precision::F32True, Some(budget)) };
        let before = passes.load(Ordering::Relaxed);
        let mut plans = Vec::new();
        let mut listen = |event: &Event| -> Result<()> {
            plans.extend(match event {
                Event::Checkpointed(plan) => Some(plan.clone()),
                _ => None,
            });
            Ok(())
        };
        let mut trainer = Trainer::new(config).subscribe(&mut listen);
        trainer = match resume {
            true => trainer.resume_from(folder.path().join("last.safetensors")),
            false => trainer.callback(
                ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true),
            ),
        };
        trainer.fit(&mut build()?, &data)?;
        drop(trainer);
        Ok((plans, passes.load(Ordering::Relaxed) - before))
    };
    let (first, _) = part(budget, 1, false)?;
    let (second, counted) = part(budget, 2, true)?;
    assert_eq!(first, second);
    // Four training steps and four validation batches run the layer eight times. If the plan
    // recomputes it in the backward pass, it runs once more in each training step, twelve times in
    // all.
    assert!(counted == 8 || counted == 12, "{counted}");
    let (other, counted) = part(budget + 4096, 2, true)?;
    assert_eq!(other[0].budget, budget + 4096);
    assert!(counted > 12, "{counted}");
    Ok(())
}

/// The trial steps that make the memory plan do not change the state of the model, such as its
/// count of steps.
#[test]
fn trial_steps_do_not_change_the_models_own_count() -> Result<()> {
    let _generator = seeded(3);
    let mut model = Counting { inner: mlp()?, seen: 0 };
    let mut plans = 0;
    let mut listen = |event: &Event| -> Result<()> {
        plans += u32::from(matches!(event, Event::Checkpointed(_)));
        Ok(())
    };
    let config = config(Precision::F32True, Some(1 << 40));
    Trainer::new(config).subscribe(&mut listen).fit(&mut model, &examples()?)?;
    assert_eq!((plans, model.seen), (1, 4));
    Ok(())
}
