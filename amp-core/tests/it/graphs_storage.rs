//! Averages and gradients in fewer bits as parts of CUDA graphs (`AMP_DEVICE=cuda`).

use amp_core::{
    Result, TrainerConfig,
    optim::Moments,
    precision::{GradScalerConfig, GradientStorage, Precision},
};
use rstest::rstest;

use crate::{
    graphs::{assert_same, both, one_cycle},
    support::needs_cuda,
};

/// Averages in fewer bits are stepped as they are, those in bf16 with random numbers that a graph draws
/// anew.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn smaller_moments_are_part_of_a_graph(
    #[values(Moments::Bf16, Moments::EightBit)] moments: Moments,
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    needs_cuda();
    let change = |config: &mut TrainerConfig| {
        config.max_epochs = 10;
        config.numerics.moments = moments;
        // Overflows at first and whenever it has grown for long enough.
        config.numerics.scaler = GradScalerConfig { growth_interval: 3, ..Default::default() };
        config.numerics.scaler.init_scale = 2.0_f64.powi(26);
    };
    let runs = both(change, precision, one_cycle)?;
    assert_same(&runs);
    assert!(runs[1].record.end.replayed > 20, "{}", runs[1].record.end.replayed);
    Ok(())
}

/// Gradients in 16 bits, too, overflow and all.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn gradients_in_16_bits_are_part_of_a_graph(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
    #[values(Moments::Full, Moments::Bf16, Moments::EightBit)] moments: Moments,
) -> Result<()> {
    needs_cuda();
    let change = |config: &mut TrainerConfig| {
        (config.numerics.gradients, config.numerics.moments) =
            (GradientStorage::SixteenBit, moments);
        config.numerics.scaler = GradScalerConfig { growth_interval: 3, ..Default::default() };
        config.numerics.scaler.init_scale = 2.0_f64.powi(26);
    };
    let runs = both(change, precision, one_cycle)?;
    assert_same(&runs);
    assert!(runs[1].record.end.replayed > 60, "{}", runs[1].record.end.replayed);
    Ok(())
}
