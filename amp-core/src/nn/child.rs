use std::{borrow::Cow, ops::Deref};

use tch::Tensor;

use super::{Context, Forward, Module, Visit, Visitor};
use crate::{
    Result,
    precision::{Arguments, Region},
};

/// A module under the name it has in its parent. It runs with the parent's path and its own
/// precision region, as [`Context::call`] does for modules of one tensor. In a derived `#[forward]`
/// every field that is a layer is one, so that `self.head.forward(x, cx)` keeps both.
///
/// ```no_run,standalone_crate
/// use amp_core::{nn::Child, prelude::*};
///
/// /// Runs `blocks.0`, `blocks.1` and so on, each twice, in f32.
/// fn twice(blocks: &[Linear], x: &Tensor, cx: &Context) -> Result<Tensor> {
///     let mut x = x.shallow_clone();
///     for block in Child::list("blocks", Some(Region::Fp32), blocks) {
///         x = block.forward(&block.forward(&x, cx)?, cx)?;
///     }
///     Ok(x)
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct Child<'m, M: ?Sized> {
    /// Dotted where containers are nested.
    path: Cow<'m, str>,
    /// The place in the container at `path`.
    index: Option<usize>,
    region: Option<Region>,
    module: &'m M,
}

impl<'m, M: ?Sized> Child<'m, M> {
    /// The module of this name.
    pub fn new(name: &'m str, region: Option<Region>, module: &'m M) -> Self {
        Self { path: Cow::Borrowed(name), index: None, region, module }
    }

    /// Runs a module of one input.
    ///
    /// # Errors
    /// The module's error, with the path of the innermost module that failed.
    pub fn forward<A: Arguments>(&self, input: A::At<'_>, cx: &Context) -> Result<M::Output>
    where
        M: Forward<Input = (A,)>,
    {
        cx.call_at(&self.path, self.index, self.region, self.module, (input,))
    }

    /// Runs a module of any inputs, given as a tuple.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_with(
        &self,
        inputs: <M::Input as Arguments>::At<'_>,
        cx: &Context,
    ) -> Result<M::Output>
    where
        M: Forward,
    {
        cx.call_at(&self.path, self.index, self.region, self.module, inputs)
    }
}

impl<M: ?Sized> Child<'_, M> {
    /// The module itself.
    pub(super) fn module(&self) -> &M {
        self.module
    }

    /// Runs a view of the module, which takes other inputs, under the module's name and region.
    pub(super) fn run_as<V: Forward>(
        &self,
        view: &V,
        inputs: <V::Input as Arguments>::At<'_>,
        cx: &Context,
    ) -> Result<V::Output> {
        cx.call_at(&self.path, self.index, self.region, view, inputs)
    }
}

impl<M: Module> Child<'_, M> {
    /// Runs the module by `run`, in one with what stands beside it and has no name. `None` where somebody
    /// wants to see the tensors between them, the module has a region of its own, or `run` cannot.
    pub(super) fn run_with(
        &self,
        cx: &Context,
        run: impl FnOnce() -> Result<Option<Tensor>>,
    ) -> Result<Option<Tensor>> {
        match (self.index, self.region) {
            (None, None) => cx.call_with(&self.path, self.module, run),
            _ => Ok(None),
        }
    }
}

impl<'m, M> Child<'m, M> {
    /// The modules of a container of this name, called by their places.
    pub fn list(name: &'m str, region: Option<Region>, modules: &'m [M]) -> Vec<Self> {
        let child = |(index, module)| Self {
            path: Cow::Borrowed(name),
            index: Some(index),
            region,
            module,
        };
        modules.iter().enumerate().map(child).collect()
    }

    /// The module of this name, where there is one.
    pub fn optional(name: &'m str, region: Option<Region>, module: &'m Option<M>) -> Option<Self> {
        module.as_ref().map(|module| Self::new(name, region, module))
    }
}

impl<'m, M> Child<'m, Vec<M>> {
    /// The container's modules.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Child<'m, M>> + DoubleEndedIterator {
        let path = match self.index {
            Some(index) => Cow::Owned(format!("{}.{index}", self.path)),
            None => self.path.clone(),
        };
        let region = self.region;
        self.module.iter().enumerate().map(move |(index, module)| Child {
            path: path.clone(),
            index: Some(index),
            region,
            module,
        })
    }
}

impl<'m, M> IntoIterator for &Child<'m, Vec<M>> {
    type Item = Child<'m, M>;
    type IntoIter = std::vec::IntoIter<Child<'m, M>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter().collect::<Vec<_>>().into_iter()
    }
}

impl<M: ?Sized> Deref for Child<'_, M> {
    type Target = M;

    fn deref(&self) -> &M {
        self.module
    }
}

impl<M: Visit + ?Sized> Visit for Child<'_, M> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.module.visit(visitor);
    }
}

/// Runs under its own name and region, also where a function takes it as any module.
impl<M: Module + ?Sized> Module for Child<'_, M> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.forward_with((input,), cx)
    }
}
