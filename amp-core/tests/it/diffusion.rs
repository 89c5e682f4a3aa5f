//! Tests of diffusion: noise schedules and embeddings of time steps against diffusers, and grids of
//! images against torchvision.

use amp_core::{
    data::ImageGrid,
    nn::{DdpmSchedule, SinusoidalEmbedding},
    precision::Policy,
    prelude::*,
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::from_bits,
    message,
    oracle::{Lcg, integer, list, number, oracle, parsed, text},
};

const SHAPE: [i64; 3] = [2, 3, 4];

fn recorded() -> Value {
    oracle!("diffusion.json")
}

/// Returns the largest absolute difference between the elements of two tensors.
fn distance(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// The noise schedules equal those of diffusers, up to the rounding of ᾱ, the cumulative product of
/// (1 − β), which diffusers stores in f32. The formula of a step divides by ᾱ, so the rounding has
/// a larger effect in late steps, where ᾱ is small.
#[rstest]
#[case::few(0)]
#[case::many(1)]
fn schedules_are_diffusers(#[case] at: usize) -> Result<()> {
    let all = recorded();
    let own = &all["schedules"][at];
    let schedule = DdpmSchedule::linear(
        integer(own, "steps"),
        parsed(&own["beta"][0]),
        parsed(&own["beta"][1]),
    )?;
    let mut generator = Lcg(1);
    let mut drawn = || generator.tensor(&SHAPE, 128.0).to_kind(Kind::Double);
    let (image, noise, predicted) = (drawn(), drawn(), drawn());
    let of = |value: &Value, key: &str| from_bits(Kind::Double, text(value, key)).view(SHAPE);
    let steps = Tensor::from_slice(&[0, schedule.steps() - 1]);
    let noised = schedule.add_noise(&image, &noise, &steps)?;
    let expected = of(own, "noised");
    assert!(distance(&noised, &expected) <= 1e-5, "{}", distance(&noised, &expected));
    for walk in list(own, "walked") {
        let step = integer(walk, "step");
        let found = schedule.step(&predicted, step, &expected, &of(walk, "noise"))?;
        let off = distance(&found, &of(walk, "result"));
        assert!(off <= 1e-4, "step {step}: {off}");
    }
    Ok(())
}

/// If a model predicts the noise exactly, sampling from pure noise restores the image.
#[test]
fn the_exact_noise_restores_the_image() -> Result<()> {
    let schedule = DdpmSchedule::linear(50, 1e-3, 0.2)?;
    let mut generator = Lcg(3);
    let mut drawn = |by| generator.tensor(&SHAPE, by).to_kind(Kind::Double);
    let image = drawn(128.0);
    let image = &image;
    let noise_in = |x: &Tensor, steps: &Tensor| -> Result<Tensor> {
        // The noise is ε = (x − √ᾱ image) / √(1 − ᾱ). `kept` is √ᾱ: what `add_noise` returns for an
        // image of ones without noise. `of_noise` is √(1 − ᾱ): what it returns for noise of ones
        // without an image.
        let ones = Tensor::ones(SHAPE, (Kind::Double, Device::Cpu));
        let kept = schedule.add_noise(&ones, &(&ones * 0.0), steps)?;
        let of_noise = schedule.add_noise(&(&ones * 0.0), &ones, steps)?;
        Ok((x - kept * image) / of_noise)
    };
    let found = schedule.sample(|| Ok(drawn(64.0)), noise_in)?;
    assert!(distance(&found, image) <= 1e-12, "{}", distance(&found, image));
    Ok(())
}

#[test]
fn embeddings_of_steps_are_diffusers_and_the_formula() -> Result<()> {
    let steps = [0_i64, 1, 7, 999];
    for own in list(&recorded(), "embeddings") {
        let (dim, period) = (integer(own, "dim"), integer(own, "max_period") as f64);
        let layer = SinusoidalEmbedding::new(dim)?.max_period(period)?;
        let embed = |precision| {
            layer.forward(
                &Tensor::from_slice(&steps),
                &Context::new(Policy::new(precision, Device::Cpu), false),
            )
        };
        let found = embed(Precision::F32True)?;
        assert_eq!(found.kind(), Kind::Float);
        // diffusers multiplies in f32, so its angles at step 999 differ from the exact angles by
        // 6e-5.
        let expected = from_bits(Kind::Float, text(own, "result")).view_as(&found);
        assert!(distance(&found, &expected) <= 2e-4, "{}", distance(&found, &expected));
        let exact: Vec<f64> = steps
            .iter()
            .flat_map(|step| {
                let half = dim / 2;
                let angle = move |k: i64| *step as f64 * period.powf(-2.0 * k as f64 / dim as f64);
                let sines = (0..half).map(move |k| angle(k).sin());
                sines.chain((0..half).map(move |k| angle(k).cos())).collect::<Vec<_>>()
            })
            .collect();
        let exact = Tensor::from_slice(&exact).view_as(&found);
        assert!(distance(&embed(Precision::F64True)?, &exact) <= 1e-12);
        assert_eq!(embed(Precision::Bf16True)?.kind(), Kind::BFloat16);
    }
    Ok(())
}

fn grids() -> impl Iterator<Item = (Value, Tensor)> {
    let all = recorded();
    list(&all, "grids").to_vec().into_iter().map(|own| {
        let shape: Vec<i64> = serde_json::from_value(own["shape"].clone()).expect("sizes");
        let images = Lcg(2).tensor(&shape, 100.0) / 2.0 + 0.5;
        (own, images)
    })
}

#[test]
fn grids_are_torchvisions() -> Result<()> {
    for (own, images) in grids() {
        let grid = ImageGrid {
            nrow: integer(&own, "nrow"),
            padding: integer(&own, "padding"),
            pad_value: number(&own, "pad_value"),
        };
        let found = grid.of(&images)?;
        let size: Vec<i64> = serde_json::from_value(own["size"].clone()).expect("sizes");
        assert_eq!(found.size(), size);
        assert!(from_bits(Kind::Float, text(&own, "grid")).view_as(&found).equal(&found), "{own}");
    }
    Ok(())
}

/// A file written by `save_image` decodes to the pixels that Pillow read from torchvision's file.
#[cfg(feature = "images")]
#[test]
fn files_have_torchvisions_pixels() -> Result<()> {
    use amp_core::data::{decode_image, save_image};

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("grid.png");
    for (own, _) in grids() {
        let size: Vec<i64> = serde_json::from_value(own["size"].clone()).expect("sizes");
        let image = from_bits(Kind::Float, text(&own, "grid")).view(size.as_slice());
        save_image(&image, &path)?;
        let read = decode_image(&path)?.permute([1, 2, 0]).contiguous().view(-1);
        let bytes = Vec::<u8>::try_from(read).expect("bytes");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, text(&own, "pixels"));
    }
    let nan = Tensor::full([1, 2, 2], f64::NAN, (Kind::Float, Device::Cpu));
    assert!(message(save_image(&nan, &path)).contains("the image contains NaN"));
    assert!(
        message(save_image(&nan.zeros_like(), folder.path().join("a.gif"))).contains(".png, .jpg")
    );
    let wide = Tensor::zeros([2, 2, 2], (Kind::Float, Device::Cpu));
    assert!(
        message(save_image(&wide, &path))
            .contains("the image is [2, 2, 2], but must be [1, H, W] or [3, H, W]")
    );
    Ok(())
}

#[test]
fn invalid_arguments_are_refused() -> Result<()> {
    assert!(message(SinusoidalEmbedding::new(7)).contains("dim is 7, but must be even"));
    let waves = SinusoidalEmbedding::new(8)?;
    assert!(message(waves.max_period(0.0)).contains("max_period is 0, but must be positive"));
    assert!(message(DdpmSchedule::linear(1, 0.1, 0.2)).contains("at least 2 steps"));
    assert!(message(DdpmSchedule::linear(9, 0.1, 1.0)).contains("between 0 and 1"));
    let schedule = DdpmSchedule::linear(9, 0.1, 0.2)?;
    let x = Tensor::zeros(SHAPE, (Kind::Float, Device::Cpu));
    let steps = Tensor::from_slice(&[0_i64, 9]);
    assert!(
        message(schedule.add_noise(&x, &x, &steps))
            .contains("a diffusion of 9 steps has no step 9")
    );
    assert!(
        message(schedule.add_noise(&x, &x.get(0), &steps)).contains("images and noise must be")
    );
    assert!(
        message(schedule.step(&x.get(0), 3, &x, &x)).contains("the three must have the same shape")
    );
    let none = ImageGrid { nrow: 0, ..ImageGrid::default() };
    assert!(
        message(none.of(&Tensor::zeros([2, 1, 2, 2], (Kind::Float, Device::Cpu))))
            .contains("at least one image")
    );
    assert!(message(ImageGrid::default().of(&x)).contains("must be [N, C, H, W]"));
    Ok(())
}
