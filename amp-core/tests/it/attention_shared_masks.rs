//! Tests of layers that share one attention mask.

use amp_core::{
    Result,
    nn::{AttentionMask, Context, TransformerEncoderLayer, TransformerEncoderLayerConfig, place},
    precision::{Policy, Precision},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::{device, seeded};

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, device()))
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}

/// Two layers that share one mask made by `for_layers`, which is converted only once, give the same
/// outputs and gradients, bit for bit, as with a separate mask for each layer. The first text of
/// the batch has no padding, the last one consists only of padding.
#[rstest]
fn a_mask_that_layers_share_changes_nothing(
    #[values(Precision::F32True, Precision::Bf16Mixed, Precision::F16Mixed)] precision: Precision,
    #[values(false, true)] additive: bool,
) -> Result<()> {
    let _generator = seeded(11);
    let policy = Policy::new(precision, device());
    let config =
        TransformerEncoderLayerConfig { dropout: 0.0, ..TransformerEncoderLayerConfig::new(16, 2) };
    let layers = [TransformerEncoderLayer::new(config)?, TransformerEncoderLayer::new(config)?];
    for layer in &layers {
        place(layer, policy, &Default::default())?;
    }
    let padding = Tensor::from_slice(&[false, false, false, false, true, true, true, true, true])
        .view([3, 3])
        .to_device(device());
    let scores = random(&[2, 3, 3]).view([1, 2, 3, 3]).detach();
    let mask = || {
        let mut mask = AttentionMask::padding(&padding);
        mask.attn_mask = additive.then(|| scores.shallow_clone());
        mask
    };
    let x = random(&[3, 3, 16]);
    let run = |masks: [&AttentionMask; 2]| -> Result<(Tensor, Tensor)> {
        let cx = Context::new(policy, true);
        let given = x.detach().set_requires_grad(true);
        let output = {
            let _autocast = policy.autocast()?;
            let first = layers[0].forward_masked(&given, masks[0], &cx)?;
            layers[1].forward_masked(&first, masks[1], &cx)?
        };
        output.to_kind(Kind::Float).square().sum(Kind::Float).backward();
        Ok((output.detach(), given.grad()))
    };
    let shared = mask().for_layers();
    let (seen, expected) = (run([&shared, &shared])?, run([&mask(), &mask()])?);
    assert!(is_finite(&expected.0) && is_finite(&expected.1));
    assert!(seen.0.equal(&expected.0) && seen.1.equal(&expected.1));
    Ok(())
}
