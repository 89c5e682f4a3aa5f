//! The data set: two spirals, which no straight line can separate.

use std::f32::consts::TAU;

use amp_core::Result;
use amp_core::data::{Batch, DataModule};
use amp_core::tch::Tensor;

/// The number of training points. Half of them lie on each of the two spirals.
const TRAINING: usize = 1600;
/// The number of validation points.
const VALIDATION: usize = 400;

/// Returns the data set. The inputs are the coordinates of the points, `[points, 2]`. The class of
/// a point is its spiral, 0 or 1. A batch has `batch_size` points.
///
/// # Errors
/// When libtorch cannot allocate memory for the points.
pub fn spirals(batch_size: i64) -> Result<DataModule> {
    // The generator starts from a fixed seed, so every run uses the same points.
    let mut random = fastrand::Rng::with_seed(42);
    let train = points(TRAINING, &mut random)?;
    let validation = points(VALIDATION, &mut random)?;
    Ok(DataModule::new("spirals", train, validation, batch_size))
}

/// Generates `count` random points, alternately on the first and on the second spiral.
fn points(count: usize, random: &mut fastrand::Rng) -> Result<Batch> {
    let mut coordinates = Vec::with_capacity(2 * count);
    let mut spirals = Vec::with_capacity(count);
    for point in 0..count {
        let spiral = point % 2;
        // From the centre outwards, a spiral makes one and a quarter turns. The second spiral is
        // rotated by half a turn.
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
