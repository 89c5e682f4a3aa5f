//! Tests of fine-tuning, in which some parameters are frozen.

use amp_core::{
    Hook, LightningModule, Result, Trainer, TrainerConfig,
    callback::{Action, Callback, Mode, ModelCheckpoint},
    data::DataModule,
    nn::{self, Checkpoint, Linear, Sequential},
    precision::{GradScalerConfig, Precision, StepOutcome},
    record::RunRecord,
    tch::{Device, Tensor},
    trainer::{Freeze, StepAccess},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{
    device, message,
    model::{digits, same},
    seeded,
};

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 0.01, weight_decay = 0.1)]
struct Net {
    #[layer(sequential(linear(64, 16), relu))]
    encoder: Sequential,
    #[layer(checkpoint(sequential(linear(16, 16), relu), enabled = self::checkpointed()))]
    middle: Checkpoint<Sequential>,
    #[layer(linear(16, 10))]
    head: Linear,
}

thread_local! {
    static CHECKPOINTED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn checkpointed() -> bool {
    CHECKPOINTED.get()
}

/// `Net` with a learning rate of 0 for the encoder.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 0.01, weight_decay = 0.1, params = ["middle.*", "head.*"])]
#[optimizer(sgd, lr = 0.0, params = ["encoder.*"])]
struct Still {
    #[layer(sequential(linear(64, 16), relu))]
    encoder: Sequential,
    #[layer(sequential(linear(16, 16), relu))]
    middle: Sequential,
    #[layer(linear(16, 10))]
    head: Linear,
}

fn config(precision: Precision, freeze: &[&str]) -> TrainerConfig {
    TrainerConfig { max_epochs: 5, ..TrainerConfig::new(precision, device()) }.with(|config| {
        config.optimization.freeze =
            freeze.iter().map(|text| text.parse()).collect::<Result<_>>().expect("an entry");
        // With this scale, the gradients of the first step overflow, and the trainer searches for
        // the cause.
        config.numerics.scaler =
            GradScalerConfig { init_scale: 2f64.powi(26), ..Default::default() };
    })
}

fn data() -> Result<DataModule> {
    same(digits(128)?, 32)
}

fn train(model: &mut dyn LightningModule, config: TrainerConfig) -> Result<RunRecord> {
    Trainer::new(config).fit(model, &data()?)
}

fn weights(model: &dyn LightningModule) -> Vec<(String, Tensor)> {
    let parameters = nn::parameters(model).into_iter();
    parameters.map(|one| (one.name, one.tensor.to_device(Device::Cpu).copy())).collect()
}

fn built<M>(build: impl FnOnce() -> Result<M>) -> Result<M> {
    let _section = seeded(0);
    build()
}

/// Frozen parameters do not change in a single bit, even with weight decay. All other parameters
/// train as if the learning rate of the frozen parameters were 0. This holds with and without
/// activation checkpointing.
#[rstest]
fn frozen_parameters_do_not_change(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
    #[values(false, true)] checkpointing: bool,
) -> Result<()> {
    CHECKPOINTED.set(checkpointing);
    let mut net = built(|| Net::builder().build())?;
    CHECKPOINTED.set(false);
    let before = weights(&net);
    let record = train(&mut net, config(precision, &["encoder.*"]))?;
    assert_eq!(record.end.skipped > 0, precision == Precision::F16Mixed);
    assert_eq!(record.start.run.parameters, 16 * 16 + 16 + 16 * 10 + 10);
    let mut still = built(|| Still::builder().build())?;
    train(&mut still, config(precision, &[]))?;
    let after = weights(&net);
    for (((name, before), (_, after)), (_, expected)) in
        before.iter().zip(&after).zip(weights(&still))
    {
        assert_eq!(name.starts_with("encoder."), before.equal(after), "{name}");
        let near = after.allclose(&expected, 1e-5, 1e-6, false);
        assert!(near, "{name}");
    }
    // After the run, all parameters require gradients again, so that another run can train them.
    assert!(nn::parameters(&net).iter().all(|parameter| parameter.tensor.requires_grad()));
    Ok(())
}

/// `Net`, whose optimizer takes all parameters but those of the encoder.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 0.01, weight_decay = 0.1, params = ["middle.*", "head.*"])]
struct Partly {
    #[layer(sequential(linear(64, 16), relu))]
    encoder: Sequential,
    #[layer(sequential(linear(16, 16), relu))]
    middle: Sequential,
    #[layer(linear(16, 10))]
    head: Linear,
}

/// A parameter that is frozen for the whole run may belong to no optimizer, as in PyTorch.
#[test]
fn a_frozen_parameter_needs_no_optimizer() -> Result<()> {
    let config = || config(Precision::Bf16Mixed, &["encoder.*"]);
    let mut partly = built(|| Partly::builder().build())?;
    let summary = Trainer::new(config()).summary(&mut partly, &data()?)?;
    assert_eq!(summary.frozen, 64 * 16 + 16);
    train(&mut partly, config())?;
    let mut net = built(|| Net::builder().build())?;
    train(&mut net, config())?;
    for ((name, own), (_, expected)) in weights(&partly).iter().zip(weights(&net)) {
        assert!(own.equal(&expected), "{name}");
    }
    Ok(())
}

/// The summary shows the memory of the last step of the run, which needs the most: by then, all
/// freezes that end within the run have ended.
#[test]
fn a_summary_shows_the_memory_after_the_last_freeze() -> Result<()> {
    let of = |freeze: &[&str]| -> Result<_> {
        let mut net = built(|| Net::builder().build())?;
        Trainer::new(config(Precision::F32True, freeze)).summary(&mut net, &data()?)
    };
    let (free, ends, frozen) = (of(&[])?, of(&["encoder.*=epoch:2"])?, of(&["encoder.*"])?);
    assert_eq!((ends.frozen, ends.trainable), (frozen.frozen, frozen.trainable));
    assert_eq!(ends.memory, free.memory);
    // The summary shows how many parameters are trained at first, and how many in the whole run.
    let later = [free.trained_later, ends.trained_later, frozen.trained_later];
    assert_eq!((later, ends.trainable + ends.trained_later), ([0, 1040, 0], free.trainable));
    let says = "trainable parameters  442 at first, 1,482 in all";
    assert!(ends.to_string().contains(says), "{ends}");
    assert!(frozen.memory.gradients < free.memory.gradients);
    assert!(frozen.memory.optimizer_state < free.memory.optimizer_state);
    // This run has only one step, so the freeze does not end within it.
    let config = config(Precision::F32True, &["encoder.*=epoch:2"]);
    let mut net = built(|| Net::builder().build())?;
    let short = Trainer::new(TrainerConfig { max_steps: Some(1), ..config });
    let short = short.summary(&mut net, &data()?)?;
    assert_eq!((short.memory, short.trained_later), (frozen.memory, 0));
    Ok(())
}

#[rstest]
#[case(&[], "`encoder.0.weight` would be trained by no optimizer: add a pattern that matches it, ")]
#[case(&["encoder.*=epoch:2"], "`encoder.0.weight` would be trained by no optimizer after \
    `encoder.*=epoch:2` has ended: ")]
#[case(&["encoder.0.weight", "encoder.*=step:3"], "`encoder.0.bias` would be trained by no optimizer \
    after `encoder.*=step:3` has ended: ")]
fn a_parameter_that_is_trained_needs_an_optimizer(
    #[case] freeze: &[&str],
    #[case] says: &str,
) -> Result<()> {
    let mut partly = built(|| Partly::builder().build())?;
    let text = message(train(&mut partly, config(Precision::F32True, freeze)));
    assert!(text.starts_with(says), "{text}");
    Ok(())
}

/// A checkpoint contains no optimizer state for frozen parameters. A resumed run must freeze the
/// same parameters, and ends like a run without interruption.
#[test]
fn frozen_runs_are_saved_and_resumed() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let run = |freeze: &[&str], epochs: i64, resume: bool| -> Result<Net> {
        let mut net = built(|| Net::builder().build())?;
        let saves = ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true);
        let config = TrainerConfig { max_epochs: epochs, ..config(Precision::Bf16Mixed, freeze) };
        let mut trainer = Trainer::new(config);
        if resume {
            trainer = trainer.resume_from(folder.path().join("last.safetensors"));
        } else {
            trainer = trainer.callback(saves);
        }
        trainer.fit(&mut net, &data()?)?;
        Ok(net)
    };
    let straight = weights(&run(&["encoder.*"], 3, false)?);
    run(&["encoder.*"], 1, false)?;
    let saved = Tensor::read_safetensors(folder.path().join("last.safetensors"))?;
    let of = |part: &str| {
        saved.iter().filter(|(name, _)| name.contains('/') && name.contains(part)).count()
    };
    assert_eq!((of("encoder."), of("head.weight") > 0), (0, true));
    for ((name, straight), (_, resumed)) in
        straight.iter().zip(weights(&run(&["encoder.*"], 3, true)?))
    {
        assert!(straight.equal(&resumed), "{name}");
    }
    let text = message(run(&[], 3, true));
    assert!(text.contains("whose freeze is [\"encoder.*\"], but here it is []"), "{text}");
    Ok(())
}

#[rstest]
#[case(&["encodr.*"], "freeze: no parameter matches `encodr.*`")]
#[case(&["*"], "freeze: * leaves no parameter to train")]
fn freezing_nothing_or_everything_is_refused(
    #[case] freeze: &[&str],
    #[case] says: &str,
) -> Result<()> {
    let text =
        message(train(&mut built(|| Net::builder().build())?, config(Precision::F32True, freeze)));
    assert!(text.starts_with(says), "{text}");
    Ok(())
}

/// A callback that records which parameters changed in each step.
struct Moves(Vec<Vec<String>>, Option<Vec<(String, Tensor)>>);

impl Callback for Moves {
    fn name(&self) -> String {
        "Moves".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::PerStep
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        let parameters = hook.optimizers().iter().flat_map(|one| one.optimizer.parameters().iter());
        let now: Vec<_> = parameters.map(|one| (one.name.clone(), one.tensor.copy())).collect();
        let moved = |before: Vec<(String, Tensor)>| {
            let pairs = before.into_iter().zip(&now);
            let moved = pairs.filter(|((_, before), (_, now))| !before.equal(now));
            moved.map(|((name, _), _)| name).collect()
        };
        self.0.extend(self.1.take().map(moved));
        self.1 = Some(now);
        Ok(Vec::new())
    }
}

/// Trains with the option `freeze`, four steps per epoch. Returns the parameters that changed in
/// each step except the first.
fn moves(precision: Precision, freeze: &[&str], epochs: i64) -> Result<Vec<Vec<String>>> {
    let mut moves = Moves(Vec::new(), None);
    let config = TrainerConfig { max_epochs: epochs, ..config(precision, freeze) };
    let mut net = built(|| Net::builder().build())?;
    Trainer::new(config).callback(&mut moves).fit(&mut net, &data()?)?;
    Ok(moves.0)
}

/// Parameters are unfrozen at the given epoch or step. The expected steps were counted by hand: an
/// epoch has four steps, so epoch 2 begins with the ninth step.
#[rstest]
#[case::epoch("encoder.*=epoch:2", 8)]
#[case::step("encoder.*=step:6", 6)]
#[case::within_an_epoch("encoder.*=step:9", 9)]
fn parameters_are_unfrozen_at_their_epoch(
    #[values(Precision::F32True, Precision::Bf16True)] precision: Precision,
    #[case] freeze: &str,
    #[case] first: usize,
) -> Result<()> {
    let moves = moves(precision, &[freeze], 3)?;
    assert_eq!(moves.len(), 11);
    for (step, moved) in (1..).zip(moves) {
        let encoder = moved.iter().filter(|name| name.starts_with("encoder.")).count();
        assert_eq!(encoder > 0, step >= first, "step {step}: {moved:?}");
        assert!(moved.iter().any(|name| name.starts_with("head.")), "step {step}");
    }
    Ok(())
}

/// If several entries freeze a parameter, it stays frozen until the last of these entries ends.
#[test]
fn a_parameter_is_frozen_while_any_entry_freezes_it() -> Result<()> {
    let moves = moves(Precision::F32True, &["*=step:2", "encoder.*=step:4", "head.*"], 2);
    assert!(message(moves).starts_with("freeze: *=step:2, encoder.*=step:4, head.* leaves no"));
    let moves = self::moves(Precision::F32True, &["encoder.*=step:4", "*.weight=step:2"], 2)?;
    let weight = |moved: &[String]| moved.iter().any(|name| name == "encoder.0.weight");
    let head = |moved: &[String]| moved.iter().any(|name| name == "head.weight");
    let seen: Vec<_> = moves.iter().map(|moved| (weight(moved), head(moved))).collect();
    let (frozen, half, free) = ((false, false), (false, true), (true, true));
    assert_eq!(seen, [frozen, half, half, free, free, free, free]);
    Ok(())
}

/// When a parameter is unfrozen, its optimizer state is new. In AdamW's first step, each element
/// changes by exactly the learning rate (after weight decay), whatever its gradient is. In later
/// steps, the change depends on the gradients of earlier steps.
#[test]
fn unfrozen_parameters_begin_with_a_new_state() -> Result<()> {
    let (rate, decay) = (0.01, 0.1);
    let mut net = built(|| Net::builder().build())?;
    let before = weights(&net);
    let config = TrainerConfig { max_steps: Some(5), ..config(Precision::F32True, &[]) };
    let config = config.with(|config| {
        config.optimization.freeze = vec![Freeze::new("encoder.*").until_step(4)];
    });
    Trainer::new(config).fit(&mut net, &data()?)?;
    for ((name, before), (_, after)) in before.iter().zip(weights(&net)) {
        if name.starts_with("encoder.") {
            let moved = (after - before * (1.0 - rate * decay)).abs();
            // Elements without a gradient change only by weight decay, and are left out here.
            let moved = moved.masked_select(&moved.gt(1e-4));
            let (median, largest) =
                (moved.median().double_value(&[]), moved.max().double_value(&[]));
            assert!((median - rate).abs() < 1e-5 && largest < rate + 1e-5, "{median} {largest}");
        }
    }
    Ok(())
}

/// A run that was saved before or after parameters were unfrozen can be resumed bit for bit.
#[rstest]
fn runs_resume_before_and_after_an_unfreezing(
    #[values("encoder.*=epoch:2", "encoder.*=step:6")] freeze: &str,
    #[values(1, 2, 3)] epochs: i64,
) -> Result<()> {
    let folder = tempdir().expect("a folder");
    let run = |epochs: i64, resume: bool| -> Result<Net> {
        let mut net = built(|| Net::builder().build())?;
        let saves = ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true);
        let config =
            TrainerConfig { max_epochs: epochs, ..config(Precision::Bf16Mixed, &[freeze]) };
        let mut trainer = Trainer::new(config);
        if resume {
            trainer = trainer.resume_from(folder.path().join("last.safetensors"));
        } else {
            trainer = trainer.callback(saves);
        }
        trainer.fit(&mut net, &data()?)?;
        Ok(net)
    };
    let straight = weights(&run(4, false)?);
    run(epochs, false)?;
    let saved = Tensor::read_safetensors(folder.path().join("last.safetensors"))?;
    let state = saved.iter().filter(|(name, _)| name.contains('/') && name.contains("encoder."));
    assert_eq!(state.count() > 0, epochs >= 2 && freeze.contains("step") || epochs >= 3);
    for ((name, straight), (_, resumed)) in straight.iter().zip(weights(&run(4, true)?)) {
        assert!(straight.equal(&resumed), "{name}");
    }
    Ok(())
}

#[rstest]
#[case("encoder.*=epoch:0")]
#[case("encoder.*=step:-1")]
#[case("encoder.*=later")]
fn invalid_times_are_refused(#[case] text: &str) {
    let text = message(text.parse::<Freeze>());
    assert!(text.contains("is not a time for unfreezing: write encoder.*=epoch:3"), "{text}");
}
