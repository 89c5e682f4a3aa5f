//! Loads weights that other programs saved, and converts their names and layouts to those of a
//! model.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use tch::Tensor;

use super::{
    pairs::{Pair, apply, is_weight, listed, pair},
    pattern::Pattern,
    report::{Imported, ImportedTensor, Origin},
    source,
};
use crate::{
    Error, Result,
    error::some_names,
    nn::{Visit, named_tensors},
    tensor_file::TensorFile,
};

/// Loads a weights file of another program, such as `transformers` or `torchvision`, into a model
/// whose tensors have other names or layouts, or whose last layer (head) has another shape.
///
/// [`rename`](Self::rename), [`transpose`](Self::transpose), [`stack`](Self::stack) and
/// [`ignore`](Self::ignore) are the steps of an import. They run in the order in which they are
/// called. Each step applies to the names that the previous steps produced. In a pattern, each `*`
/// matches any text, as short as possible. In a new name, the first `*` stands for the text that
/// the pattern's first `*` matched, and so on.
///
/// It is an error if a step matches no tensor, for example because of a misspelling, if the model
/// does not have a tensor of the file, or if the file does not have a tensor of the model. As in
/// torch, the `num_batches_tracked` of a batch norm may be missing.
///
/// ```no_run
/// use std::path::Path;
///
/// use amp_core::{Result, nn::Visit, weights::Import};
///
/// /// Loads `bert-base-uncased`, as `save_pretrained` writes it, into layers with another head.
/// fn pretrained(model: &impl Visit) -> Result<()> {
///     let own = "encoder.layers.*";
///     let report = Import::open(Path::new("bert-base-uncased"))?
///         .rename("bert.*", "*")
///         .ignore("pooler.*")
///         .ignore("cls.*")
///         .stack(
///             &["query", "key", "value"].map(|name| format!("encoder.layer.*.attention.self.{name}.*")),
///             "encoder.layers.*.self_attn.in_proj_*",
///         )
///         .rename("encoder.layer.*.attention.output.dense.*", &format!("{own}.self_attn.out_proj.*"))
///         .rename("encoder.layer.*.attention.output.LayerNorm.*", &format!("{own}.norm1.*"))
///         .rename("encoder.layer.*.intermediate.dense.*", &format!("{own}.linear1.*"))
///         .rename("encoder.layer.*.output.dense.*", &format!("{own}.linear2.*"))
///         .rename("encoder.layer.*.output.LayerNorm.*", &format!("{own}.norm2.*"))
///         .keep("head.*")
///         .load_into(model)?;
///     println!("{report}");
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "nothing is loaded before `load_into`"]
pub struct Import {
    path: PathBuf,
    file: TensorFile,
    steps: Vec<Step>,
    kept: Vec<Pattern>,
}

#[derive(Debug)]
enum Step {
    Rename { from: Pattern, to: Pattern },
    Transpose(Pattern),
    Stack { parts: Vec<Pattern>, into: Pattern },
    Ignore(Pattern),
}

/// A tensor of the file, as the import steps have renamed and changed it so far.
struct Entry {
    name: String,
    /// The names of the file's tensors from which this tensor was made.
    from: Vec<String>,
    tensor: Tensor,
}

impl Import {
    /// Reads a safetensors file, an index of several files (`model.safetensors.index.json`), or a
    /// folder that contains one of them.
    ///
    /// # Errors
    /// When a file is missing or damaged, has values that no dtype of libtorch represents, or does
    /// not have the tensors that the index lists.
    pub fn open(path: &Path) -> Result<Self> {
        let file = source::read(path)?;
        Ok(Self { path: path.to_owned(), file, steps: Vec::new(), kept: Vec::new() })
    }

    /// Returns the names and shapes of the file's tensors. You need them to write the import steps.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Vec<i64>)> {
        self.file.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.size()))
    }

    /// Renames the tensors whose names match `from` to `to`. For example, `rename("bert.*", "*")`
    /// removes a prefix.
    pub fn rename(self, from: &str, to: &str) -> Self {
        self.then(Step::Rename { from: Pattern::new(from), to: Pattern::new(to) })
    }

    /// Transposes the matrices that match the pattern, for example the weights of GPT-2's `Conv1D`,
    /// whose shape is `[in, out]`.
    pub fn transpose(self, pattern: &str) -> Self {
        self.then(Step::Transpose(Pattern::new(pattern)))
    }

    /// Concatenates tensors along their first dimension, in the order of `parts`. For example, the
    /// weights of query, key and value become `in_proj_weight`.
    pub fn stack(self, parts: &[impl AsRef<str>], into: &str) -> Self {
        let parts = parts.iter().map(|part| Pattern::new(part.as_ref())).collect();
        self.then(Step::Stack { parts, into: Pattern::new(into) })
    }

    /// Ignores the file's tensors that match the pattern. Use it for tensors that the model does
    /// not have.
    pub fn ignore(self, pattern: &str) -> Self {
        self.then(Step::Ignore(Pattern::new(pattern)))
    }

    /// Lets the model's tensors that match the pattern, such as a head for other classes, keep
    /// their initial values if the file has no tensor with their name and shape.
    pub fn keep(mut self, pattern: &str) -> Self {
        self.kept.push(Pattern::new(pattern));
        self
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Runs the import steps and loads the values into the model. Returns a report on each tensor.
    ///
    /// # Errors
    /// When a step matches nothing or cannot be applied, two tensors get the same name, a tensor of
    /// the file or the model has no counterpart, or a shape or dtype differs. After an error the
    /// model is unchanged.
    pub fn load_into(self, module: &(impl Visit + ?Sized)) -> Result<Imported> {
        let Self { path, file: TensorFile { tensors, metadata }, steps, kept } = self;
        let failed = |why: String| Error::config(format!("{}: {why}", path.display()));
        let weights = tensors.into_iter().filter(|(name, _)| is_weight(name));
        let entry =
            |(name, tensor): (String, Tensor)| Entry { from: vec![name.clone()], name, tensor };
        let mut entries: Vec<Entry> = weights.map(entry).collect();
        let mut ignored = Vec::new();
        for step in &steps {
            step.run(&mut entries, &mut ignored).map_err(failed)?;
        }
        let mut values = BTreeMap::new();
        let mut origins = BTreeMap::new();
        for Entry { name, from, tensor } in entries {
            if let Some(other) = origins.insert(name.clone(), from.clone()) {
                let (a, b) = (other.join("` + `"), from.join("` + `"));
                return Err(failed(format!("`{a}` and `{b}` both get the name `{name}`")));
            }
            values.insert(name, tensor);
        }
        let own = named_tensors(module);
        let names = || own.iter().map(|(name, ..)| name.as_str());
        if let Some(idle) = kept.iter().find(|kept| !names().any(|name| kept.matches(name))) {
            let (idle, names) = (idle.as_str(), some_names(names()));
            return Err(failed(format!(
                "keep(`{idle}`): no tensor of the model matches. Its tensors are called {names}"
            )));
        }
        let (pairs, misfits) =
            pair(module, &values, |name| kept.iter().any(|pattern| pattern.matches(name)))?;
        if !misfits.is_empty() {
            return Err(failed(format!(
                "these weights do not match the model: {}; `rename` gives a tensor another name, \
                 `ignore` leaves out a tensor of the file, `keep` leaves a tensor of the model as \
                 it is",
                listed(&misfits)
            )));
        }
        apply(&pairs)?;
        let tensors = pairs.into_iter().map(|pair| imported(pair, &mut origins)).collect();
        Ok(Imported { tensors, ignored, metadata })
    }
}

fn imported(pair: Pair, origins: &mut BTreeMap<String, Vec<String>>) -> ImportedTensor {
    let Pair { tensor, name, values, other_shape } = pair;
    let origin = match (&values, other_shape) {
        (Some(_), _) => Origin::File(origins.remove(&name).unwrap_or_default()),
        (None, Some(shape)) => Origin::OtherShape(shape),
        (None, None) => Origin::Missing,
    };
    let kinds = (tensor.kind(), values.map(|values| values.kind()));
    ImportedTensor { name, shape: tensor.size(), kinds, origin }
}

impl Step {
    /// Applies this step to the tensors whose names match its pattern.
    ///
    /// # Errors
    /// When no tensor matches, or the step cannot be applied. The error is a text with the reason.
    fn run(&self, entries: &mut Vec<Entry>, ignored: &mut Vec<String>) -> Result<(), String> {
        let refused = |why: &str| format!("{}: {why}", self.written());
        let pattern = self.pattern();
        if !entries.iter().any(|entry| pattern.matches(&entry.name)) {
            let (pattern, names) = (pattern.as_str(), entries.iter().map(|entry| &*entry.name));
            let names = some_names(names);
            return Err(refused(&format!(
                "no tensor of the file matches `{pattern}`. The tensors are called {names}"
            )));
        }
        match self {
            Self::Rename { from, to } => {
                if to.wildcards() != from.wildcards() {
                    return Err(refused("both names need the same number of `*`"));
                }
                for entry in entries {
                    if let Some(captures) = from.captures(&entry.name) {
                        entry.name = to.filled(&captures);
                    }
                }
            }
            Self::Transpose(pattern) => {
                for Entry { name, tensor, .. } in entries {
                    if !pattern.matches(name) {
                        continue;
                    }
                    if tensor.dim() != 2 {
                        return Err(refused(&format!(
                            "`{name}` is not a matrix, but has the shape {:?}",
                            tensor.size()
                        )));
                    }
                    *tensor =
                        tensor.f_tr().map_err(|error| refused(&Error::from(error).to_string()))?;
                }
            }
            Self::Stack { parts, into } => {
                if parts.iter().any(|part| part.wildcards() != into.wildcards()) {
                    return Err(refused("all names need the same number of `*`"));
                }
                stack(entries, parts, into).map_err(|why| refused(&why))?;
            }
            Self::Ignore(pattern) => {
                let (out, rest) = entries.drain(..).partition(|entry| pattern.matches(&entry.name));
                *entries = rest;
                ignored.extend(Vec::<Entry>::into_iter(out).flat_map(|entry| entry.from));
            }
        }
        Ok(())
    }

    /// Returns the pattern that must match at least one tensor.
    fn pattern(&self) -> &Pattern {
        match self {
            Self::Rename { from, .. } => from,
            Self::Transpose(pattern) | Self::Ignore(pattern) => pattern,
            Self::Stack { parts, into } => parts.first().unwrap_or(into),
        }
    }

    /// Returns the call that added this step to the import, for error messages.
    fn written(&self) -> String {
        match self {
            Self::Rename { from, to } => format!("rename(`{}`, `{}`)", from.as_str(), to.as_str()),
            Self::Transpose(pattern) => format!("transpose(`{}`)", pattern.as_str()),
            Self::Stack { into, .. } => format!("stack(…, `{}`)", into.as_str()),
            Self::Ignore(pattern) => format!("ignore(`{}`)", pattern.as_str()),
        }
    }
}

/// Concatenates each tensor that matches the first pattern of `parts` with one tensor for each
/// other pattern: the one whose name has the same text at each `*`. The new tensor takes the
/// position of its first part.
fn stack(entries: &mut Vec<Entry>, parts: &[Pattern], into: &Pattern) -> Result<(), String> {
    let (first, others) = parts.split_first().ok_or("there is nothing to stack")?;
    let mut place = 0;
    while place < entries.len() {
        let name = entries[place].name.clone();
        let Some(captures) = first.captures(&name) else {
            place += 1;
            continue;
        };
        let mut joined = vec![entries.remove(place)];
        for other in others {
            let wanted = other.filled(&captures);
            let found = entries.iter().position(|entry| entry.name == wanted);
            let found =
                found.ok_or_else(|| format!("there is no `{wanted}` to stack with `{name}`"))?;
            joined.push(entries.remove(found));
            place -= usize::from(found < place);
        }
        let tensors: Vec<&Tensor> = joined.iter().map(|entry| &entry.tensor).collect();
        let sizes: Vec<Vec<i64>> = tensors.iter().map(|tensor| tensor.size()).collect();
        let row = sizes[0].get(1..);
        if row.is_none() || sizes.iter().any(|size| size.get(1..) != row) {
            return Err(format!(
                "`{name}` and its other parts have shapes {sizes:?}, which cannot be stacked"
            ));
        }
        let tensor = Tensor::f_cat(&tensors, 0)
            .map_err(|error| format!("`{name}`: {}", Error::from(error)))?;
        let from = joined.into_iter().flat_map(|entry| entry.from).collect();
        entries.insert(place, Entry { name: into.filled(&captures), from, tensor });
        place += 1;
    }
    Ok(())
}
