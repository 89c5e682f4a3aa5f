//! Fine-tuning with frozen parameters.

use amp_core::{
    LightningModule, Result, Trainer, TrainerConfig,
    callback::{Mode, ModelCheckpoint},
    data::DataModule,
    nn::{self, Checkpoint, Linear, Sequential},
    precision::{GradScalerConfig, Precision},
    record::RunRecord,
    tch::{Device, Tensor},
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

/// The same model, where the encoder's rate is 0 instead.
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
        config.optimization.freeze = freeze.iter().map(|pattern| (*pattern).to_owned()).collect(); // The first step overflows, and its cause is looked for.
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

/// What is frozen stays to the bit, weight decay included; the rest is trained as if the frozen part's rate
/// were 0, with and without checkpointing behind it.
#[rstest]
fn frozen_parameters_stay(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
    #[values(false, true)] checkpointing: bool,
) -> Result<()> {
    CHECKPOINTED.set(checkpointing);
    let mut net = built(|| Net::builder().build())?;
    CHECKPOINTED.set(false);
    let before = weights(&net);
    let record = train(&mut net, config(precision, &["encoder.*"]))?;
    assert_eq!(record.end.skipped > 0, precision == Precision::F16Mixed);
    assert_eq!(record.start.parameters, 16 * 16 + 16 + 16 * 10 + 10);
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
    // The next run is free to train them.
    assert!(nn::parameters(&net).iter().all(|parameter| parameter.tensor.requires_grad()));
    Ok(())
}

/// A checkpoint has no optimizer state of what is frozen, and goes on with the same parameters frozen alone.
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
fn what_freezes_nothing_or_all_is_refused(
    #[case] freeze: &[&str],
    #[case] says: &str,
) -> Result<()> {
    let text =
        message(train(&mut built(|| Net::builder().build())?, config(Precision::F32True, freeze)));
    assert!(text.starts_with(says), "{text}");
    Ok(())
}
