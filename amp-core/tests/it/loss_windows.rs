//! Tests of accumulated batches and of micro-batches. The trainer weights each batch or micro-batch
//! by the number of elements over which its loss takes the mean. The gradient of the step therefore
//! equals that of one large batch, for every loss with its options and for a user-defined loss. If
//! a loss needs the whole batch, the batch is never split, and a note is printed if such batches
//! are accumulated.

use amp_core::{
    Trainer, TrainerConfig,
    event::Event,
    loss::{Loss, MeanOver},
    nn,
    prelude::*,
};
use rstest::rstest;

use crate::support::{bits::values, device, layers::Room, message, seeded};

/// A loss that is a mean over targets, weighted by the absolute value of each target.
#[derive(Debug)]
struct BySize;

impl Loss for BySize {
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        let errors = output.f_sub(target)?.f_square()?.f_mul(&target.f_abs()?)?;
        Ok(errors.f_sum(Kind::Double)?.f_div(&target.f_abs()?.f_sum(Kind::Double)?)?)
    }

    fn mean_over(&self) -> MeanOver<'_> {
        MeanOver::Weights(Box::new(|target| Ok(target.f_abs()?.f_sum(Kind::Double)?)))
    }
}

type Build = fn(i64) -> Result<Box<dyn LightningModule>>;

/// Returns a weight for each of the three classes or outputs.
fn rare() -> Tensor {
    Tensor::from_slice(&[0.25_f32, 1.0, 8.0])
}

/// Defines a model with 4 inputs and 3 outputs, and the given loss.
macro_rules! model {
    (@ $build:ident, $name:ident, [$(#[$forward:meta])?], $($loss:tt)*) => {
        #[derive(LightningModule)]
        $(#[$forward])?
        #[loss($($loss)*)]
        #[log(train_loss, on_step, on_epoch)]
        #[optimizer(sgd, lr = 0.5)]
        struct $name {
            #[hparam(default = 100)]
            room: i64,
            #[layer(Room(room))]
            room_of: Room,
            #[layer(linear(4, 3))]
            head: Linear,
        }

        fn $build(room: i64) -> Result<Box<dyn LightningModule>> {
            Ok(Box::new($name::builder().room(room).build()?))
        }
    };
    ($build:ident, $name:ident, $($loss:tt)*) => {
        model!(@ $build, $name, [], $($loss)*);
    };
}

model!(ignoring, Ignoring, cross_entropy, ignore_index = 2);
model!(smooth, Smooth, cross_entropy, label_smoothing = 0.2, weight = rare());
model!(weighted, Weighted, cross_entropy, weight = rare(), ignore_index = 1);
model!(positives, Positives, binary_cross_entropy_with_logits, pos_weight = rare());
model!(huber, OfHuber, huber_loss, delta = 0.5);
model!(@ divergence, Divergence,
    [#[forward(|x| Ok(head(&room_of(x)?)?.f_log_softmax(-1, Kind::Double)?))]],
    kl_div, batchmean = true);
model!(focal, OfFocal, focal, gamma = 1.5);
model!(dice, OfDice, dice);
model!(by_size, OfSize, value = BySize);
model!(contrastive, Contrastive, info_nce, temperature = 0.5);
model!(dice_of_all, DiceOfAll, dice, batch = true);

/// Returns twelve examples. If `ignored` is given, the targets are classes, and the first five have
/// the ignored class. Otherwise each target has three numbers from 0 to 1.
fn examples(ignored: Option<i64>) -> Result<Batch> {
    let _section = seeded(11);
    let input = Tensor::f_randn([12, 4], (Kind::Float, Device::Cpu))?;
    let target = match ignored {
        Some(x) => Tensor::from_slice(&[x, x, x, x, x, 2, 1, 0, 2, 0, x, 1]),
        None => Tensor::f_rand([12, 3], (Kind::Float, Device::Cpu))?,
    };
    Batch::new(input, target)
}

/// Runs one training step over the twelve examples. Returns the weights after the step, the logged
/// values, and the messages that the trainer printed as notes.
fn run(
    build: Build,
    ignored: Option<i64>,
    (batch, window, room): (i64, i64, i64),
) -> Result<(Vec<f64>, [f64; 2], Vec<String>)> {
    let mut model = {
        let _section = seeded(3);
        build(room)?
    };
    let mut notes = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::Note { text } = event {
            notes.push(text.clone());
        }
        Ok(())
    };
    let config = TrainerConfig::new(Precision::F64True, device()).with(|config| {
        config.max_epochs = 1;
        config.optimization.accumulate_grad_batches = window;
    });
    let data = DataModule::new("rows", examples(ignored)?, examples(ignored)?, batch).in_order();
    let record = Trainer::new(config).subscribe(&mut listen).fit(model.as_mut(), &data)?;
    assert_eq!((record.end.global_step, record.end.skipped), (1, 0));
    let logged =
        ["train_loss", "val_loss"].map(|name| record.epochs[0].value(name).expect("it is logged"));
    let weights =
        nn::parameters(model.as_ref()).iter().flat_map(|own| values(&own.tensor)).collect();
    Ok((weights, logged, notes))
}

#[rstest]
fn a_window_equals_the_large_batch(
    #[values(
        (ignoring as Build, Some(2)),
        (smooth as Build, Some(-100)),
        (weighted as Build, Some(1)),
        (positives as Build, None),
        (huber as Build, None),
        (divergence as Build, None),
        (focal as Build, None),
        (dice as Build, None),
        (by_size as Build, None)
    )]
    (build, ignored): (Build, Option<i64>),
    #[values((5, 3, 100), (1, 12, 100), (12, 1, 5))] window: (i64, i64, i64),
) -> Result<()> {
    let (expected, whole, _) = run(build, ignored, (12, 1, 100))?;
    let (seen, parts, notes) = run(build, ignored, window)?;
    for (seen, expected) in seen.iter().zip(&expected) {
        assert!((seen - expected).abs() < 1e-13, "found {seen}, expected {expected}");
    }
    for (seen, expected) in parts.iter().zip(&whole) {
        assert!((seen - expected).abs() < 1e-12, "found {seen}, expected {expected}");
    }
    assert_eq!(notes, [""; 0]);
    Ok(())
}

/// If the loss needs the whole batch, the batch is not split. Half a batch would have fewer
/// negative pairs and other sums than the whole batch.
#[rstest]
fn a_loss_of_the_whole_batch_is_not_split(
    #[values(contrastive as Build, dice_of_all as Build)] build: Build,
) -> Result<()> {
    let said = message(run(build, None, (12, 1, 6)));
    assert!(said.contains("its loss depends on the batch as a whole"), "{said}");
    let (_, _, notes) = run(build, None, (6, 2, 100))?;
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("averages their losses"), "{}", notes[0]);
    let (_, _, notes) = run(build, None, (12, 1, 100))?;
    assert_eq!(notes, [""; 0]);
    Ok(())
}

/// If a validation batch does not fit into memory, it is split into micro-batches, as in training.
/// If the loss depends on the batch as a whole, validation returns an error instead.
#[test]
fn validation_of_a_loss_of_the_whole_batch_is_not_split() -> Result<()> {
    let validate = |build: Build| -> Result<_> {
        let config = TrainerConfig::new(Precision::F64True, Device::Cpu);
        let data = DataModule::new("rows", examples(None)?, examples(None)?, 12);
        Trainer::new(config).validate(build(6)?.as_mut(), &data)
    };
    let said = message(validate(contrastive));
    assert!(said.contains("its loss depends on the batch as a whole"), "{said}");
    validate(huber)?;
    Ok(())
}
