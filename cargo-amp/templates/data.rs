//! The data set: two spirals, which no straight line separates.

use std::f32::consts::TAU;

use amp_core::Result;
use amp_core::data::{Batch, DataModule};
use amp_core::tch::Tensor;

/// Points to train on, of both spirals together.
const TRAINING: usize = 1600;
/// Other points, to validate on.
const VALIDATION: usize = 400;

/// The two spirals as `[points, 2]` coordinates and the spiral that each point is on, 0 or 1, in
/// batches of `batch_size`.
///
/// # Errors
/// When libtorch has no memory for the points.
pub fn spirals(batch_size: i64) -> Result<DataModule> {
    // A fixed seed: every run, on every machine, sees the same points.
    let mut random = fastrand::Rng::with_seed(42);
    let train = points(TRAINING, &mut random)?;
    let validation = points(VALIDATION, &mut random)?;
    Ok(DataModule::new("spirals", train, validation, batch_size))
}

/// `count` points, every other one on the second spiral.
fn points(count: usize, random: &mut fastrand::Rng) -> Result<Batch> {
    let mut coordinates = Vec::with_capacity(2 * count);
    let mut spirals = Vec::with_capacity(count);
    for point in 0..count {
        let spiral = point % 2;
        // From near the centre outwards in one and a quarter turns, half a turn behind the other.
        let distance = 0.1 + 0.9 * random.f32();
        let angle = TAU * (1.25 * distance + 0.5 * spiral as f32);
        let mut noise = || 0.05 * (random.f32() - 0.5);
        let x = distance * angle.cos() + noise();
        let y = distance * angle.sin() + noise();
        coordinates.extend([x, y]);
        spirals.push(spiral as i64);
    }
    let input = Tensor::f_from_slice(&coordinates)?.f_reshape([-1, 2])?;
    Batch::new(input, Tensor::f_from_slice(&spirals)?)
}

#[cfg(test)]
mod tests {
    use super::{TRAINING, VALIDATION, points};
    use amp_core::Result;
    use amp_core::tch::Kind;

    #[test]
    fn half_of_the_points_are_on_each_spiral() -> Result<()> {
        for count in [TRAINING, VALIDATION] {
            let batch = points(count, &mut fastrand::Rng::with_seed(42))?;
            assert_eq!(batch.input.size(), [count as i64, 2]);
            let on_the_second = batch.target.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            assert_eq!(on_the_second, count as i64 / 2);
        }
        Ok(())
    }
}
