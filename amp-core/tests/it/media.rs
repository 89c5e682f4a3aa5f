//! Tests of images, texts and histograms that steps and hooks log.

use amp_core::{
    Hook, LightningModule, Module, Result, Step, Trainer, TrainerConfig,
    callback::Callback,
    data::{Batch, DataModule},
    event::Event,
    log::{Histogram, Image, LogOptions, Media},
    loss,
    nn::{Linear, named_tensors},
    precision::Precision,
    tch::{Device, Kind, Tensor},
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::support::{device, message, needs_cuda, seeded};

/// A model that logs its input as an image and its weights as a histogram, at the logging interval.
/// If `always` is true, it logs them in every training step. If `never` is true, it logs nothing of
/// this kind.
#[derive(LightningModule)]
#[training_step(shown, captured)]
#[validation_step(looked_at)]
#[optimizer(sgd, lr = 0.01)]
struct Shown {
    #[hparam(default = false)]
    always: bool,
    #[hparam(default = false)]
    never: bool,
    #[layer(linear(4, 2))]
    body: Linear,
}

fn shown(net: &mut Shown, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
    let value = loss::mse_loss(&net.forward(&batch.input, step.context())?, &batch.target)?;
    step.log("train_loss", &value, batch.len(), LogOptions::ON_BOTH)?;
    if net.always || (!net.never && step.at_logging_interval()) {
        step.log_image("inputs", &batch.input.f_reshape([-1, 1, 2, 2])?)?;
        step.log_histogram("weights", net.body.weight())?;
    }
    Ok(value)
}

fn looked_at(net: &mut Shown, batch: &Batch, step: &mut Step<'_>) -> Result<()> {
    let value = loss::mse_loss(&net.forward(&batch.input, step.context())?, &batch.target)?;
    step.log("val_loss", &value, batch.len(), LogOptions::ON_EPOCH)?;
    if !net.never && step.at_logging_interval() {
        step.log_text("first", format!("batch {}", step.batch_idx()))?;
    }
    Ok(())
}

/// Returns five batches of two examples per epoch, with inputs from 0 to 1.
fn data() -> Result<DataModule> {
    let rows = |count: i64| {
        let all = Tensor::f_arange(4 * count, (Kind::Float, Device::Cpu))?;
        let input = all.f_reshape([-1, 4])?.f_div_scalar(4.0 * count as f64)?;
        Batch::new(input.shallow_clone(), input.f_narrow(1, 0, 2)?)
    };
    Ok(DataModule::new("rows", rows(10)?, rows(4)?, 2))
}

fn config(device: Device, graph: Graph) -> TrainerConfig {
    TrainerConfig { max_epochs: 2, graph, ..TrainerConfig::new(Precision::F32True, device) }.with(
        |config| {
            config.logging.log_every_n_steps = 2;
            config.loops.num_sanity_val_steps = 1;
        },
    )
}

/// Returns the events of a training run, the weights after it, and the number of steps that ran as
/// a CUDA graph.
fn run(
    (always, never): (bool, bool),
    config: TrainerConfig,
    callback: Option<&mut Texts>,
) -> Result<(Vec<Event>, Vec<Tensor>, u64)> {
    let _generator = seeded(3);
    let mut model = Shown::builder().always(always).never(never).build()?;
    let mut events = Vec::new();
    let mut keep = |event: &Event| -> Result<()> {
        events.push(event.clone());
        Ok(())
    };
    let mut trainer = Trainer::new(config).subscribe(&mut keep);
    if let Some(callback) = callback {
        trainer = trainer.callback(callback);
    }
    let record = trainer.fit(&mut model, &data()?)?;
    drop(trainer);
    let weights = named_tensors(&model).into_iter().map(|(_, tensor, _)| tensor).collect();
    Ok((events, weights, record.end.replayed))
}

/// Returns the step, name and content of each logged image, text and histogram.
fn media(events: &[Event]) -> Vec<(u64, &str, &Media)> {
    let seen = events.iter().filter_map(|event| match event {
        Event::Media { global_step, name, media } => Some((*global_step, name.as_str(), media)),
        _ => None,
    });
    seen.collect()
}

/// Images and histograms are logged in every second step, because this is the logging interval.
/// Texts are logged in the first batch of each validation, except the sanity validation.
#[test]
fn media_come_at_the_logging_interval() -> Result<()> {
    let (events, ..) = run((false, false), config(Device::Cpu, Graph::Off), None)?;
    let seen: Vec<(u64, &str)> =
        media(&events).into_iter().map(|(step, name, _)| (step, name)).collect();
    let both = |step| [(step, "inputs"), (step, "weights")];
    let mut expected: Vec<(u64, &str)> = [2, 4].into_iter().flat_map(both).collect();
    expected.push((5, "first"));
    expected.extend([6, 8, 10].into_iter().flat_map(both));
    expected.push((10, "first"));
    assert_eq!(seen, expected);
    let texts = media(&events).into_iter().filter(|(_, name, _)| *name == "first");
    for (.., text) in texts {
        assert_eq!(text, &Media::Text("batch 0".into()));
    }
    // The image is a grid of two images of 2 × 2 pixels, with a border of two pixels around each.
    let Some((.., Media::Image(image))) = media(&events).into_iter().next() else {
        panic!("an image")
    };
    assert_eq!((image.height, image.width, image.channels), (6, 10, 3));
    Ok(())
}

#[test]
fn looking_changes_no_number() -> Result<()> {
    let (_, plain, _) = run((false, true), config(Device::Cpu, Graph::Off), None)?;
    let (events, seen, _) = run((true, false), config(Device::Cpu, Graph::Off), None)?;
    assert!(plain.iter().zip(&seen).all(|(plain, seen)| plain.equal(seen)));
    assert_eq!(media(&events).iter().filter(|(_, name, _)| *name == "inputs").count(), 10);
    Ok(())
}

/// A callback that logs a text in its hook.
struct Texts;

impl Callback for Texts {
    fn name(&self) -> String {
        "Texts".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }

    fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        hook.log_text("epoch", format!("epoch {}", hook.epoch))
    }
}

#[test]
fn hooks_log_media() -> Result<()> {
    let (events, ..) = run((false, true), config(Device::Cpu, Graph::Off), Some(&mut Texts))?;
    let texts: Vec<Media> = (0..2).map(|epoch| Media::Text(format!("epoch {epoch}"))).collect();
    assert_eq!(media(&events), [(5, "epoch", &texts[0]), (10, "epoch", &texts[1])]);
    Ok(())
}

/// A logged image has the pixels of the tensor, clamped to the valid range and rounded down. They
/// are written row by row, and the channels of a pixel are next to each other, whatever the memory
/// layout of the tensor is.
#[test]
fn an_image_is_its_pixels() -> Result<()> {
    let values = [-1.0, 0.0, 0.5, 0.999, 1.0, 2.0, f32::NAN, 0.25, 1.0, 0.0, 0.1, 0.2];
    let tensor = Tensor::f_from_slice(&values)?.f_reshape([3, 2, 2])?;
    let expected = Image {
        height: 2,
        width: 2,
        channels: 3,
        pixels: vec![0, 255, 255, 0, 255, 0, 127, 0, 25, 254, 63, 51],
    };
    assert_eq!(Image::from_tensor(&tensor)?, expected);
    let bytes = Tensor::f_from_slice(&expected.pixels)?.f_reshape([2, 2, 3])?;
    assert_eq!(Image::from_tensor(&bytes.f_permute([2, 0, 1])?)?, expected);
    let gray = Image::from_tensor(&Tensor::f_from_slice(&[0.5_f64, 1.0])?.f_reshape([1, 2])?)?;
    assert_eq!((gray.height, gray.width, gray.channels, gray.pixels), (1, 2, 1, vec![127, 255]));
    Ok(())
}

#[rstest]
#[case(&[2, 2, 2], Kind::Float, "1, 3 or 4 channels, not [2, 2, 2]")]
#[case(&[4], Kind::Float, "not [4]")]
#[case(&[1, 0, 2], Kind::Float, "not [1, 0, 2]")]
#[case(&[1, 2, 2], Kind::Int64, "the image is Int64, but must be uint8 or floating-point")]
fn what_is_no_image_is_refused(#[case] size: &[i64], #[case] kind: Kind, #[case] says: &str) {
    let tensor = Tensor::zeros(size, (kind, Device::Cpu));
    let text = message(Image::from_tensor(&tensor));
    assert!(text.contains(says), "{text}");
}

/// A histogram counts every finite value in the bucket that contains the value.
#[test]
fn a_histogram_counts_each_value() -> Result<()> {
    let values: Vec<f64> = (0..400)
        .map(|at| f64::from(at * 37 % 101 - 50) / 8.0)
        .chain([1e-30, 1e25, -1e-12])
        .collect();
    let tensor = Tensor::f_from_slice(&values)?;
    let with = Tensor::f_cat(&[&tensor, &Tensor::f_from_slice(&[f64::NAN, f64::INFINITY])?], 0)?;
    let histogram = Histogram::from_tensor(&with)?.expect("finite values");
    assert_eq!((histogram.count, histogram.not_finite), (403, 2));
    assert_eq!((histogram.min, histogram.max), (-6.25, 1e25));
    let sum: f64 = values.iter().sum();
    assert!((histogram.sum - sum).abs() <= 1e-9 * sum.abs(), "{}", histogram.sum);
    assert_eq!(histogram.counts.iter().sum::<u64>(), 403);
    assert_eq!(histogram.counts[0], 0);
    let last = histogram.limits.len() - 1;
    for (at, edges) in histogram.limits.windows(2).enumerate() {
        let within = |value: &&f64| **value >= edges[0] && (**value < edges[1] || at + 1 == last);
        let count = values.iter().filter(within).count() as u64;
        assert_eq!(histogram.counts[at + 1], count, "{edges:?}");
    }
    assert_eq!(
        Histogram::from_tensor(&Tensor::f_full([3], f64::NAN, (Kind::Float, Device::Cpu))?)?,
        None
    );
    Ok(())
}

/// A step that logs an image or a text needs the host, so it runs without the CUDA graph. The
/// results are the same.
#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_graph_leaves_logged_steps_out() -> Result<()> {
    needs_cuda();
    let with = |graph| {
        run((false, false), config(device(), graph).with(|config| config.max_epochs = 6), None)
    };
    let (events, weights, replayed) = with(Graph::On)?;
    let (expected, same, none) = with(Graph::Off)?;
    assert_eq!(media(&events), media(&expected));
    assert!(weights.iter().zip(&same).all(|(weight, same)| weight.equal(same)));
    // 15 of the 30 steps log on the host and therefore run without a CUDA graph. The first steps
    // run without one too. At least ten of the remaining steps are replayed.
    assert!(replayed >= 10 && none == 0, "{replayed}");
    Ok(())
}

#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_graph_refuses_to_log_for_the_host() -> Result<()> {
    needs_cuda();
    let text = message(run((true, false), config(device(), Graph::On), None));
    assert!(text.contains("log it only if `step.at_logging_interval()` is true"), "{text}");
    // With `Graph::Auto`, the run continues without a CUDA graph, and each of its ten steps logs an
    // image.
    let (events, ..) = run((true, false), config(device(), Graph::Auto), None)?;
    assert_eq!(media(&events).iter().filter(|(_, name, _)| *name == "inputs").count(), 10);
    Ok(())
}
