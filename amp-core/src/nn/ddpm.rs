use tch::{Device, Kind, Tensor};

use crate::{Error, Result, precision::is_floating};

/// The noise schedule of a diffusion model (Ho et al., arXiv:2006.11239). It adds noise to images
/// in training. In sampling it removes the noise that the model predicts. It equals diffusers'
/// `DDPMScheduler` with default options: the model predicts the noise, the variance is
/// `fixed_small`, and the images are clipped to −1 to 1.
///
/// Let β_s be the variance of the noise that step s adds, let ᾱ_t = ∏ (1 − β_s) over s from 0 to t,
/// and let ε be noise from N(0, 1). After step t, an image x with values from −1 to 1 has become
/// √ᾱ_t x + √(1 − ᾱ_t) ε.
///
/// ```no_run,standalone_crate
/// use amp_core::{Result, nn::DdpmSchedule, random::Rng, tch::Tensor};
///
/// /// Generates 8 images of 28 × 28 pixels. `model` predicts noise from images and steps.
/// fn draw(model: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
///     let (schedule, mut rng) = (DdpmSchedule::linear(1000, 1e-4, 0.02)?, Rng::with_seed(1));
///     schedule.sample(|| rng.randn(&[8, 1, 28, 28]), model)
/// }
/// # fn main() {}
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct DdpmSchedule {
    betas: Vec<f64>,
    /// ᾱ_t, for each step t.
    kept: Vec<f64>,
}

impl DdpmSchedule {
    /// Creates a schedule of `steps` steps, in which β changes linearly from `beta_start` to
    /// `beta_end`.
    ///
    /// # Errors
    /// When there are fewer than two steps, or a β is not between 0 and 1.
    pub fn linear(steps: i64, beta_start: f64, beta_end: f64) -> Result<Self> {
        let within = |beta: f64| beta > 0.0 && beta < 1.0;
        if steps < 2 || !within(beta_start) || !within(beta_end) {
            return Err(Error::config(format!(
                "a diffusion of {steps} steps with beta from {beta_start} to {beta_end}: there must be at least 2 \
                 steps, and beta must be between 0 and 1"
            )));
        }
        let slope = (beta_end - beta_start) / (steps - 1) as f64;
        let betas: Vec<f64> = (0..steps).map(|t| beta_start + slope * t as f64).collect();
        let mut left = 1.0;
        let mut keep = |beta: &f64| {
            left *= 1.0 - beta;
            left
        };
        let kept = betas.iter().map(&mut keep).collect();
        Ok(Self { betas, kept })
    }

    /// Returns the number of steps of the schedule.
    pub fn steps(&self) -> i64 {
        self.betas.len() as i64
    }

    /// Adds noise to images: returns √ᾱ_t x + √(1 − ᾱ_t) ε, where x is `original`, `[N, …]`, ε is
    /// `noise`, of the same shape, and t is the image's step in `timesteps`, int64 `[N]`. For a
    /// single image, `original` has the shape `[…]` and `timesteps` the shape `[]`.
    ///
    /// # Errors
    /// When shapes or dtypes are invalid, or, on the CPU, a step is out of range.
    pub fn add_noise(
        &self,
        original: &Tensor,
        noise: &Tensor,
        timesteps: &Tensor,
    ) -> Result<Tensor> {
        let (size, steps) = (original.size(), timesteps.size());
        let fits = size.starts_with(&steps) && steps.len() <= 1 && size == noise.size();
        if !fits || timesteps.kind() != Kind::Int64 || !is_floating(original.kind()) {
            return Err(Error::config(format!(
                "add_noise: the noise has the shape {:?}, the images {size:?} and the steps \
                 {steps:?} with the dtype {:?}, but images and noise must be floating-point \
                 tensors of the same shape [N, …], and steps must be int64 [N]",
                noise.size(),
                timesteps.kind()
            )));
        }
        if timesteps.device() == Device::Cpu && timesteps.numel() > 0 {
            let least = timesteps.f_min()?.f_int64_value(&[])?;
            let most = timesteps.f_max()?.f_int64_value(&[])?;
            self.check(least)?;
            self.check(most)?;
        }
        let kept = Tensor::f_from_slice(&self.kept)?.f_to_device(original.device())?;
        let kept = kept.f_index_select(0, &timesteps.f_reshape([-1])?)?;
        let mut shape = steps;
        shape.resize(size.len(), 1);
        let kept = kept.f_reshape(&shape)?;
        let root = |x: Tensor| -> Result<Tensor> { Ok(x.f_sqrt()?.f_to_kind(original.kind())?) };
        let image = original.f_mul(&root(kept.shallow_clone())?)?;
        Ok(image.f_add(&noise.f_mul(&root(kept.f_neg()?.f_add_scalar(1.0)?)?)?)?)
    }

    /// Takes one step of sampling: computes the images of step `timestep` − 1 from `sample`, the
    /// images of step `timestep`. First estimates the images without noise from `sample` and from
    /// `predicted`, the noise that the model predicts for `sample`, and clips the estimate to the
    /// range from −1 to 1. Then returns the mean of the posterior, which is the distribution of the
    /// images of step `timestep` − 1 given this estimate and `sample`, plus `noise` multiplied by
    /// the posterior's standard deviation. Step 0 adds no noise.
    ///
    /// # Errors
    /// When shapes differ, or the step is out of range.
    pub fn step(
        &self,
        predicted: &Tensor,
        timestep: i64,
        sample: &Tensor,
        noise: &Tensor,
    ) -> Result<Tensor> {
        let size = sample.size();
        if predicted.size() != size || noise.size() != size {
            return Err(Error::config(format!(
                "a diffusion step: the images are {size:?}, the prediction is {:?} and the noise \
                 is {:?}, but the three must have the same shape",
                predicted.size(),
                noise.size()
            )));
        }
        let at = self.check(timestep)?;
        let (beta, left) = (self.betas[at], self.kept[at]);
        let before = if at == 0 { 1.0 } else { self.kept[at - 1] };
        let image = sample.f_sub(&predicted.f_mul_scalar((1.0 - left).sqrt())?)?;
        let image = image.f_div_scalar(left.sqrt())?.f_clamp(-1.0, 1.0)?;
        let of_image = before.sqrt() * beta / (1.0 - left);
        let of_sample = (1.0 - beta).sqrt() * (1.0 - before) / (1.0 - left);
        let mean = image.f_mul_scalar(of_image)?.f_add(&sample.f_mul_scalar(of_sample)?)?;
        let variance = beta * (1.0 - before) / (1.0 - left);
        Ok(mean.f_add(&noise.f_mul_scalar(variance.sqrt())?)?)
    }

    /// Generates images. Begins with images of pure noise, and in each step removes the noise that
    /// `model` predicts, down to step 0. `noise` returns new noise of the shape `[N, …]` at each
    /// call. `model` gets the images `[N, …]` and the step of each image, int64 `[N]`. The
    /// generated images have the dtype and the device of the noise, even if the model has another
    /// dtype.
    ///
    /// # Errors
    /// When random numbers cannot be generated, the model fails, or the model's output has another
    /// shape than the images.
    pub fn sample(
        &self,
        mut noise: impl FnMut() -> Result<Tensor>,
        model: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut images = noise()?;
        let count = images.size().first().copied().unwrap_or(1);
        for step in (0..self.steps()).rev() {
            let steps = Tensor::f_full([count], step, (Kind::Int64, images.device()))?;
            let predicted = model(&images, &steps)?.f_to_kind(images.kind())?;
            images = self.step(&predicted, step, &images, &noise()?)?;
        }
        Ok(images)
    }

    fn check(&self, step: i64) -> Result<usize> {
        usize::try_from(step).ok().filter(|at| *at < self.betas.len()).ok_or_else(|| {
            Error::config(format!(
                "a diffusion of {} steps has no step {step}: steps are numbered from 0",
                self.betas.len()
            ))
        })
    }
}
