//! WGAN-GP: three critic steps for each step of the generator, with a gradient penalty.

use amp_core::{prelude::*, trainer::ManualStep};
use rstest::rstest;

use super::{randn, train};
use crate::support::seeded;

const CRITIC: usize = 0;
const GENERATOR: usize = 1;
const LATENT: i64 = 4;

#[derive(Batch)]
struct Points {
    point: Tensor,
}

#[derive(LightningModule)]
#[manual_step(adversarial)]
#[optimizer(adam, lr = 2e-3, betas = (0.5, 0.9), params = ["critic.*"])]
#[optimizer(adam, lr = 2e-3, betas = (0.5, 0.9), params = ["generator.*"])]
struct Gan {
    #[layer(sequential(linear(LATENT, 32), silu, linear(32, 2)))]
    generator: Sequential,
    #[layer(sequential(linear(2, 32), silu, linear(32, 1)))]
    critic: Sequential,
}

impl Gan {
    fn made(&self, like: &Tensor, cx: &Context) -> Result<Tensor> {
        let noise = Tensor::f_randn([like.size()[0], LATENT], (like.kind(), like.device()))?;
        cx.call("generator", None, &self.generator, &noise)
    }

    fn score(&self, points: &Tensor, cx: &Context) -> Result<Tensor> {
        Ok(cx.call("critic", None, &self.critic, points)?.f_to_kind(Kind::Float)?)
    }
}

fn adversarial(gan: &mut Gan, batch: &Points, step: &mut ManualStep<'_>) -> Result<()> {
    for _ in 0..3 {
        let value = step.forward(|step| {
            let cx = step.context();
            let made = tch_no_grad(|| gan.made(&batch.point, cx))?.f_to_kind(Kind::Float)?;
            let real = batch.point.f_to_kind(Kind::Float)?;
            let scores =
                gan.score(&made, cx)?.f_mean(None)?.f_sub(&gan.score(&real, cx)?.f_mean(None)?)?;
            let mix = Tensor::f_rand([real.size()[0], 1], (Kind::Float, real.device()))?;
            let between = made.f_lerp_tensor(&real, &mix)?.f_detach()?.f_requires_grad_(true)?;
            let sum = gan.score(&between, cx)?.f_sum(Kind::Float)?;
            let slope = Tensor::f_run_backward(&[sum], &[&between], true, true)?.remove(0);
            let norm = slope.f_norm_scalaropt_dim(2.0, [1_i64].as_slice(), false)?;
            let penalty = norm.f_sub_scalar(1.0)?.f_square()?.f_mean(None)?;
            Ok(scores.f_add(&penalty.f_mul_scalar(10.0)?)?)
        })?;
        let _ = step.optimizer(CRITIC)?.minimize(&value, None)?;
    }
    step.toggled(GENERATOR, |step| {
        let value = step.forward(|step| {
            let made = gan.made(&batch.point, step.context())?;
            Ok(gan.score(&made, step.context())?.f_mean(None)?.f_neg()?)
        })?;
        step.log("train_loss", &value, batch.point.size()[0], LogOptions::ON_EPOCH)?;
        step.optimizer(GENERATOR)?.minimize(&value, None).map(drop)
    })
}

fn tch_no_grad<T>(body: impl FnOnce() -> T) -> T {
    amp_core::tch::no_grad(body)
}

/// The generator learns to produce points around (2, -1), like the real points. It begins with
/// points around (0, 0).
#[rstest]
fn a_generator_finds_the_points(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let data = {
        let _section = seeded(2);
        let center = Tensor::from_slice(&[2.0_f32, -1.0]);
        let point = (randn(&[512, 2]) * 0.5).f_add(&center)?;
        DataModule::training("points", Points { point }, 64)
    };
    let _section = seeded(0);
    let mut gan = Gan::builder().build()?;
    train(&mut gan, &data, precision, 60)?;
    let policy = amp_core::precision::Policy::new(precision, crate::support::device());
    let cx = Context::new(policy, false);
    let like = Tensor::f_zeros([512, 2], (Kind::Float, crate::support::device()))?;
    let made = tch_no_grad(|| gan.made(&like, &cx))?.f_to_kind(Kind::Float)?;
    let mean = made.f_mean_dim([0_i64].as_slice(), false, Kind::Float)?;
    let mean = Vec::<f32>::try_from(&mean.f_to_device(Device::Cpu)?)?;
    let distance = (mean[0] - 2.0).hypot(mean[1] + 1.0);
    assert!(distance < 0.5, "{mean:?}");
    Ok(())
}
