//! Measures the time to load an image. JPEGs of 500×375 pixels and about 100 kB, like ImageNet's,
//! are decoded, cropped and scaled to 224×224, mirrored and normalized on one thread. Decoding and
//! the transforms are also measured separately. Then worker threads prepare batches of 32.
//!
//! `OMP_NUM_THREADS=1 cargo bench -p tests --bench images` prints how many images one core loads
//! per second of CPU time. Divide the number of images per second that a GPU trains on by this
//! number. The result is the number of cores that the GPU needs. The benchmark also prints how many
//! images one core loads without mirroring and normalization, which can also run on the GPU
//! (`SharedDataset::transformed`). If `AMP_PYTHON` names a Python with torchvision and Pillow,
//! torchvision and this project take turns to prepare the same files, and the benchmark prints how
//! many images torchvision loads.

mod peer;

use std::ffi::OsStr;

use amp_core::{
    Result,
    data::{
        Compose, DataLoader, ImageFolder, Loading, MapDataset, Normalize, Placement,
        RandomHorizontalFlip, RandomResizedCrop, Transform, decode_image,
    },
    precision::{Policy, Precision},
    random::{Draws, Rng},
    tch::{Device, Tensor},
};
use criterion::{Criterion, Throughput};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};

use peer::{Peer, Seconds, medians};

const FILES: i64 = 64;
const PREPARED: i64 = 4 * FILES;
const BATCH: i64 = 32;
const WIDTH: u32 = 500;
const HEIGHT: u32 = 375;

fn augment() -> Compose {
    Compose::new()
        .then(RandomResizedCrop::new(224))
        .then(RandomHorizontalFlip::new(0.5))
        .then(Normalize::imagenet())
}

/// Draws smooth waves with some noise as a JPEG.
fn jpeg(number: i64) -> Vec<u8> {
    let mut rng = Rng::with_seed(number.cast_unsigned());
    let waves: Vec<[f64; 3]> = (0..12)
        .map(|_| [rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2), rng.uniform(0.0, 6.3)])
        .collect();
    let mut pixels = Vec::new();
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let noise = rng.uniform(-20.0, 20.0);
            for channel in 0..3 {
                let own = waves[4 * channel..4 * channel + 4].iter();
                let wave = own.map(|[a, b, c]| (a * f64::from(x) + b * f64::from(y) + c).sin());
                pixels.push((128.0 + 25.0 * wave.sum::<f64>() + noise) as u8);
            }
        }
    }
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, 85)
        .encode(&pixels, WIDTH, HEIGHT, ExtendedColorType::Rgb8)
        .expect("an image");
    file
}

/// Loads each file four times and applies the transforms.
fn prepare(set: &ImageFolder) {
    for at in 0..PREPARED {
        set.get(at % FILES, &mut Draws::new(2, 0).rng(at)).expect("an example");
    }
}

/// Prints how many images are prepared per second of CPU time, as medians of five rounds. Other
/// programs have little effect on CPU time.
fn compare(folder: &OsStr, whole: &ImageFolder, part: &ImageFolder) {
    let rate = |all: &[Seconds]| PREPARED as f64 / medians(all)[1];
    let mut python = Peer::start("images", folder);
    let [mut ours, mut parts, mut theirs] = [const { Vec::new() }; 3];
    for _ in 0..5 {
        ours.push(peer::seconds(|| prepare(whole)));
        parts.push(peer::seconds(|| prepare(part)));
        theirs.extend(python.as_mut().map(|python| python.run("all")));
    }
    println!(
        "decoded, cropped, mirrored, normalized: {:.0} images per second of CPU time",
        rate(&ours)
    );
    println!("decoded and cropped: {:.0} images per second of CPU time", rate(&parts));
    if !theirs.is_empty() {
        let times = rate(&ours) / rate(&theirs);
        println!(
            "decoded, cropped, mirrored, normalized by torchvision: {:.0} images per second of CPU time; \
             amp prepares {times:.2} times as many",
            rate(&theirs)
        );
    }
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let class = folder.path().join("class");
    std::fs::create_dir(&class).expect("room on the disk");
    let mut bytes = 0;
    for number in 0..FILES {
        let file = jpeg(number);
        bytes += file.len();
        std::fs::write(class.join(format!("{number:02}.jpg")), file).expect("room on the disk");
    }
    println!("{} bytes a file", bytes / FILES as usize);
    let set = ImageFolder::open(folder.path(), augment())?;
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group("an image of 500x375");
    group.throughput(Throughput::Elements(1));
    let mut at = 0;
    group.bench_function("decoded and augmented", |bencher| {
        bencher.iter(|| {
            at += 1;
            set.get(at % FILES, &mut Draws::new(1, 0).rng(at)).expect("an example")
        });
    });
    let part = ImageFolder::open(folder.path(), RandomResizedCrop::new(224))?;
    compare(folder.path().as_os_str(), &set, &part);
    let file = set.files()[0].0.clone();
    group.bench_function("decoded", |bencher| {
        bencher.iter(|| decode_image(&file).expect("an image"));
    });
    let (image, augment): (Tensor, _) = (decode_image(&file)?, augment());
    group.bench_function("augmented", |bencher| {
        bencher.iter(|| {
            at += 1;
            let mut rng = Draws::new(1, 0).rng(at);
            augment.apply(image.shallow_clone(), &mut rng).expect("an image")
        });
    });
    group.finish();
    let mut group = criterion.benchmark_group("an epoch of images");
    group.throughput(Throughput::Elements(FILES.cast_unsigned()));
    let shared = set.shared();
    for num_workers in [0, 1, 2] {
        let loading = Loading { num_workers, placement: Placement::Host, ..Loading::default() };
        let policy = Policy::new(Precision::F32True, Device::Cpu);
        let loader = DataLoader::new(&shared, BATCH, loading, policy)?.shuffled(1).drawing(1);
        group.bench_function(format!("{num_workers} workers"), |bencher| {
            bencher.iter(|| loader.epoch(0, 0).expect("an epoch").for_each(drop));
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
