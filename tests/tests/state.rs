//! Tests that the checkpoints of a derived model contain its state, but not its transient fields.

use amp_core::{
    callback::{Action, Callback},
    prelude::*,
};
use tempfile::tempdir;

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
#[on_train_batch_end(Self::count)]
struct Counting {
    #[layer(linear(4, 4))]
    model: Linear,
    #[state]
    seen: u64,
    #[state(vec![0.5])]
    losses: Vec<f64>,
    #[transient]
    since_start: u64,
}

impl Counting {
    fn count(&mut self, loss: &Tensor, _: Option<&StepOutcome>, _: &mut Hook<'_>) -> Result<()> {
        self.seen += 1;
        self.since_start += 1;
        self.losses.push(loss.f_double_value(&[])?);
        Ok(())
    }
}

/// A callback that saves after the third batch.
struct Third(std::path::PathBuf);

impl Callback for Third {
    fn name(&self) -> String {
        "Third".into()
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        Ok(match hook.global_step {
            3 => vec![Action::Save { path: self.0.clone(), weights_only: false }],
            _ => Vec::new(),
        })
    }
}

#[test]
fn state_is_resumed_and_transient_fields_are_not() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("third.safetensors");
    let options = (Kind::Float, Device::Cpu);
    let ones = || Batch::new(Tensor::ones([10, 4], options), Tensor::ones([10, 4], options));
    let data = DataModule::new("ones", ones()?, ones()?, 2);
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, options.1) };
    let mut straight = Counting::builder().build()?;
    let _ = Trainer::new(config.clone()).callback(Third(path.clone())).fit(&mut straight, &data)?;
    let mut resumed = Counting::builder().build()?;
    let _ = Trainer::new(config).resume_from(&path).fit(&mut resumed, &data)?;
    assert_eq!((straight.seen, straight.since_start), (5, 5));
    assert_eq!((resumed.seen, resumed.since_start), (5, 2));
    assert_eq!(resumed.losses, straight.losses);
    Ok(())
}
