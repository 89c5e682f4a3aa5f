//! The report of an import of weights: the source of each tensor's values.

use std::{collections::BTreeMap, fmt};

use tch::Kind;

use crate::precision::dtype_name;

/// Where the values of a model's tensor come from after an import.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// From tensors of the file, with their names in the file. There are several names if the
    /// import stacked several tensors into one.
    File(Vec<String>),
    /// From the model's initialization, because the file has no tensor of this name.
    Missing,
    /// From the model's initialization, because the file's tensor of this name has another shape,
    /// which this variant contains.
    OtherShape(Vec<i64>),
}

/// A tensor of the model after an import.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportedTensor {
    /// The tensor's name in the model.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<i64>,
    /// The dtype of the tensor in the model, and its dtype in the file, which is `None` if the
    /// values do not come from the file.
    pub kinds: (Kind, Option<Kind>),
    /// Where the tensor's values come from.
    pub origin: Origin,
}

/// The result of an import, for each tensor of the file and of the model. `{}` prints it as a
/// table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Every tensor of the model, in the order in which the model declares them.
    pub tensors: Vec<ImportedTensor>,
    /// The names, in the file, of the tensors that the import ignored.
    pub ignored: Vec<String>,
    /// The file's metadata, a map from names to texts.
    pub metadata: BTreeMap<String, String>,
}

impl Imported {
    /// Returns the tensors of the model that kept their initial values.
    pub fn kept(&self) -> impl Iterator<Item = &ImportedTensor> {
        self.tensors.iter().filter(|tensor| !matches!(tensor.origin, Origin::File(_)))
    }
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<[String; 4]> = self.tensors.iter().map(row).collect();
        let header = ["tensor", "shape", "dtype", "from"].map(str::to_owned);
        let all = || std::iter::once(&header).chain(&rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        for [name, shape, kind, from] in all() {
            let [a, b, c] = widths;
            writeln!(f, "{name:a$}  {shape:b$}  {kind:c$}  {from}")?;
        }
        let kept = self.kept().count();
        write!(
            f,
            "{} of {} tensors were loaded from the file, {kept} kept their initial values, {} \
             tensors of the file were ignored",
            self.tensors.len() - kept,
            self.tensors.len(),
            self.ignored.len()
        )
    }
}

fn row(tensor: &ImportedTensor) -> [String; 4] {
    let ImportedTensor { name, shape, kinds: (here, there), origin } = tensor;
    let kind = match there {
        Some(there) if there != here => format!("{} → {}", dtype_name(*there), dtype_name(*here)),
        _ => dtype_name(*here).to_owned(),
    };
    let from = match origin {
        Origin::File(names) => names.join(" + "),
        Origin::Missing => "initial values: not in the file".to_owned(),
        Origin::OtherShape(shape) => format!("initial values: shape {shape:?} in the file"),
    };
    [name.clone(), format!("{shape:?}"), kind, from]
}
