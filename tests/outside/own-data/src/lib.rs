//! A data set that you write yourself. The README of this crate explains it.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

use amp_core::{data::Dataset, prelude::*};
use amp_verify::{DataSet, Project, Registry, model, project};

/// Examples in a file: rows of little-endian f32 numbers. The last number of each row is the
/// target.
#[derive(Debug)]
pub struct Rows {
    path: PathBuf,
    file: File,
    features: usize,
    rows: i64,
}

impl Rows {
    /// Opens a file whose rows have `features` numbers and a target.
    ///
    /// # Errors
    /// If the file cannot be opened, or does not consist of whole rows.
    pub fn open(path: impl Into<PathBuf>, features: usize) -> Result<Self> {
        let path = path.into();
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes, file) = opened.map_err(|error| Error::io(&path, error))?;
        let row = row_bytes(features);
        if bytes == 0 || !bytes.is_multiple_of(row) {
            return Err(Error::config(format!(
                "{}: {bytes} bytes are not a whole number of {row}-byte rows: write the file again",
                path.display()
            )));
        }
        Ok(Self { path, file, features, rows: (bytes / row) as i64 })
    }

    fn read(&mut self, index: i64) -> Result<Vec<f32>> {
        let row = row_bytes(self.features);
        let mut bytes = vec![0; row as usize];
        let found = self.file.seek(SeekFrom::Start(row * index as u64));
        let found = found.and_then(|_| self.file.read_exact(&mut bytes));
        found.map_err(|error| Error::io(&self.path, error))?;
        let (numbers, _) = bytes.as_chunks();
        Ok(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
    }
}

fn row_bytes(features: usize) -> u64 {
    size_of::<f32>() as u64 * (features as u64 + 1)
}

impl Dataset for Rows {
    type Batch = Batch;

    fn len(&self) -> i64 {
        self.rows
    }

    fn gather(&mut self, indices: &[i64]) -> Result<Batch> {
        let (mut inputs, mut targets) = (Vec::<f32>::new(), Vec::new());
        for index in indices {
            let row = self.read(*index)?;
            inputs.extend_from_slice(&row[..self.features]);
            targets.push(row[self.features]);
        }
        let count = indices.len() as i64;
        let input = Tensor::f_from_slice(&inputs)?.f_view([count, self.features as i64])?;
        let target = Tensor::f_from_slice(&targets)?.f_view([count, 1])?;
        Batch::new(input, target)
    }
}

/// A model that predicts the height of a place.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(adamw, lr = 1e-2)]
pub struct HeightNet {
    #[layer(sequential(linear(2, 16), tanh, linear(16, 1)))]
    body: Sequential,
}

/// Returns the heights of a landscape at points (x, y). Training and validation examples are the
/// files `train.f32` and `val.f32` in the project's folder `data`.
///
/// # Errors
/// If a file is missing or damaged.
pub fn heights(project: &Project, batch_size: i64) -> Result<DataModule> {
    let train = Rows::open(project.path("data/train.f32"), 2)?;
    let val = Rows::open(project.path("data/val.f32"), 2)?;
    Ok(DataModule::new("heights", train, val, batch_size))
}

/// Returns the registry of a project whose files are in the folder `project`.
pub fn registry_of(project: Project) -> Registry {
    let files = project.clone();
    Registry::new(project)
        .data_set(DataSet::new("heights", move |batch_size| heights(&files, batch_size)))
        .model(model!(HeightNet).judged_by_loss().batch_size(16).epochs(4).margin(0.01))
}

/// Returns the registry (the list of models and data sets) of this project.
pub fn registry() -> Registry {
    registry_of(project!())
}

/// `cargo test` compiles and runs the README's Rust.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Page;
