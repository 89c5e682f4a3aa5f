//! Tests of ids that are stored as floating-point numbers, which 16-bit dtypes would change.

use amp_core::{Trainer, TrainerConfig, data::DataModule, prelude::*};
use rstest::rstest;

use crate::support::seeded;

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 1e-9)]
struct Net {
    #[layer(linear(3, 1))]
    head: Linear,
}

/// Trains on rows of three columns, a value, an id and another value, and returns the notes.
fn notes(precision: Precision, ids: [f64; 4], target: [f64; 4]) -> Result<Vec<String>> {
    let _section = seeded(0);
    let row = |id: f64| [0.123_456_7, id, 1.0];
    let input = Tensor::from_slice(&ids.map(row).concat()).to_kind(Kind::Float).reshape([4, 3]);
    let target = Tensor::from_slice(&target).to_kind(Kind::Float).reshape([4, 1]);
    let batch = || Batch::new(input.copy(), target.copy());
    let data = DataModule::new("rows", batch()?, batch()?, 4);
    let config = TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, Device::Cpu) };
    let mut net = Net::builder().build()?;
    let record = Trainer::new(config).fit(&mut net, &data)?;
    Ok(record.notes.into_iter().filter(|note| note.contains("whole numbers")).collect())
}

const FRACTIONS: [f64; 4] = [0.1, 0.2, 0.3, 0.4];

#[rstest]
#[case(Precision::Bf16True, [1.0, 256.0, 1001.0, 3.0], "bfloat16 rounds 1001 to 1000")]
#[case(Precision::Bf16True, [257.0, 0.0, 0.0, 0.0], "bfloat16 rounds 257 to 256")]
#[case(Precision::F16True, [2048.0, 2049.0, 1.0, 1.0], "float16 rounds 2049 to 2048")]
fn ids_among_floating_point_values_are_reported(
    #[case] precision: Precision,
    #[case] ids: [f64; 4],
    #[case] expected: &str,
) -> Result<()> {
    let told = notes(precision, ids, FRACTIONS)?;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("`input` holds whole numbers in column 1, and "), "{}", told[0]);
    assert!(told[0].contains(expected) && told[0].contains("#[batch(ids)]"), "{}", told[0]);
    Ok(())
}

#[rstest]
#[case::they_fit(Precision::Bf16True, [1.0, 2.0, 255.0, 256.0])]
#[case::they_fit_f16(Precision::F16True, [1.0, 1001.0, 2047.0, 2048.0])]
#[case::fractions_too(Precision::Bf16True, [1001.0, 2.5, 3.0, 4.0])]
#[case::not_cast(Precision::Bf16Mixed, [1001.0, 1003.0, 3.0, 4.0])]
#[case::wide(Precision::F32True, [1001.0, 1003.0, 3.0, 4.0])]
fn other_values_are_not_reported(
    #[case] precision: Precision,
    #[case] ids: [f64; 4],
) -> Result<()> {
    assert_eq!(notes(precision, ids, FRACTIONS)?, [""; 0]);
    Ok(())
}

#[test]
fn targets_are_checked_too() -> Result<()> {
    let told = notes(Precision::Bf16True, [1.0; 4], [1.0, 2.0, 511.0, 4.0])?;
    assert!(told.len() == 1 && told[0].starts_with("`target` holds whole numbers in column 0"));
    Ok(())
}
