//! Builds the tree of a model's layers from the layers that it declares and the layers that ran.

use std::collections::HashSet;

use serde::Serialize;
use tch::Tensor;

use super::trace::{Call, Traced};
use crate::{
    LightningModule, ffi,
    nn::{Role, Visitor},
    precision::Region,
};

/// The type name of a row that shows a parameter.
const PARAMETER: &str = "Parameter";
/// The type name of a row that shows a `Vec` of layers.
const LIST: &str = "List";

/// A row of the summary: a layer of a model, or a parameter. The parameters of a layer get their
/// own rows only if the layer also contains other layers, or is the model itself. The parameter
/// numbers of a layer that contains others are the sums of the rows within it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSummary {
    /// The dotted path of the layer, as in the names of its parameters. Empty for the model itself.
    pub path: String,
    /// The number of layers that contain this layer, counting the model.
    pub depth: usize,
    /// The name of the layer's type, for example `Conv2d`. `Parameter` for a parameter, and `List`
    /// for a `Vec` whose elements the forward pass runs one by one. `None` if the forward pass did
    /// not run the layer.
    pub kind: Option<String>,
    /// The number of times that the forward pass ran the layer.
    pub calls: u64,
    /// The shapes of the layer's inputs at its first call.
    pub input: Vec<Vec<i64>>,
    /// The shapes of the layer's outputs at its first call, or the shape of the parameter.
    pub output: Vec<Vec<i64>>,
    /// The number of trained parameter elements in the layer, including the layers within it. A
    /// parameter that two layers share is counted only for the first of these layers.
    pub trainable: i64,
    /// The number of frozen parameter elements in the layer, counted as in `trainable`.
    pub frozen: i64,
    /// The number of floating-point operations of all calls of the layer, including the layers
    /// within it. See [`ModelSummary::flops`](super::ModelSummary::flops).
    pub flops: u64,
}

impl LayerSummary {
    fn new(path: String, depth: usize) -> Self {
        Self {
            path,
            depth,
            kind: None,
            calls: 0,
            input: Vec::new(),
            output: Vec::new(),
            trainable: 0,
            frozen: 0,
            flops: 0,
        }
    }

    /// Returns the last part of the layer's path.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit_once('.').map_or(&self.path, |(_, name)| name)
    }

    fn ran(&mut self, call: Call) {
        if self.calls == 0 {
            self.kind = Some(short(call.type_name));
            (self.input, self.output) = (call.input, call.output);
        }
        self.calls += 1;
        self.flops += call.flops;
    }
}

/// Returns the layers in the order of their declaration, and the number of floating-point
/// operations of the forward pass.
pub(super) fn layers(model: &dyn LightningModule, traced: Traced) -> (Vec<LayerSummary>, u64) {
    let mut declared = Declared {
        layers: vec![LayerSummary::new(String::new(), 0)],
        open: vec![0],
        tensors: Tensors::default(),
        parameters: HashSet::new(),
    };
    model.visit(&mut declared);
    let Declared { mut layers, parameters, .. } = declared;
    layers[0].kind = Some(model.name().to_owned());
    (layers[0].calls, layers[0].flops) = (1, traced.flops);
    for call in traced.calls {
        let place = match layers.iter().position(|layer| layer.path == call.path) {
            Some(place) => place,
            None => insert(&mut layers, &call.path),
        };
        layers[place].ran(call);
    }
    name_lists(&mut layers);
    // Drops two kinds of rows. An optional layer that is absent has no tensors and did not run. A
    // parameter gets no row if its layer contains no layers, unless that layer is the model itself.
    let keeps: Vec<bool> = layers
        .iter()
        .map(|layer| {
            let within = format!("{}.", layer.path);
            let runs = |other: &LayerSummary| other.path.starts_with(&within) && other.calls > 0;
            let beside_layers = |parent: &str| {
                let within = |other: &LayerSummary| parent_of(&other.path) == Some(parent);
                let mut others = layers.iter().filter(|other| !parameters.contains(&other.path));
                parent.is_empty() || others.any(within)
            };
            match parent_of(&layer.path).filter(|_| parameters.contains(&layer.path)) {
                Some(parent) => beside_layers(parent),
                None => {
                    layer.calls > 0 || layer.trainable + layer.frozen > 0 || layers.iter().any(runs)
                }
            }
        })
        .collect();
    let mut keeps = keeps.into_iter();
    layers.retain(|_| keeps.next() == Some(true));
    (layers, traced.flops)
}

/// Gives the type name `List` to each `Vec` that did not run as a module itself, but whose elements
/// ran.
fn name_lists(layers: &mut [LayerSummary]) {
    for at in 0..layers.len() {
        let depth = layers[at].depth;
        let mut within = layers[at + 1..].iter().take_while(|layer| layer.depth > depth);
        if layers[at].kind.is_none()
            && within.any(|layer| {
                layer.depth == depth + 1 && layer.calls > 0 && layer.name().parse::<usize>().is_ok()
            })
        {
            layers[at].kind = Some(LIST.to_owned());
        }
    }
}

/// Returns the path of the layer that contains the layer at `path`. Returns `None` for the model.
fn parent_of(path: &str) -> Option<&str> {
    (!path.is_empty()).then(|| path.rsplit_once('.').map_or("", |(parent, _)| parent))
}

/// Adds a row for a layer that ran, although the model does not declare it. The row becomes the
/// last one within its parent. Returns the index of the row.
fn insert(layers: &mut Vec<LayerSummary>, path: &str) -> usize {
    let parent = parent_of(path).unwrap_or_default();
    let found = layers.iter().position(|layer| layer.path == parent);
    let parent = found.unwrap_or_else(|| insert(layers, parent));
    let depth = layers[parent].depth + 1;
    let within = layers[parent + 1..].iter().take_while(|layer| layer.depth >= depth).count();
    let place = parent + 1 + within;
    layers.insert(place, LayerSummary::new(path.to_owned(), depth));
    place
}

/// Counts the elements of parameters and buffers. A tensor that occurs several times counts once.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    seen: HashSet<usize>,
    pub(super) trainable: i64,
    pub(super) frozen: i64,
    pub(super) buffers: i64,
}

impl Tensors {
    pub(super) fn of(model: &dyn LightningModule) -> Self {
        let mut tensors = Self::default();
        for (_, tensor, role) in crate::nn::named_tensors(model) {
            tensors.add(&tensor, role);
        }
        tensors
    }

    /// Counts a tensor, and returns the numbers of its trained and frozen elements. They are 0 if
    /// the tensor was counted before.
    fn add(&mut self, tensor: &Tensor, role: Role) -> (i64, i64) {
        if !self.seen.insert(ffi::identity(tensor)) {
            return (0, 0);
        }
        let count = tensor.numel() as i64;
        let (trainable, frozen) = match (role, tensor.requires_grad()) {
            (Role::Buffer, _) => {
                self.buffers += count;
                (0, 0)
            }
            (Role::Parameter, true) => (count, 0),
            (Role::Parameter, false) => (0, count),
        };
        self.trainable += trainable;
        self.frozen += frozen;
        (trainable, frozen)
    }
}

struct Declared {
    layers: Vec<LayerSummary>,
    /// The indices of the layers that are being visited, from the model to the innermost layer.
    open: Vec<usize>,
    tensors: Tensors,
    /// The paths of the rows that show parameters.
    parameters: HashSet<String>,
}

impl Declared {
    /// Returns the path of the layer or tensor `name` in the innermost layer that is being visited.
    fn path(&self, name: &str) -> String {
        let parent = self.open.last().map_or("", |place| self.layers[*place].path.as_str());
        if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
    }
}

impl Visitor for Declared {
    fn enter(&mut self, name: &str, _: Option<Region>) {
        let (path, depth) = (self.path(name), self.open.len());
        self.open.push(self.layers.len());
        self.layers.push(LayerSummary::new(path, depth));
    }

    fn leave(&mut self) {
        self.open.pop();
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor, role: Role) {
        let (trainable, frozen) = self.tensors.add(tensor, role);
        for place in &self.open {
            self.layers[*place].trainable += trainable;
            self.layers[*place].frozen += frozen;
        }
        if trainable + frozen > 0 {
            let mut row = LayerSummary::new(self.path(name), self.open.len());
            (row.kind, row.output) = (Some(PARAMETER.to_owned()), vec![tensor.size()]);
            (row.trainable, row.frozen) = (trainable, frozen);
            self.parameters.insert(row.path.clone());
            self.layers.push(row);
        }
    }
}

/// Returns the short name of a type: `Conv2d` for `amp_core::nn::conv::Conv<2>`.
fn short(type_name: &str) -> String {
    let mut name = String::new();
    let mut word = String::new();
    let mut rest = type_name.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            ':' if rest.peek() == Some(&':') => {
                rest.next();
                word.clear();
            }
            next if next.is_alphanumeric() || next == '_' => word.push(next),
            other => {
                name.push_str(&std::mem::take(&mut word));
                name.push(other);
            }
        }
    }
    name.push_str(&word);
    match name.strip_suffix('>').and_then(|name| name.split_once('<')) {
        Some((name, dimensions)) if dimensions.parse::<u8>().is_ok() => {
            format!("{name}{dimensions}d")
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("amp_core::nn::conv::Conv<2>", "Conv2d")]
    #[case("amp_core::nn::linear::Linear", "Linear")]
    #[case("alloc::vec::Vec<my::net::Block>", "Vec<Block>")]
    #[case("alloc::vec::Vec<alloc::sync::Arc<dyn amp_core::nn::Module>>", "Vec<Arc<dyn Module>>")]
    #[case("amp_core::nn::recompute::Checkpoint<my::Net<3>>", "Checkpoint<Net<3>>")]
    #[case("Identity", "Identity")]
    fn a_type_has_its_last_name(#[case] full: &str, #[case] expected: &str) {
        assert_eq!(short(full), expected);
    }

    #[test]
    fn a_layer_that_is_not_declared_stands_within_its_parent() {
        let paths = ["", "a", "a.x", "b"].map(str::to_owned);
        let layer = |path: String| {
            let depth = if path.is_empty() { 0 } else { path.matches('.').count() + 1 };
            LayerSummary::new(path, depth)
        };
        let mut layers: Vec<LayerSummary> = paths.into_iter().map(layer).collect();
        insert(&mut layers, "a.y.z");
        let paths: Vec<(&str, usize)> =
            layers.iter().map(|layer| (layer.path.as_str(), layer.depth)).collect();
        assert_eq!(paths, [("", 0), ("a", 1), ("a.x", 2), ("a.y", 2), ("a.y.z", 3), ("b", 1)]);
    }
}
