//! A U-Net that predicts the noise in an image from the noisy image and the time.

use amp_core::prelude::*;
use rstest::rstest;

use super::{is_replayed_on_cuda, randn, train};
use crate::support::seeded;

#[derive(Batch)]
struct Noisy {
    /// The noisy images, `[N, 1, 8, 8]`.
    x: Tensor,
    /// The fraction of noise in each image, from 0 to 1, `[N, 1]`.
    t: Tensor,
    noise: Tensor,
}

/// A stage of two convolutions. Between the two convolutions, a projection of the time t is added.
#[derive(Module)]
#[forward(|x: &Tensor, t: &Tensor| {
    let shift = time(t)?.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
    second(&first(x)?.f_add(&shift)?.f_silu()?)
})]
struct Stage {
    #[hparam]
    inputs: i64,
    #[hparam]
    outputs: i64,
    #[layer(conv2d(inputs, outputs, 3, padding = 1))]
    first: Conv2d,
    #[layer(linear(16, outputs))]
    time: Linear,
    #[layer(conv2d(outputs, outputs, 3, padding = 1))]
    second: Conv2d,
}

#[derive(LightningModule)]
#[batch(Noisy, inputs(x, t), target = noise)]
#[forward(|x, t| {
    let t = embed(t)?;
    let high = down(x, &t)?;
    let low = middle(&pool(&high)?, &t)?;
    let size = high.size();
    let raised = low.f_upsample_nearest2d([size[2], size[3]], None, None)?;
    up(&Tensor::f_cat(&[high, raised], 1)?, &t)
})]
#[loss(mse_loss)]
#[optimizer(adam, lr = 3e-3)]
struct UNet {
    #[layer(sequential(linear(1, 16), silu, linear(16, 16)))]
    embed: Sequential,
    #[layer(Stage::builder(1, 8).build()?)]
    down: Stage,
    #[layer(max_pool2d(2))]
    pool: MaxPool2d,
    #[layer(Stage::builder(8, 8).build()?)]
    middle: Stage,
    #[layer(Stage::builder(16, 1).build()?)]
    up: Stage,
}

/// Generates images of stripes with noise of any strength: (1 - t) image + t noise. The model must
/// use t, because the image alone does not show how strong the noise is.
fn noisy(count: i64) -> Result<Noisy> {
    let stripes = Tensor::f_arange(8, (Kind::Float, Device::Cpu))?.f_remainder(2.0)?;
    let image = stripes.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?.f_view([1, 1, 1, 8])?;
    let noise = randn(&[count, 1, 8, 8]);
    let t = Tensor::f_rand([count, 1], (Kind::Float, Device::Cpu))?;
    let strength = t.f_view([count, 1, 1, 1])?;
    let x = image.f_mul(&strength.f_neg()?.f_add_scalar(1.0)?)?.f_add(&noise.f_mul(&strength)?)?;
    Ok(Noisy { x, t, noise })
}

#[rstest]
fn a_unet_learns_to_predict_the_noise(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let data = {
        let _section = seeded(5);
        DataModule::new("noisy stripes", noisy(512)?, noisy(128)?, 32)
    };
    let _section = seeded(0);
    let mut model = UNet::builder().build()?;
    let record = train(&mut model, &data, precision, 10)?;
    let loss = record.last("val_loss").expect("val_loss");
    // The variance of the noise is 1, which is the loss of a model that always outputs 0.
    assert!(loss < 0.5, "{loss}");
    is_replayed_on_cuda(&record);
    Ok(())
}
