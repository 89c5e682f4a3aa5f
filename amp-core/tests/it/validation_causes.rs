//! Tests that a note names the first non-finite value if a validation loss is not finite. The note
//! is written once in a run.

use amp_core::{data::DataModule, event::Event, prelude::*};
use rstest::rstest;

use crate::support::model::digits;

#[derive(LightningModule)]
#[forward(|x| head(&norm(&x.f_mul_scalar(self.gain)?)?))]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.01)]
struct Net {
    #[hparam(default = 1.0)]
    gain: f64,
    #[layer(layer_norm(64))]
    norm: LayerNorm,
    #[layer(linear(64, 10))]
    head: Linear,
}

fn notes(gain: f64, val: Batch) -> Result<(Vec<String>, Option<f64>)> {
    let mut model = Net::builder().gain(gain).build()?;
    let config =
        TrainerConfig { max_epochs: 2, ..TrainerConfig::new(Precision::F32True, Device::Cpu) };
    let mut notes = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::Note { text } = event {
            notes.push(text.clone());
        }
        Ok(())
    };
    let data = DataModule::new("digits", digits(64)?, val, 32);
    let record = Trainer::new(config).subscribe(&mut listen).fit(&mut model, &data)?;
    Ok((notes, record.last("val_loss")))
}

/// Returns a validation set of two batches of 32 examples. One input element of the second batch is
/// `value`.
fn val(value: f64) -> Result<Batch> {
    let digits = digits(64)?;
    let input = digits.input.f_add_scalar(0.25)?;
    let _ = input.f_select(0, 40)?.f_select(0, 3)?.f_fill_(value)?;
    Batch::new(input, digits.target)
}

#[rstest]
#[case::input(
    1.0,
    f64::NAN,
    "the batch's `input` (float32) has 0 inf and 1 NaN among 2048 values (batch 1 of the set)"
)]
#[case::output(1e15, 1e25, "the output of `norm` (float32) has")]
fn the_first_value_is_named_once(
    #[case] gain: f64,
    #[case] value: f64,
    #[case] expected: &str,
) -> Result<()> {
    let (notes, loss) = notes(gain, val(value)?)?;
    assert!(loss.is_some_and(f64::is_nan), "{loss:?}");
    let [note] = notes.as_slice() else { panic!("{notes:?}") };
    assert!(note.starts_with("`val_loss` is NaN: in validation, "), "{note}");
    assert!(note.contains(expected), "{note}");
    Ok(())
}

#[test]
fn a_finite_loss_is_not_explained() -> Result<()> {
    let (notes, loss) = notes(1.0, val(0.5)?)?;
    assert!(loss.is_some_and(f64::is_finite), "{loss:?}");
    assert_eq!(notes, Vec::<String>::new());
    Ok(())
}
