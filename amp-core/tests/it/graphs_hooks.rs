//! Tests the hook that a derived model calls after each batch, if steps run as CUDA graphs
//! (`AMP_DEVICE=cuda`).

use amp_core::{
    event::Event,
    prelude::*,
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::support::{
    device,
    model::{digits, same},
    needs_cuda, seeded,
};

macro_rules! noting {
    ($name:ident, $hook:meta) => {
        /// A model whose hook records the steps and their losses, and logs the losses.
        #[derive(LightningModule)]
        #[loss(cross_entropy)]
        #[optimizer(adamw, lr = 1e-3)]
        #[$hook]
        struct $name {
            #[layer(sequential(linear(64, 32), relu, dropout(0.2), linear(32, 10)))]
            model: Sequential,
            #[transient]
            seen: Vec<String>,
        }

        impl $name {
            fn note(
                &mut self,
                loss: &Tensor,
                outcome: Option<&StepOutcome>,
                hook: &mut Hook<'_>,
            ) -> Result<()> {
                hook.log("hooked", loss, LogOptions::ON_BOTH)?;
                let (step, scale) = (hook.global_step, hook.scale);
                let loss = loss.f_double_value(&[])?;
                self.seen.push(format!("{step} {scale:?} {outcome:?} {loss}"));
                Ok(())
            }
        }
    };
}

noting!(Late, on_train_batch_end(Self::note, late));
noting!(Each, on_train_batch_end(Self::note));

#[test]
fn only_a_hook_marked_late_is_deferred() -> Result<()> {
    assert_eq!(Late::builder().build()?.step_access(), StepAccess::Deferred);
    assert_eq!(Each::builder().build()?.step_access(), StepAccess::PerStep);
    Ok(())
}

#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_late_hook_gets_each_steps_own_loss(#[values(1, 3)] window: i64) -> Result<()> {
    sees_the_same(|| Late::builder().build(), |model| std::mem::take(&mut model.seen), window)
}

#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_hook_gets_each_steps_own_loss(#[values(1, 3)] window: i64) -> Result<()> {
    sees_the_same(|| Each::builder().build(), |model| std::mem::take(&mut model.seen), window)
}

/// Asserts that the hook gets the same values with CUDA graphs as without, although several CUDA
/// graphs may start before the hook is called. The logged values must also be the same. Some steps
/// overflow.
fn sees_the_same<M: LightningModule>(
    new: impl Fn() -> Result<M>,
    seen: impl Fn(&mut M) -> Vec<String>,
    window: i64,
) -> Result<()> {
    needs_cuda();
    let run = |graph| {
        let _generator = seeded(7);
        let mut model = new()?;
        let mut config = TrainerConfig {
            max_epochs: 8,
            graph,
            ..TrainerConfig::new(Precision::F16Mixed, device())
        }
        .with(|config| {
            config.optimization.accumulate_grad_batches = window;
            config.logging.log_every_n_steps = 7;
        });
        config.numerics.scaler.init_scale = 2.0_f64.powi(26);
        config.numerics.scaler.growth_interval = 10;
        let mut logged = Vec::new();
        let mut listen = |event: &Event| -> Result<()> {
            match event {
                Event::Logged { .. } => logged.push(format!("{event:?}")),
                Event::EpochEnd(end) => logged.push(format!("{:?}", end.train)),
                _ => {}
            }
            Ok(())
        };
        // An epoch has ten batches of 32 examples and a smaller last batch, whose step runs without
        // a CUDA graph.
        let data = same(digits(330)?, 32)?;
        let record = Trainer::new(config).subscribe(&mut listen).fit(&mut model, &data)?;
        Ok::<_, amp_core::Error>((seen(&mut model), logged, record.end))
    };
    let (eager, eager_log, _) = run(Graph::Off)?;
    let (graphed, graphed_log, end) = run(Graph::On)?;
    assert_eq!(eager, graphed);
    assert_eq!(eager_log, graphed_log);
    assert!(end.replayed > 10 && end.skipped > 0, "{end:?}");
    Ok(())
}
