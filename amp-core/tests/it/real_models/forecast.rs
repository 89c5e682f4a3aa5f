//! An LSTM that predicts the next value of series of different lengths.

use amp_core::{nn::Lstm, prelude::*};
use rstest::rstest;

use super::train;
use crate::support::seeded;

const STEPS: i64 = 12;

#[derive(Batch)]
struct Series {
    /// The values of the series, `[N, STEPS, 1]`. After the end of a series the numbers are
    /// meaningless.
    values: Tensor,
    lengths: Tensor,
    /// The value that follows the end of each series, `[N, 1]`.
    next: Tensor,
}

#[derive(LightningModule)]
#[batch(Series, inputs(values, lengths), target = next)]
#[forward(|values, lengths| {
    let (_, (h, _)) = lstm(values, None, Some(lengths))?;
    head(&h.f_get(-1)?)
})]
#[loss(mse_loss)]
#[optimizer(adam, lr = 1e-2)]
struct Forecast {
    #[layer(lstm(1, 24, num_layers = 2, dropout = 0.05, batch_first = true))]
    lstm: Lstm,
    #[layer(linear(24, 1))]
    head: Linear,
}

/// Returns sine waves with two frequencies and random phases.
fn series(count: i64) -> Result<Series> {
    let options = (Kind::Float, Device::Cpu);
    let lengths = Tensor::f_randint_low(4, STEPS + 1, [count], (Kind::Int64, Device::Cpu))?;
    let phase = Tensor::f_rand([count, 1], options)?.f_mul_scalar(std::f64::consts::TAU)?;
    let rate = Tensor::f_randint_low(1, 3, [count, 1], options)?.f_mul_scalar(0.4)?;
    let wave = |places: &Tensor| rate.f_mul(places)?.f_add(&phase)?.f_sin();
    let places = Tensor::f_arange(STEPS, options)?.f_unsqueeze(0)?;
    let behind = places.f_ge_tensor(&lengths.f_unsqueeze(1)?)?;
    let junk = Tensor::f_randn([count, STEPS], options)?;
    let values = junk.f_where_self(&behind, &wave(&places)?)?.f_unsqueeze(-1)?;
    let next = wave(&lengths.f_unsqueeze(1)?.f_to_kind(Kind::Float)?)?;
    Ok(Series { values, lengths, next })
}

#[rstest]
fn an_lstm_learns_series_of_different_lengths(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let data = {
        let _section = seeded(5);
        DataModule::new("waves", series(512)?, series(128)?, 32)
    };
    let _section = seeded(0);
    let mut model = Forecast::builder().build()?;
    let record = train(&mut model, &data, precision, 12)?;
    let loss = record.last("val_loss").expect("val_loss");
    // A wave's variance is 1/2, which is the loss of a model that always outputs 0.
    assert!(loss < 0.1, "{loss}");
    Ok(())
}
