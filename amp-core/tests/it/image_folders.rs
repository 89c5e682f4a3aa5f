//! Tests of folders of images: how files are decoded, in which order they are read, and that the
//! result does not depend on the number of workers.

use std::{fs, path::Path};

use amp_core::{
    data::{
        ColorJitter, Compose, DataLoader, ImageFolder, Loading, MapDataset, MixUp, Normalize,
        Placement, RandomHorizontalFlip, RandomResizedCrop, SharedDataset, decode_image,
    },
    precision::Policy,
    prelude::*,
    random::Rng,
};
use rstest::rstest;
use tempfile::{TempDir, tempdir};

use crate::{
    support::{bits::values, device, message, oracle::text},
    transforms::{bytes, near, recorded},
};

/// A PNG file is decoded to the same bits as in Pillow. A JPEG file is decoded to the same values
/// up to the rounding of the JPEG transform.
#[rstest]
#[case("png", 0)]
#[case("jpeg", 3)]
fn files_are_decoded_as_pillow_does(#[case] kind: &str, #[case] levels: i64) -> Result<()> {
    let (all, folder) = (recorded(), tempdir().expect("a temporary folder"));
    let path = folder.path().join("picture");
    fs::write(&path, bytes(text(&all[kind], "file"))).expect("room on the disk");
    near(&decode_image(&path)?, &all[kind]["decoded"], levels);
    Ok(())
}

/// Creates a folder that contains copies of the recorded image at these paths.
fn folder(files: &[&str]) -> TempDir {
    let folder = tempdir().expect("a temporary folder");
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("room on the disk");
        let kind = if file.to_lowercase().ends_with("png") { "png" } else { "jpeg" };
        fs::write(path, bytes(text(&recorded()[kind], "file"))).expect("room on the disk");
    }
    folder
}

fn plain(root: &Path) -> Result<ImageFolder> {
    ImageFolder::open(root, Compose::new().then(Normalize::imagenet()))
}

/// For these names, the files have the same order as in torchvision's ImageFolder: classes are
/// sorted by the bytes of their names, and files by folder and name.
#[test]
fn files_have_torchvisions_order() -> Result<()> {
    let folder = folder(&[
        "dog/b.jpg",
        "dog/10.JPG",
        "dog/9.png",
        "dog/a/z.jpeg",
        "dog/a-b/y.jpg",
        "dog/a/c/x.jpg",
        "dog/b/w.jpg",
        "Cat/1.jpg",
        "ape/2.jpg",
        "root.jpg",
        "dog/notes.txt",
    ]);
    let set = plain(folder.path())?;
    assert_eq!(set.classes(), ["Cat", "ape", "dog"]);
    let seen: Vec<(&str, i64)> = set
        .files()
        .iter()
        .map(|(path, class)| {
            let path = path.strip_prefix(folder.path()).expect("below the root");
            (path.to_str().expect("UTF-8"), *class)
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("Cat/1.jpg", 0),
            ("ape/2.jpg", 1),
            ("dog/10.JPG", 2),
            ("dog/9.png", 2),
            ("dog/b.jpg", 2),
            ("dog/a/z.jpeg", 2),
            ("dog/a-b/y.jpg", 2),
            ("dog/a/c/x.jpg", 2),
            ("dog/b/w.jpg", 2),
        ]
    );
    let example = set.get(1, &mut Rng::with_seed(0))?;
    assert_eq!((example.input.size(), example.target.int64_value(&[])), (vec![3, 20, 28], 1));
    Ok(())
}

#[rstest]
#[case(&["a/1.jpg", "b/x.txt"], "the class `b` has no image (jpg, jpeg, png): add one")]
#[case(&["1.jpg"], "there are no folders of classes: put the images into a folder for each class")]
#[case(&["a/1.jpg", "a/2.webp"], "/a/2.webp: the image is neither JPEG nor PNG: convert it")]
fn invalid_folders_are_refused(#[case] files: &[&str], #[case] says: &str) {
    let folder = folder(files);
    let text = message(plain(folder.path()));
    assert!(text.contains(says), "{text}");
}

/// If a file is damaged, the epoch ends with an error that names the file and the number of its
/// example.
#[rstest]
fn a_damaged_file_is_named(#[values(0, 2)] num_workers: usize) -> Result<()> {
    let folder = folder(&["a/1.png", "a/2.png", "b/3.png"]);
    let damaged = folder.path().join("a/2.png");
    fs::write(&damaged, b"no image").expect("room on the disk");
    let loading = Loading { num_workers, placement: Placement::Host, ..Loading::default() };
    let policy = Policy::new(Precision::F32True, device());
    let loader = DataLoader::new(&plain(folder.path())?.shared(), 1, loading, policy)?;
    let read: Result<Vec<_>> = loader.epoch(0, 0)?.collect();
    let text = message(read);
    let says =
        format!("example 1 of the data set: {}: the image cannot be decoded: ", damaged.display());
    assert!(text.starts_with(&says) && !text.contains('\n'), "{text}");
    Ok(())
}

#[test]
fn folders_with_other_classes_are_refused() -> Result<()> {
    let (one, two) = (folder(&["a/1.png", "b/1.png"]), folder(&["b/1.png"]));
    plain(one.path())?.like(&plain(one.path())?)?;
    let expected = format!(
        "{} has the class `a`, but {} does not: give both the same classes",
        one.path().display(),
        two.path().display()
    );
    assert_eq!(message(plain(one.path())?.like(&plain(two.path())?).map(drop)), expected);
    assert_eq!(message(plain(two.path())?.like(&plain(one.path())?).map(drop)), expected);
    Ok(())
}

/// Augmentation and the mixing of images give the same batches with any number of workers, even if
/// an epoch starts in the middle.
#[test]
fn augmentation_does_not_depend_on_the_workers() -> Result<()> {
    let names: Vec<String> = (0..14).map(|at| format!("{}/{at}.png", ["a", "b"][at % 2])).collect();
    let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let augment = Compose::new()
        .then(RandomResizedCrop::new(8))
        .then(RandomHorizontalFlip::new(0.5))
        .then(ColorJitter::new().brightness(0.4)?.contrast(0.4)?.saturation(0.4)?.hue(0.2)?)
        .then(Normalize::imagenet());
    let set: SharedDataset =
        ImageFolder::open(folder.path(), augment)?.mixup(MixUp::new(0.4, 2)?).shared();
    let read = |num_workers, epoch, first| -> Result<Vec<Vec<f64>>> {
        let loading = Loading { num_workers, placement: Placement::Host, ..Loading::default() };
        let policy = Policy::new(Precision::F32True, device());
        let loader = DataLoader::new(&set, 4, loading, policy)?.shuffled(3).drawing(3);
        let batches = loader.epoch(epoch, first)?.map(|batch| {
            let batch = Batch::from_any(&batch?)?;
            assert_eq!(batch.target.size(), [batch.len(), 2]);
            Ok([values(&batch.input), values(&batch.target)].concat())
        });
        batches.collect()
    };
    let expected = read(0, 1, 0)?;
    for workers in [1, 2, 7] {
        assert_eq!(read(workers, 1, 0)?, expected);
        assert_eq!(read(workers, 1, 2)?, expected[2..]);
    }
    assert_ne!(read(2, 0, 0)?, expected);
    Ok(())
}
