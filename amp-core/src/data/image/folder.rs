//! A data set of image files, with one folder for each class.

use std::path::{Path, PathBuf};

use tch::Tensor;

use super::{MixUp, Transform};
use crate::{
    Error, Result,
    data::{AnyBatch, Batch, BatchType, Collate, MapDataset},
    random::Rng,
};

/// The file name extensions that are read.
const ENDINGS: [&str; 3] = ["jpg", "jpeg", "png"];
/// Extensions of image files that torchvision reads and this crate does not. Such a file in the
/// folder is an error, so that no image is left out silently.
const UNREAD: [&str; 6] = ["ppm", "bmp", "pgm", "tif", "tiff", "webp"];

/// Decodes a JPEG or PNG file to a uint8 tensor of shape `[3, H, W]`. Gray images become RGB;
/// transparency and the EXIF orientation are ignored, as in torchvision's loader.
///
/// # Errors
/// When the file cannot be read or decoded.
pub fn decode_image(path: impl AsRef<Path>) -> Result<Tensor> {
    let path = path.as_ref();
    let refused = |error: image::ImageError| {
        Error::config(format!("{}: the image cannot be decoded: {error}", path.display()))
    };
    let reader = image::ImageReader::open(path).map_err(|error| Error::io(path, error))?;
    let reader = reader.with_guessed_format().map_err(|error| Error::io(path, error))?;
    let image = reader.decode().map_err(refused)?.into_rgb8();
    let (width, height) = (i64::from(image.width()), i64::from(image.height()));
    let pixels = Tensor::f_from_slice(image.as_raw())?.f_view([height, width, 3])?;
    Ok(pixels.f_permute([2, 0, 1])?)
}

/// A data set of image files, in one folder for each class (torchvision.datasets.ImageFolder):
/// `root/cat/1.jpg`, `root/dog/a/2.png`. The classes are the names of the folders, sorted by their
/// bytes. The files of a class are sorted first by folder and then by name.
///
/// An example is a [`Batch`]: `input` is the transformed image, and `target` is its class as int64.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     Result,
///     data::{
///         CenterCrop, Compose, DataModule, ImageFolder, MapDataset, Normalize, RandomHorizontalFlip,
///         RandomResizedCrop, Resize,
///     },
/// };
///
/// # fn main() -> Result<()> {
/// let augment = Compose::new()
///     .then(RandomResizedCrop::new(224))
///     .then(RandomHorizontalFlip::new(0.5))
///     .then(Normalize::imagenet());
/// let plain = Compose::new().then(Resize::new(256)).then(CenterCrop::new(224)).then(Normalize::imagenet());
/// let train = ImageFolder::open("pets/train", augment)?;
/// let val = ImageFolder::open("pets/val", plain)?.like(&train)?;
/// let mut data = DataModule::new("pets", train.shared(), val.shared(), 64);
/// data.loading.num_workers = 8;
/// # Ok(())
/// # }
/// ```
pub struct ImageFolder {
    root: PathBuf,
    classes: Vec<String>,
    files: Vec<(PathBuf, i64)>,
    transform: Box<dyn Transform>,
    mixup: Option<MixUp>,
}

impl ImageFolder {
    /// Finds the image files below `root`. `transform` must give all images the same size, so that
    /// they can be stacked to a batch.
    ///
    /// # Errors
    /// When a folder cannot be read, `root` contains no folders, or a class's folder contains no
    /// image.
    pub fn open(root: impl AsRef<Path>, transform: impl Transform + 'static) -> Result<Self> {
        let root = root.as_ref().to_owned();
        let refused = |why: String| Error::config(format!("{}: {why}", root.display()));
        let (mut classes, mut files) = (Vec::new(), Vec::new());
        for folder in entries(&root)?.into_iter().filter(|entry| entry.is_dir()) {
            let name = folder.file_name().and_then(|name| name.to_str());
            let name =
                name.ok_or_else(|| refused(format!("{folder:?} is not UTF-8: rename it")))?;
            let found = files.len();
            images_below(&folder, classes.len() as i64, &mut files)?;
            if files.len() == found {
                let endings = ENDINGS.join(", ");
                return Err(refused(format!(
                    "the class `{name}` has no image ({endings}): add one"
                )));
            }
            classes.push(name.to_owned());
        }
        if classes.is_empty() {
            return Err(refused(
                "there are no folders of classes: put the images into a folder for each class"
                    .into(),
            ));
        }
        Ok(Self { root, classes, files, transform: Box::new(transform), mixup: None })
    }

    /// Mixes the examples of each batch with [`MixUp`].
    #[must_use]
    pub fn mixup(mut self, mixup: MixUp) -> Self {
        self.mixup = Some(mixup);
        self
    }

    /// Checks that this set has the same classes as `other`, and returns this set. Call it on a
    /// validation set with the training set as `other`, because a class must have the same index in
    /// both sets.
    ///
    /// # Errors
    /// When the two sets have different classes.
    pub fn like(self, other: &Self) -> Result<Self> {
        let lacks = |one: &Self, two: &Self| {
            one.classes.iter().find(|name| !two.classes.contains(name)).cloned()
        };
        for (has, without) in [(&self, other), (other, &self)] {
            if let Some(name) = lacks(has, without) {
                let (has, without) = (has.root.display(), without.root.display());
                return Err(Error::config(format!(
                    "{has} has the class `{name}`, but {without} does not: give both the same classes"
                )));
            }
        }
        Ok(self)
    }

    /// Returns the names of the classes. The position of a name is the index of its class.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns each file with its class. The position of a file is the index of its example.
    pub fn files(&self) -> &[(PathBuf, i64)] {
        &self.files
    }
}

impl MapDataset for ImageFolder {
    type Example = Batch;

    fn len(&self) -> i64 {
        self.files.len() as i64
    }

    fn get(&self, index: i64, rng: &mut Rng) -> Result<Batch> {
        let (path, class) = &self.files[index as usize];
        let input = self.transform.apply(decode_image(path)?, rng)?;
        Ok(Batch { input, target: Tensor::from(*class) })
    }

    fn collate(&self, examples: &[(i64, Batch)], rng: &mut Rng) -> Result<AnyBatch> {
        let batch = Collate::new().batch(examples)?;
        match &self.mixup {
            None => Ok(batch),
            Some(mixup) => mixup.apply(&Batch::from_any(&batch)?, rng)?.to_any(),
        }
    }
}

/// Returns the entries of a folder, sorted by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()
    });
    let mut entries = entries.map_err(|error| Error::io(folder, error))?;
    entries.sort_unstable();
    Ok(entries)
}

/// Lists the images of a folder and of its subfolders, sorted first by folder and then by name, as
/// torchvision's `make_dataset` does.
fn images_below(folder: &Path, class: i64, files: &mut Vec<(PathBuf, i64)>) -> Result<()> {
    let (mut folders, mut at) = (vec![folder.to_owned()], 0);
    while let Some(folder) = folders.get(at) {
        folders.extend(entries(folder)?.into_iter().filter(|path| path.is_dir()));
        at += 1;
    }
    folders.sort_unstable_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
    for folder in folders {
        for file in entries(&folder)?.into_iter().filter(|path| !path.is_dir()) {
            let ending = file.extension().and_then(|ending| ending.to_str()).map(str::to_lowercase);
            let ending = ending.unwrap_or_default();
            if UNREAD.contains(&ending.as_str()) {
                return Err(Error::config(format!(
                    "{}: the image is neither JPEG nor PNG: convert it, or move it away",
                    file.display()
                )));
            }
            if ENDINGS.contains(&ending.as_str()) {
                files.push((file, class));
            }
        }
    }
    Ok(())
}
