//! Tests of [`DroppedWeights`]: an attention in f32 drops the weights that an attention in 16 bits
//! has dropped on a CUDA device.

use amp_core::{
    nn::{AttentionOptions, DroppedWeights, scaled_dot_product_attention},
    prelude::*,
    random::RandomState,
};
use rstest::rstest;

use crate::support::{device, seeded};

const CUDA: &str = "these tests run on a CUDA device";

/// Draws an f32 tensor whose values f16 and bf16 can represent. It requires a gradient.
fn drawn(heads: i64, length: i64, width: i64) -> Result<Tensor> {
    let integers =
        Tensor::f_randint_low(-128, 128, [2, heads, length, width], (Kind::Float, device()))?;
    Ok(integers.f_div_scalar(128.0)?.f_set_requires_grad(true)?)
}

/// Computes ‖a − b‖/‖b‖.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |x: &Tensor| x.norm().double_value(&[]);
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    norm(&(a - &b)) / norm(&b)
}

/// Checks that outputs and gradients in f32 with the recorded masks differ from those in 16 bits by
/// rounding only, for each attention kernel that libtorch chooses, and that the random generator
/// moves as far. The oracle is libtorch's own kernel.
#[rstest]
#[case::plain([4, 4, 70, 70], false, false, Kind::Half)]
#[case::plain_in_bf16([4, 4, 70, 70], false, false, Kind::BFloat16)]
#[case::causal([4, 4, 128, 128], true, false, Kind::Half)]
#[case::grouped([4, 2, 128, 128], true, false, Kind::BFloat16)]
#[case::masked([4, 4, 64, 96], false, true, Kind::Half)]
#[case::masked_in_bf16([4, 4, 64, 96], false, true, Kind::BFloat16)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn an_attention_in_f32_drops_the_recorded_weights(
    #[case] sizes: [i64; 4],
    #[case] is_causal: bool,
    #[case] has_mask: bool,
    #[case] kind: Kind,
) -> Result<()> {
    assert!(device().is_cuda(), "{CUDA}");
    let [heads, kv_heads, queries, keys] = sizes;
    let _section = seeded(5);
    let wide = [drawn(heads, queries, 64)?, drawn(kv_heads, keys, 64)?, drawn(kv_heads, keys, 64)?];
    let narrow = |x: &Tensor| x.detach().to_kind(kind).set_requires_grad(true);
    let narrow = [narrow(&wide[0]), narrow(&wide[1]), narrow(&wide[2])];
    // A boolean mask, which hides some keys but never the first one.
    let mask = Tensor::f_randint(4, [2, 1, queries, keys], (Kind::Int, device()))?.f_gt(0)?;
    let _ = mask.f_narrow(-1, 0, 1)?.f_fill_(1)?;
    let options = AttentionOptions {
        attn_mask: has_mask.then_some(&mask),
        dropout_p: 0.3,
        is_causal,
        scale: None,
    };
    let attend = |[q, k, v]: &[Tensor; 3]| scaled_dot_product_attention(q, k, v, &options);
    let before = RandomState::read(device())?;
    let expected = attend(&narrow)?;
    let after = RandomState::read(device())?;

    let dropped = DroppedWeights::new()?;
    assert!(dropped.is_empty()?, "nothing is recorded yet");
    before.restore(device())?;
    let recorded = {
        let _pass = dropped.record()?;
        attend(&narrow)?
    };
    assert!(recorded.equal(&expected), "recording does not change the output");
    assert!(RandomState::read(device())?.is_same(&after)?, "nor the random generator");
    assert!(!dropped.is_empty()?, "the call is recorded");

    before.restore(device())?;
    let followed = {
        let _pass = dropped.follow()?;
        attend(&wide)?
    };
    assert!(RandomState::read(device())?.is_same(&after)?, "the generator moves as far");
    assert!(!dropped.differ()?, "the calls are the recorded ones");
    let rounding = if kind == Kind::Half { 2e-3 } else { 1.6e-2 };
    let away = distance(&recorded, &followed);
    assert!(away < rounding, "outputs: {away}");
    let gradient = Tensor::randn_like(&followed);
    (&followed * &gradient).sum(Kind::Float).backward();
    (&recorded * gradient.to_kind(kind)).sum(Kind::Float).backward();
    for (name, narrow, wide) in [
        ("queries", &narrow[0], &wide[0]),
        ("keys", &narrow[1], &wide[1]),
        ("values", &narrow[2], &wide[2]),
    ] {
        let away = distance(&narrow.grad(), &wide.grad());
        assert!(away < 2.0 * rounding, "gradient of {name}: {away}");
    }
    Ok(())
}

/// Checks that a pass with fewer, more or other calls than the recorded one is found.
#[rstest]
#[case::fewer(&[])]
#[case::more(&[16, 16])]
#[case::of_another_shape(&[8])]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_pass_with_other_calls_differs(#[case] lengths: &[i64]) -> Result<()> {
    assert!(device().is_cuda(), "{CUDA}");
    let _section = seeded(6);
    let attend = |length: i64| {
        let x = drawn(2, length, 16)?;
        let options = AttentionOptions { dropout_p: 0.5, ..AttentionOptions::default() };
        scaled_dot_product_attention(&x, &x, &x, &options)
    };
    let dropped = DroppedWeights::new()?;
    {
        let _pass = dropped.record()?;
        let _ = attend(16)?;
    }
    {
        let _pass = dropped.follow()?;
        let _ = attend(16)?;
    }
    assert!(!dropped.differ()?, "the same call");
    {
        let _pass = dropped.follow()?;
        for length in lengths {
            let _ = attend(*length)?;
        }
    }
    assert!(dropped.differ()?, "{lengths:?}");
    Ok(())
}

/// Checks that nothing is recorded or changed on a CPU and without dropout.
#[test]
fn attention_on_a_cpu_or_without_dropout_is_left_alone() -> Result<()> {
    let _section = seeded(7);
    let x = drawn(2, 8, 16)?;
    let p = if device().is_cuda() { 0.0 } else { 0.5 };
    let options = AttentionOptions { dropout_p: p, ..AttentionOptions::default() };
    let attend = || scaled_dot_product_attention(&x, &x, &x, &options);
    let before = RandomState::read(device())?;
    let expected = attend()?;
    let dropped = DroppedWeights::new()?;
    for is_recording in [true, false] {
        before.restore(device())?;
        let _pass = if is_recording { dropped.record()? } else { dropped.follow()? };
        assert!(attend()?.equal(&expected), "recording: {is_recording}");
    }
    assert!(dropped.is_empty()? && !dropped.differ()?, "nothing is recorded");
    Ok(())
}
