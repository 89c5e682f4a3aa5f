//! Tests of optimizer state in bf16 or 8 bits, and of gradients in 16 bits, inside CUDA graphs
//! (`AMP_DEVICE=cuda`).

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

/// A CUDA graph can update optimizer state that has fewer bits than f32. State in bf16 is rounded
/// stochastically, with other random numbers in each replay of the CUDA graph.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_graph_updates_state_in_fewer_bits(
    #[values(Moments::Bf16, Moments::EightBit)] moments: Moments,
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    needs_cuda();
    let change = |config: &mut TrainerConfig| {
        config.max_epochs = 10;
        config.numerics.moments = moments;
        // The gradients overflow in the first steps, and again each time the loss scale has grown.
        config.numerics.scaler = GradScalerConfig { growth_interval: 3, ..Default::default() };
        config.numerics.scaler.init_scale = 2.0_f64.powi(26);
    };
    let runs = both(change, precision, one_cycle)?;
    assert_same(&runs);
    assert!(runs[1].record.end.replayed > 20, "{}", runs[1].record.end.replayed);
    Ok(())
}

/// A CUDA graph can use gradients in 16 bits, also in steps that overflow.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_graph_uses_gradients_in_16_bits(
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
