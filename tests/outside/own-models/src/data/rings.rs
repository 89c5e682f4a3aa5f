//! Points of two rings around the origin.

use std::f64::consts::TAU;

use amp_core::{
    Result,
    data::{Batch, DataModule},
    tch::Tensor,
};

use super::numbers::Numbers;

const TRAIN: i64 = 1600;
const VAL: i64 = 400;
/// Half of the width of a ring.
const HALF_WIDTH: f64 = 0.55;

/// Returns training and validation examples: `[N, 2]` coordinates, and 0 for a point of the inner
/// ring, 1 for a point of the outer ring. Radii are evenly distributed over 1 ± 0.55 and 2 ± 0.55,
/// so that the rings overlap.
///
/// # Errors
/// If libtorch cannot make a tensor.
pub fn load(batch_size: i64) -> Result<DataModule> {
    let mut numbers = Numbers::new(1);
    let train = points(&mut numbers, TRAIN)?;
    let val = points(&mut numbers, VAL)?;
    Ok(DataModule::new("rings", train, val, batch_size))
}

/// Returns the expected accuracy of the best possible model. In the area where the two rings
/// overlap, half of the points belong to each ring, so every model classifies about half of the
/// points there wrongly.
pub fn best_accuracy() -> f64 {
    let overlap = 2.0 * HALF_WIDTH - 1.0;
    1.0 - 0.5 * overlap / (2.0 * HALF_WIDTH)
}

fn points(numbers: &mut Numbers, count: i64) -> Result<Batch> {
    let (mut coordinates, mut classes) = (Vec::new(), Vec::new());
    for index in 0..count {
        let class = index % 2;
        let radius = 1.0 + class as f64 + HALF_WIDTH * (2.0 * numbers.draw() - 1.0);
        let (sine, cosine) = (TAU * numbers.draw()).sin_cos();
        coordinates.extend([(radius * cosine) as f32, (radius * sine) as f32]);
        classes.push(class);
    }
    let input = Tensor::f_from_slice(&coordinates)?.f_view([count, 2])?;
    Batch::new(input, Tensor::f_from_slice(&classes)?)
}
