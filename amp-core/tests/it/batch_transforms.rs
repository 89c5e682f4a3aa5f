//! Tests of transforms that change a whole batch on its device. They must change each image as if
//! they were applied to this image alone.

use amp_core::{
    data::{
        CenterCrop, ColorJitter, Compose, CutMix, Normalize, RandomCrop, RandomHorizontalFlip,
        RandomResizedCrop, Resize, Transform,
    },
    prelude::*,
    random::{Draws, Rng},
    tch::IndexOp,
};
use rstest::rstest;

use crate::support::{
    bits::{sha256, values},
    device, message, needs_cuda,
    oracle::{integer, list, number, parsed},
};

pub(crate) const COUNT: i64 = 12;

/// Returns uint8 images `[N, channels, 9, 11]`.
pub(crate) fn pixels(channels: i64) -> Tensor {
    let numbers = Tensor::arange(COUNT * channels * 99, (Kind::Int64, Device::Cpu));
    let pixels = (&numbers * 7919 + &numbers * &numbers * 13).remainder(256);
    pixels.view([COUNT, channels, 9, 11]).to_kind(Kind::Uint8)
}

pub(crate) fn images(channels: i64, kind: Kind) -> Tensor {
    match kind {
        Kind::Uint8 => pixels(channels),
        kind => pixels(channels).to_kind(kind) / 255.0,
    }
}

fn rngs() -> Vec<Rng> {
    (0..COUNT).map(|index| Draws::new(3, 1).rng(index)).collect()
}

fn jitter() -> ColorJitter {
    let jitter = ColorJitter::new().brightness(0.5).and_then(|jitter| jitter.contrast(0.9));
    jitter
        .and_then(|jitter| jitter.saturation(1.5))
        .and_then(|jitter| jitter.hue(0.4))
        .expect("factors")
}

fn some_jitter() -> ColorJitter {
    ColorJitter::new()
        .contrast((0.2, 0.4))
        .and_then(|jitter| jitter.hue((0.1, 0.3)))
        .expect("factors")
}

pub(crate) fn composed() -> Compose {
    Compose::new()
        .then(RandomCrop::to(8, 10).padding(2))
        .then(RandomHorizontalFlip::new(0.5))
        .then(jitter())
        .then(RandomResizedCrop::new(6))
        .then(Normalize::imagenet())
}

/// A transform that uses random numbers for each image, and that has no implementation for whole
/// batches.
struct Plain;

impl Transform for Plain {
    fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor> {
        Ok(image.roll([rng.below(5)], [2]))
    }
}

/// On the CPU, transforming a whole batch gives the same bits as transforming its images one by
/// one, in every dtype. It also takes the same random numbers from the generator of each image.
#[rstest]
#[case::flip(&RandomHorizontalFlip::new(0.5))]
#[case::crop(&RandomCrop::to(5, 7))]
#[case::padded_crop(&RandomCrop::new(9).padding(3))]
#[case::resize(&Resize::new(5))]
#[case::resize_to(&Resize::to(13, 7))]
#[case::middle(&CenterCrop::to(12, 4))]
#[case::resized_crop(&RandomResizedCrop::new(6))]
#[case::jitter(&jitter())]
#[case::some_jitter(&some_jitter())]
#[case::normalize(&Normalize::imagenet())]
#[case::composed(&composed())]
#[case::own(&Plain)]
fn a_batch_is_changed_as_each_image_by_itself(
    #[case] transform: &dyn Transform,
    #[values(Kind::Uint8, Kind::Float, Kind::Double)] kind: Kind,
) -> Result<()> {
    let images = images(3, kind);
    let before = sha256(&images);
    let (mut one, mut all) = (rngs(), rngs());
    let apart: Result<Vec<Tensor>> = one
        .iter_mut()
        .enumerate()
        .map(|(at, rng)| transform.apply(images.i(at as i64), rng))
        .collect();
    let together = transform.apply_batch(images.shallow_clone(), &mut all)?;
    let apart = Tensor::f_stack(&apart?, 0)?;
    assert_eq!((together.kind(), together.size()), (apart.kind(), apart.size()));
    assert_eq!(sha256(&together), sha256(&apart));
    assert_eq!(one, all, "the states of the random generators");
    assert_eq!(sha256(&images), before, "the transform does not change its input");
    Ok(())
}

/// Transforming a batch on CUDA gives the same result as on the CPU. If a transform does
/// arithmetic, a pixel may differ by one of its 256 levels.
#[rstest]
#[case::flip(&RandomHorizontalFlip::new(0.5), 0.0)]
#[case::crop(&RandomCrop::new(9).padding(3), 0.0)]
#[case::jitter(&jitter(), 1.0)]
#[case::resize(&Resize::new(5), 1.0)]
#[case::resized_crop(&RandomResizedCrop::new(6), 1.0)]
#[case::composed(&composed(), 2.0)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_batch_on_cuda_is_that_on_the_cpu(
    #[case] transform: &dyn Transform,
    #[case] levels: f64,
) -> Result<()> {
    needs_cuda();
    let images = images(3, Kind::Uint8);
    let here = transform.apply_batch(images.shallow_clone(), &mut rngs())?;
    let there = transform.apply_batch(images.to(device()), &mut rngs())?;
    assert_eq!(there.device(), device());
    // One level of a pixel is 1/255, and normalization divides it by a standard deviation of at
    // least 0.224.
    let level = if here.kind() == Kind::Uint8 { 1.0 } else { 1.0 / 255.0 / 0.224 };
    let off = (there.to(Device::Cpu).to_kind(Kind::Double) - here.to_kind(Kind::Double)).abs();
    let most = off.max().double_value(&[]);
    assert!(most <= 1.001 * levels * level, "{most}");
    Ok(())
}

/// `RandomCrop` at the recorded positions gives the same crops as torchvision.
#[test]
fn parts_are_torchvisions() -> Result<()> {
    let all = crate::transforms::recorded();
    let image = crate::transforms::picture(&all["image"]);
    for case in list(&all, "crop") {
        let ints = |key| -> Vec<i64> {
            list(case, key).iter().map(|value| value.as_i64().expect("an integer")).collect()
        };
        let (size, place, padding) = (ints("size"), ints("place"), integer(case, "padding"));
        let crop = RandomCrop::to(size[0], size[1]).padding(padding);
        let expected = crate::transforms::picture(&case["result"]);
        // Returns whether a generator with this seed gives the recorded position.
        let wanted = |seed: &u64| {
            let mut rng = Rng::with_seed(*seed);
            let [h, w] = [20, 28].map(|own| own + 2 * padding);
            [rng.below(h - size[0] + 1), rng.below(w - size[1] + 1)] == place[..]
        };
        let seed = (0..100_000).find(wanted).expect("a seed");
        let seen = crop.apply(image.shallow_clone(), &mut Rng::with_seed(seed))?;
        assert_eq!((seen.size(), values(&seen)), (expected.size(), values(&expected)));
    }
    Ok(())
}

#[rstest]
#[case(&RandomCrop::new(12), &[2, 3, 9, 11], "RandomCrop cannot crop images that are 9 x 11 pixels")]
#[case(&RandomCrop::new(0), &[2, 3, 9, 11], "RandomCrop cannot crop images that are 9 x 11 pixels with padding 0 to 0 x 0: ")]
#[case(&RandomCrop::new(5).padding(-1), &[2, 3, 9, 11], "RandomCrop cannot crop images that are 7 x 9 pixels with padding -1 to 5 x 5: ")]
#[case(&RandomHorizontalFlip::new(0.5), &[3, 9, 11], "the images are [3, 9, 11] of dtype Float with 2 random number generators")]
#[case(&RandomHorizontalFlip::new(0.5), &[3, 3, 9, 11], "the images are [3, 3, 9, 11] of dtype Float with 2 random number generators")]
#[case(&jitter(), &[2, 2, 9, 11], "the colors of an image with 2 channels")]
#[case(&Normalize::imagenet(), &[2, 1, 9, 11], "Normalize has means for 3 channels")]
fn images_that_do_not_fit_are_refused(
    #[case] transform: &dyn Transform,
    #[case] size: &[i64],
    #[case] says: &str,
) {
    let images = Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let text = message(transform.apply_batch(images, &mut [Rng::with_seed(1), Rng::with_seed(2)]));
    assert!(text.starts_with(says), "{text}");
}

/// The rectangles that `CutMix` pastes, and the fractions by which it mixes the classes, equal
/// those of torchvision 0.26. fixtures/oracles/images.json contains the fractions and positions
/// that torchvision was given instead of random numbers. `CutMix` gets the same ones here.
#[test]
fn rectangles_are_torchvisions() -> Result<()> {
    let all = crate::transforms::recorded();
    let images = Tensor::arange(3 * 2 * 5 * 7, (Kind::Float, Device::Cpu)).view([3, 2, 5, 7]);
    let batch = Batch::new(images, Tensor::from_slice(&[0_i64, 1, 1]))?;
    let mix = CutMix::new(1.0, 2)?;
    for case in list(&all, "cutmix") {
        let integers = |key| -> Vec<i64> {
            list(case, key).iter().map(|value| value.as_i64().expect("an integer")).collect()
        };
        let place = integers("place");
        let mixed = mix.cut(&batch, number(case, "share"), (place[1], place[0]))?;
        let expected = integers("images").into_iter().map(|pixel| pixel as f64);
        assert_eq!(values(&mixed.input), expected.collect::<Vec<_>>(), "{case}");
        let expected = list(case, "targets").iter().map(|share| f64::from(parsed(share) as f32));
        assert_eq!(values(&mixed.target), expected.collect::<Vec<_>>(), "{case}");
    }
    let text = message(mix.cut(&batch, 1.5, (0, 0)));
    assert!(text.starts_with("CutMix keeps the fraction 1.5 of images of 5 x 7 pixels"), "{text}");
    assert!(message(mix.cut(&batch, 0.5, (5, 0))).contains("around row 5"));
    Ok(())
}
