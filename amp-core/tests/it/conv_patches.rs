//! Tests of 16-bit convolutions whose stride equals the kernel size, such as patch embeddings. On
//! CUDA (`AMP_DEVICE=cuda`), such a convolution is computed as a matrix product. The expected
//! results are those of libtorch's convolution in f64 on the CPU.

use amp_core::{
    nn::{Context, Conv2dConfig, Module},
    precision::{Policy, Precision},
    prelude::*,
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device,
    layers::{draw, fill, rounding},
    seeded,
};

/// The output and the gradients equal those in f64. The cases are patches of 4 and 16 pixels,
/// images that the patches cover completely or not, layers with and without bias, and images that
/// are contiguous or in channels_last. On devices other than CUDA, libtorch's convolution runs.
#[rstest]
fn patches_are_those_of_f64(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed, Precision::Bf16True)]
    precision: Precision,
    #[values([4, 12, 20], [16, 32, 37], [4, 7, 9])] sizes: [i64; 3],
    #[values(true, false)] bias: bool,
    #[values(true, false)] channels_last: bool,
) -> Result<()> {
    let [side, height, width] = sizes;
    let _generator = seeded(41);
    let policy = Policy::new(precision, device());
    let (compute, storage) = (precision.compute(), precision.storage());
    let config = Conv2dConfig { bias, stride: side.into(), ..Conv2dConfig::new(3, 40, side) };
    let layer = Conv2d::new(config)?;
    let own = fill(&layer, policy, 0.1, 0.0)?;
    let given = draw(&[3, 3, height, width], compute, 1.0, 0.0).to_kind(storage);
    let mut x = given.to(device());
    if channels_last {
        x = x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    }
    let x = x.set_requires_grad(true);
    let output = {
        let _region = policy.autocast()?;
        layer.forward(&x, &Context::new(policy, true))?
    };
    let incoming = draw(&output.size(), compute, 1.0, 0.0);
    (&output * incoming.to(device())).sum(Kind::Double).backward();

    let leaf = |tensor: &Tensor| wide(tensor).set_requires_grad(true);
    let exact_in = leaf(&given);
    let exact_own: Vec<Tensor> =
        own.iter().map(|own| leaf(&own.to_kind(compute).to_kind(Kind::Double))).collect();
    let exact = exact_in.conv2d(&exact_own[0], exact_own.get(1), [side, side], [0, 0], [1, 1], 1);
    (&exact * wide(&incoming)).sum(Kind::Double).backward();
    assert_eq!(output.size(), exact.size());
    let grads = own.iter().zip(&exact_own).map(|(own, exact)| (own.grad(), exact.grad()));
    let all = [(output.detach(), exact.detach()), (x.grad(), exact_in.grad())].into_iter();
    for (at, (seen, exact)) in all.chain(grads).enumerate() {
        let (off, bound) = (relative(&seen, &exact), 3.0 * rounding(compute));
        assert!(off < bound, "{at}: error {off}, bound {bound}");
    }
    Ok(())
}
