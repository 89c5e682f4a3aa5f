//! Tests of image transforms against torchvision 0.26 (fixtures/oracles/images.json).

use amp_core::{
    data::{
        CenterCrop, ColorJitter, Compose, MixUp, Normalize, RandomHorizontalFlip,
        RandomResizedCrop, Resize, Transform,
    },
    prelude::*,
    random::Rng,
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::values,
    message,
    oracle::{integer, list, number, oracle, text},
};

pub(crate) fn recorded() -> Value {
    oracle!("images.json")
}

fn shape(value: &Value) -> Vec<i64> {
    list(value, "shape").iter().map(|size| size.as_i64().expect("a size")).collect()
}

/// Returns the bytes of a text of hex digits.
pub(crate) fn bytes(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Returns the pixels of a recorded image as a tensor.
pub(crate) fn picture(value: &Value) -> Tensor {
    Tensor::from_slice(&bytes(text(value, "bytes"))).view(shape(value).as_slice())
}

fn apply(transform: &dyn Transform, image: &Tensor) -> Result<Tensor> {
    transform.apply(image.shallow_clone(), &mut Rng::with_seed(1))
}

/// Asserts that the image has the expected size, and that no pixel differs from the expected image
/// by more than `levels` of 256 levels.
#[track_caller]
pub(crate) fn near(seen: &Tensor, expected: &Value, levels: i64) {
    let expected = picture(expected);
    assert_eq!((seen.size(), seen.kind()), (expected.size(), Kind::Uint8));
    let apart = (seen.to_kind(Kind::Int64) - expected.to_kind(Kind::Int64)).abs().max();
    assert!(apart.int64_value(&[]) <= levels, "pixels differ by {apart} levels");
}

fn sizes(value: &Value, key: &str) -> Vec<i64> {
    list(value, key).iter().map(|size| size.as_i64().expect("a size")).collect()
}

/// Images are resized as in torchvision. Either the length of the shorter side is given or both
/// lengths, and the result may be smaller or larger than the image. A pixel may differ by one of
/// 256 levels, because the kernels of different CPUs round differently.
#[test]
fn images_are_resized_as_in_torchvision() -> Result<()> {
    let all = recorded();
    for case in list(&all, "resize") {
        let image = picture(&all["image"]);
        let image = if text(case, "of") == "tall" { image.transpose(1, 2) } else { image };
        let resize = match sizes(case, "size").as_slice() {
            [size] => Resize::new(*size),
            size => Resize::to(size[0], size[1]),
        };
        near(&apply(&resize, &image)?, &case["result"], 1);
    }
    Ok(())
}

/// A part that is cropped from an image is resized as in torchvision: interpolation does not read
/// the pixels around the part.
#[test]
fn parts_are_resized_as_in_torchvision() -> Result<()> {
    let all = recorded();
    for case in list(&all, "resized_crop") {
        let region = sizes(case, "region");
        let part =
            picture(&all["image"]).narrow(1, region[0], region[2]).narrow(2, region[1], region[3]);
        let size = integer(case, "size");
        near(&apply(&Resize::to(size, size), &part)?, &case["result"], 1);
    }
    Ok(())
}

/// Center crops that are smaller or larger than the image equal torchvision's.
#[test]
fn center_crops_equal_torchvisions() -> Result<()> {
    let all = recorded();
    for case in list(&all, "center_crop") {
        let size = sizes(case, "size");
        let crop = CenterCrop::to(size[0], size[1]);
        near(&apply(&crop, &picture(&all["image"]))?, &case["result"], 0);
    }
    Ok(())
}

#[test]
fn colors_change_as_in_torchvision() -> Result<()> {
    let all = recorded();
    for case in list(&all, "colors") {
        let (change, factor) = (text(case, "change"), number(case, "factor"));
        let (jitter, factor) = (ColorJitter::new(), (factor, factor));
        let jitter = match change {
            "brightness" => jitter.brightness(factor)?,
            "contrast" => jitter.contrast(factor)?,
            "saturation" => jitter.saturation(factor)?,
            _ => jitter.hue(factor)?,
        };
        let changed = apply(&jitter, &picture(&all["image"]))?;
        assert!(!changed.equal(&picture(&all["image"])), "{change} {factor:?}");
        near(&changed, &case["result"], 1);
    }
    Ok(())
}

#[test]
fn values_are_normalized_as_in_torchvision() -> Result<()> {
    let all = recorded();
    let digits = text(&all["normalize"], "bits");
    let bits = digits.as_bytes().chunks(8).map(|digits| {
        let digits = str::from_utf8(digits).expect("digits");
        f32::from_bits(u32::from_str_radix(digits, 16).expect("hex digits"))
    });
    let seen = apply(&Normalize::imagenet(), &picture(&all["image"]))?;
    assert_eq!((seen.size(), seen.kind()), (shape(&all["normalize"]), Kind::Float));
    assert_eq!(values(&seen), bits.map(f64::from).collect::<Vec<_>>());
    Ok(())
}

/// With a probability of 1, all images are mirrored, and with 0, none. With a probability in
/// between, about this fraction of the images is mirrored.
#[test]
fn some_images_are_mirrored() -> Result<()> {
    let all = recorded();
    let image = picture(&all["image"]);
    near(&apply(&RandomHorizontalFlip::new(1.0), &image)?, &all["flip"], 0);
    assert!(apply(&RandomHorizontalFlip::new(0.0), &image)?.equal(&image));
    let (flip, mut rng) = (RandomHorizontalFlip::new(0.25), Rng::with_seed(2));
    let mirrored = (0..2000).filter(|_| {
        let image = flip.apply(image.shallow_clone(), &mut rng).expect("an image");
        !image.equal(&picture(&all["image"]))
    });
    let mirrored = mirrored.count() as f64;
    assert!((mirrored - 500.0).abs() <= 5.0 * (2000.0_f64 * 0.25 * 0.75).sqrt(), "{mirrored}");
    Ok(())
}

/// With the same seed, an augmentation gives the same image, and with another seed it gives another
/// image. The values of floating-point images stay between 0 and 1.
#[test]
fn random_changes_follow_from_their_numbers() -> Result<()> {
    let augment = || -> Result<Compose> {
        let jitter =
            ColorJitter::new().brightness(0.4)?.contrast(0.4)?.saturation(0.4)?.hue(0.1)?;
        Ok(Compose::new().then(RandomResizedCrop::new(9)).then(jitter))
    };
    let image = picture(&recorded()["image"]);
    let float = image.to_kind(Kind::Float) / 255.0;
    let of =
        |image: &Tensor, seed| augment()?.apply(image.shallow_clone(), &mut Rng::with_seed(seed));
    for seed in 0..20 {
        let (one, other) = (of(&image, seed)?, of(&image, seed)?);
        assert_eq!((one.size(), one.kind()), (vec![3, 9, 9], Kind::Uint8));
        assert!(one.equal(&other) && !one.equal(&of(&image, seed + 100)?));
        let exact = of(&float, seed)?;
        assert!(exact.min().double_value(&[]) >= 0.0 && exact.max().double_value(&[]) <= 1.0);
        let apart = (exact * 255.0 - one.to_kind(Kind::Float)).abs().max().double_value(&[]);
        assert!(
            apart < 12.0,
            "uint8 and f32 images differ by {apart}, more than by rounding between steps"
        );
    }
    Ok(())
}

#[rstest]
#[case(&Resize::new(0), "an image cannot be resized to 0 x 0 pixels: both sizes must be at least 1")]
#[case(&RandomResizedCrop::new(4).scale(0.5, 0.1), "RandomResizedCrop: the scale is (0.5, 0.1) and the ratio")]
#[case(&RandomResizedCrop::new(4).ratio(0.0, 1.0), "RandomResizedCrop: the scale is (0.08, 1.0) and the ratio is (0.0")]
#[case(&Normalize::new(&[0.5], &[0.5]).expect("a mean"), "Normalize has means for 1 channels, but the image has 3")]
fn invalid_changes_are_refused(#[case] transform: &dyn Transform, #[case] says: &str) {
    let text = message(apply(transform, &picture(&recorded()["image"])));
    assert!(text.starts_with(says), "{text}");
    let text = message(apply(transform, &Tensor::zeros([4, 4], (Kind::Float, Device::Cpu))));
    assert!(
        text.starts_with("the image is [4, 4] of dtype Float, but must be [C, H, W]"),
        "{text}"
    );
}

#[test]
fn invalid_factors_are_refused() -> Result<()> {
    let jitter = ColorJitter::new;
    let text = message(jitter().brightness(-0.5));
    assert_eq!(
        text,
        "the range of brightness is 1.5 to 0.5, but both limits must be from 0 to inf, the lower one first"
    );
    let text = message(jitter().contrast((-0.5, 1.0)));
    assert_eq!(
        text,
        "the range of contrast is -0.5 to 1, but both limits must be from 0 to inf, the lower one first"
    );
    let text = message(jitter().hue(0.6));
    assert_eq!(
        text,
        "the range of hue is -0.6 to 0.6, but both limits must be from -0.5 to 0.5, the lower one first"
    );
    assert!(
        message(Normalize::new(&[0.5], &[0.0]))
            .starts_with("Normalize: the mean is [0.5] and the std is [0.0]")
    );
    let batch = Batch::new(
        Tensor::zeros([2, 1], (Kind::Float, Device::Cpu)),
        Tensor::from_slice(&[0_i64, 3]),
    )?;
    let mix = |batch: &Batch| {
        message(MixUp::new(0.2, 3).and_then(|mix| mix.apply(batch, &mut Rng::with_seed(1))))
    };
    assert_eq!(mix(&batch), "MixUp: a target is the class 3, but the classes are 0 to 2");
    let whole = Batch::new(batch.input.to_kind(Kind::Uint8), batch.target)?;
    assert_eq!(
        mix(&whole),
        "MixUp needs floating-point images, but these are Uint8: normalize them first"
    );
    assert_eq!(
        message(MixUp::new(0.0, 3)),
        "MixUp: alpha is 0 and the number of classes is 3, but both must be positive"
    );
    Ok(())
}
