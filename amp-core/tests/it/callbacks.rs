//! Tests of callbacks and hooks: when they run, which values they can read, and which values they
//! log.

use std::cell::RefCell;

use amp_core::{
    Hook, Hyperparameters, LightningModule, Module, Result, Step, Trainer, TrainerConfig,
    callback::{Callback, EarlyStopping, Mode, ModelCheckpoint},
    data::{AnyBatch, Batch, BatchType, Sets},
    event::Event,
    log::LogOptions,
    loss::mse_loss,
    nn::{Context, Linear, Visit, Visitor},
    optim::{Interval, OptimizerConfig, Optimizers, ReduceLrOnPlateau, Sgd, TrainingPlan},
    precision::{Clip, Gradients, Precision, StepOutcome, Unscaled},
    record::RunRecord,
    tch::{Device, Tensor},
    trainer::ValCheckInterval,
};
use tempfile::tempdir;

use crate::support::{
    message,
    model::{constant, linear, same},
    seeded,
};

/// A model that logs `scores[epoch]` as `val_score`. It also records which of its hooks were
/// called.
struct Scripted {
    linear: Linear,
    scores: Vec<f64>,
    calls: RefCell<Vec<String>>,
    /// The name of the logged value that the plateau schedule monitors. `None` if the model has no
    /// such schedule.
    plateau: Option<&'static str>,
}

impl Scripted {
    fn new(scores: &[f64]) -> Result<Self> {
        Ok(Self {
            linear: linear(3, 3)?,
            scores: scores.to_vec(),
            calls: RefCell::default(),
            plateau: None,
        })
    }

    fn call(&self, text: impl Into<String>) -> Result<()> {
        self.calls.borrow_mut().push(text.into());
        Ok(())
    }
}

impl Visit for Scripted {
    fn visit(&self, visitor: &mut dyn Visitor) {
        amp_core::nn::visit_child(visitor, "linear", None, &self.linear);
    }
}

impl Module for Scripted {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        cx.call("linear", None, &self.linear, input)
    }
}

impl LightningModule for Scripted {
    fn name(&self) -> &'static str {
        "Scripted"
    }

    fn hyperparameters(&self) -> Hyperparameters {
        Hyperparameters::new()
    }

    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        self.call("step")?;
        let batch = Batch::from_any(batch)?;
        mse_loss(&self.forward(&batch.input, step.context())?, &batch.target)
    }

    fn validation_step(&mut self, _: &AnyBatch, _: &mut Step<'_>) -> Result<()> {
        Ok(())
    }

    fn configure_optimizers(&self, _: &TrainingPlan) -> Result<Optimizers> {
        let sgd = OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() });
        let Some(monitor) = self.plateau else { return Ok(sgd.into()) };
        let plateau = ReduceLrOnPlateau { monitor: monitor.to_owned(), ..Default::default() };
        Ok(sgd.with_scheduler(plateau, Interval::Epoch).into())
    }

    fn on_train_start(&mut self) -> Result<()> {
        self.call("train start")
    }

    fn on_train_epoch_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        self.call(format!("epoch {} start", hook.epoch))
    }

    fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        let norm = gradients.norm()?.double_value(&[]);
        self.call(format!("norm {} {norm:.3}", hook.global_step))
    }

    fn on_train_batch_end(
        &mut self,
        loss: &Tensor,
        outcome: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<()> {
        assert!(!loss.requires_grad(), "the loss that a hook gets has no autograd graph");
        self.call(match outcome {
            None => "accumulated",
            Some(StepOutcome::Applied) => "applied",
            Some(StepOutcome::Skipped { .. }) => "skipped",
        })
    }

    fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        self.call(format!("epoch {} end", hook.epoch))
    }

    fn on_validation_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let score = self.scores[hook.epoch as usize];
        hook.log_number("val_score", score, LogOptions::ON_EPOCH)
    }

    fn on_train_end(&mut self) -> Result<()> {
        self.call("train end")
    }
}

fn config(epochs: usize) -> TrainerConfig {
    let max_epochs = epochs as i64;
    TrainerConfig { max_epochs, ..TrainerConfig::new(Precision::F32True, Device::Cpu) }
}

fn trained(scores: &[f64], trainer: Trainer<'_>) -> Result<RunRecord> {
    let mut trainer = trainer;
    trainer.fit(&mut Scripted::new(scores)?, &same(constant(4, 3, 1.0)?, 2)?)
}

/// Rule 15 of docs/SEMANTICS.md: hooks run in Lightning's order. Two batches are accumulated, and
/// `on_before_optimizer_step` receives the gradients before clipping, with a norm far above the
/// limit.
#[test]
fn hooks_come_in_lightnings_order_and_see_unclipped_gradients() -> Result<()> {
    let _generator = seeded(0);
    let mut model = Scripted::new(&[1.0])?;
    let config = config(1).with(|config| {
        config.optimization.accumulate_grad_batches = 2;
        config.optimization.gradient_clip = Some(Clip::Norm(1e-3));
    });
    Trainer::new(config).fit(&mut model, &same(constant(4, 3, 9.0)?, 2)?)?;
    let calls = model.calls.into_inner();
    let norm = calls.iter().find_map(|call| call.strip_prefix("norm 0 ")).expect("a norm");
    assert!(norm.parse::<f64>().expect("a number") > 1.0, "{norm} was clipped");
    let calls: Vec<&str> =
        calls.iter().map(|call| if call.starts_with("norm") { "norm" } else { call }).collect();
    let expected = [
        "train start",
        "epoch 0 start",
        "step",
        "accumulated",
        "step",
        "norm",
        "applied",
        "epoch 0 end",
        "train end",
    ];
    assert_eq!(calls, expected);
    Ok(())
}

/// Rule 15 of docs/SEMANTICS.md, Lightning #11407: under `16-mixed`, a hook reads the norm of the
/// unscaled gradients, whatever the loss scale is. The norm is compared with the norm of a run in
/// f32.
#[test]
fn a_hook_sees_unscaled_gradients_whatever_the_scale() -> Result<()> {
    let norm = |precision, init_scale| -> Result<f64> {
        let _generator = seeded(0);
        let mut model = Scripted::new(&[1.0])?;
        let mut config = TrainerConfig { precision, ..config(1) };
        config.numerics.scaler.init_scale = init_scale;
        Trainer::new(config).fit(&mut model, &same(constant(2, 3, 9.0)?, 2)?)?;
        let calls = model.calls.into_inner();
        let norm = calls.iter().find_map(|call| call.strip_prefix("norm 0 ")).expect("a norm");
        Ok(norm.parse().expect("a number"))
    };
    let exact = norm(Precision::F32True, 1.0)?;
    for scale in [1.0, 1024.0] {
        let seen = norm(Precision::F16Mixed, scale)?;
        assert!((seen / exact - 1.0).abs() < 2e-3, "{seen} at scale {scale}, {exact} in f32");
    }
    Ok(())
}

#[test]
fn early_stopping_waits_for_its_patience_and_says_why() -> Result<()> {
    let _generator = seeded(0);
    let scores = [5.0, 4.0, 4.0, 4.1, 3.0, 3.0];
    let run = |patience| {
        let stop = EarlyStopping::new("val_score", Mode::Min).patience(patience);
        trained(&scores, Trainer::new(config(6)).callback(stop))
    };
    let record = run(2)?;
    assert_eq!(record.epochs.len(), 4, "epochs 2 and 3 do not improve on epoch 1");
    let reason = "stopped early: val_score has not fallen below 4.00000 for 2 epochs";
    assert_eq!(record.notes, [reason]);
    assert_eq!(run(3)?.epochs.len(), 6, "epoch 4 improves in time");
    Ok(())
}

#[test]
fn early_stopping_ends_a_run_that_is_not_finite() -> Result<()> {
    let _generator = seeded(0);
    let stop = EarlyStopping::new("val_score", Mode::Max).patience(10);
    let record = trained(&[1.0, f64::NAN, 2.0], Trainer::new(config(3)).callback(stop))?;
    assert_eq!(record.epochs.len(), 2);
    assert_eq!(record.notes, ["stopped early: val_score is NaN"]);
    Ok(())
}

#[test]
fn a_value_that_is_not_logged_cannot_be_monitored() -> Result<()> {
    let _generator = seeded(0);
    let folder = tempdir().expect("a temporary folder");
    let checkpoint = |monitor| ModelCheckpoint::new(folder.path(), monitor, Mode::Max);
    let callbacks: [Box<dyn Callback>; 3] = [
        Box::new(EarlyStopping::new("val_acc", Mode::Max)),
        Box::new(checkpoint("val_acc")?),
        Box::new(checkpoint("val_acc")?.save_last(true)),
    ];
    for mut callback in callbacks {
        for (sanity, interval) in [(0, 1.0), (1, 1.0), (0, 0.5)] {
            let mut config = config(1);
            config.loops.num_sanity_val_steps = sanity;
            config.loops.val_check_interval = ValCheckInterval::Fraction(interval);
            let mut model = Scripted::new(&[1.0])?;
            let data = same(constant(2, 3, 9.0)?, 1)?;
            let fit = Trainer::new(config).callback(&mut callback).fit(&mut model, &data);
            let text = message(fit);
            let expected = "cannot monitor `val_acc`, because the model does not log it at the \
                            end of an epoch; at that time the model logs val_score";
            assert!(text.contains(expected), "{text}");
            assert!(!model.calls.into_inner().contains(&"step".to_owned()), "no step has run");
        }
    }
    // The plateau schedule monitors a value that the model does not log.
    let mut model = Scripted { plateau: Some("val_acc"), ..Scripted::new(&[1.0])? };
    let text = message(Trainer::new(config(1)).fit(&mut model, &same(constant(2, 3, 9.0)?, 1)?));
    assert!(text.contains("cannot monitor `val_acc`"), "{text}");
    assert!(!model.calls.into_inner().contains(&"step".to_owned()), "no step has run");
    // Names that begin with `train_` are logged only in training steps, so a wrong name of this
    // kind is reported only at the end of an epoch.
    let own = EarlyStopping::new("train_typo", Mode::Max);
    let text = message(trained(&[1.0], Trainer::new(config(1)).callback(own)));
    assert!(text.contains("cannot monitor `train_typo`"), "{text}");
    // Without validation data, `val_score` is not logged, so a callback cannot monitor it.
    let mut data = same(constant(2, 3, 9.0)?, 1)?;
    data.val = Sets::default();
    let own = EarlyStopping::new("val_score", Mode::Max);
    let mut model = Scripted::new(&[1.0])?;
    let text = message(Trainer::new(config(1)).callback(own).fit(&mut model, &data));
    assert!(text.contains("the model does not log it at the end of an epoch"), "{text}");
    Ok(())
}

/// A folder into which another process saves its run is refused, because the two processes would
/// overwrite each other's `last.safetensors`. The test locks the file through a second file handle,
/// as another process would.
#[test]
fn a_folder_that_another_process_saves_into_is_refused() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let new = || ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min);
    let other = std::fs::File::open(folder.path()).expect("the folder opens");
    other.lock().expect("it is not locked");
    let text = message(new().map(|_| ()));
    assert!(text.contains("another running process saves its run there"), "{text}");
    assert!(!text.contains('\n'), "one line: {text}");
    drop(other);
    let (first, second) = (new()?, new()?);
    drop(first);
    let other = std::fs::File::open(folder.path()).expect("the folder opens");
    assert!(other.try_lock().is_err(), "the second run still holds the lock");
    drop(second);
    assert!(other.try_lock().is_ok(), "released");
    assert_eq!(folder.path().read_dir().expect("the folder").count(), 0, "no file remains");
    Ok(())
}

#[test]
fn the_best_epochs_are_kept_and_the_others_removed() -> Result<()> {
    let _generator = seeded(0);
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("made/when/missing");
    let mut checkpoint =
        ModelCheckpoint::new(&path, "val_score", Mode::Max)?.save_top_k(2).save_last(true);
    let mut saved = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::Saved { path } = event {
            saved.push(path.file_name().expect("a name").to_string_lossy().into_owned());
        }
        Ok(())
    };
    let scores = [0.1, 0.3, 0.2, f64::NAN, 0.25];
    let trainer = Trainer::new(config(5)).callback(&mut checkpoint).subscribe(&mut listen);
    trained(&scores, trainer)?;
    let mut files: Vec<String> = path
        .read_dir()
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    let best = ["epoch=01-val_score=0.3000.safetensors", "epoch=04-val_score=0.2500.safetensors"];
    assert_eq!(files, [best[0], best[1], "last.safetensors"]);
    let of_epochs = saved.iter().filter(|name| name.starts_with("epoch=")).count();
    assert_eq!((saved.len(), of_epochs), (9, 4), "{saved:?}");
    assert_eq!(checkpoint.best_model_path(), Some(path.join(best[0]).as_path()));
    Ok(())
}
