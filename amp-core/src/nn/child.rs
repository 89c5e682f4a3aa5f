use std::{borrow::Cow, ops::Deref};

use tch::Tensor;

use super::{Context, Forward, Module, Role, Visit, Visitor};
use crate::{
    Result,
    precision::{Arguments, Region},
};

/// A step in a module's path: the dotted path of a child, or of an element of a container.
#[derive(Debug, Clone)]
pub(in crate::nn) struct Place<'m> {
    /// The name. It is dotted if containers are nested.
    pub(in crate::nn) path: Cow<'m, str>,
    /// The index in the container at `path`.
    pub(in crate::nn) index: Option<usize>,
    /// The precision region that the parent declares for the first name of `path`.
    pub(in crate::nn) region: Option<Region>,
}

/// A module with its name in the parent. It runs under the parent's path and in its own precision
/// region, as [`Context::call`] does for modules with one tensor. In a derived `#[forward]` every
/// layer field is a `Child`, so that `self.head.forward(x, cx)` runs under the path `head` and in
/// that field's precision region.
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
    /// The modules between the running module and this module's parent, outermost first.
    parents: Vec<Place<'m>>,
    place: Place<'m>,
    module: &'m M,
}

impl<'m, M: ?Sized> Child<'m, M> {
    /// Gives `module` this name in its parent, and this precision region.
    pub fn new(name: &'m str, region: Option<Region>, module: &'m M) -> Self {
        let place = Place { path: Cow::Borrowed(name), index: None, region };
        Self { parents: Vec::new(), place, module }
    }

    /// Runs a module with one input.
    ///
    /// # Errors
    /// The module's error, with the path of the innermost module that failed.
    pub fn forward<A: Arguments>(&self, input: A::At<'_>, cx: &Context) -> Result<M::Output>
    where
        M: Forward<Input = (A,)>,
    {
        cx.call_at(self.places(), self.module, (input,))
    }

    /// Runs a module with any inputs, given as a tuple.
    ///
    /// # Errors
    /// The errors of [`forward`](Self::forward).
    pub fn forward_with(
        &self,
        inputs: <M::Input as Arguments>::At<'_>,
        cx: &Context,
    ) -> Result<M::Output>
    where
        M: Forward,
    {
        cx.call_at(self.places(), self.module, inputs)
    }
}

impl<'m, M: ?Sized> Child<'m, M> {
    /// Returns the module itself.
    pub(super) fn module(&self) -> &M {
        self.module
    }

    /// Runs `view`, a wrapper of the module that takes other inputs, under the child's name and in
    /// its precision region.
    pub(super) fn run_as<V: Forward>(
        &self,
        view: &V,
        inputs: <V::Input as Arguments>::At<'_>,
        cx: &Context,
    ) -> Result<V::Output> {
        cx.call_at(self.places(), view, inputs)
    }

    /// Returns the steps of the child's path, from the running module inwards.
    fn places(&self) -> impl Iterator<Item = &Place<'m>> {
        self.parents.iter().chain([&self.place])
    }
}

impl<'m, M: Visit + ?Sized> Child<'m, M> {
    /// Returns a child of this module, such as `block.head` of `block`. It runs under the path of
    /// both names and in the precision regions of both modules. `name` is its name in the module's
    /// [`Visit`]. If the module has no child of this name, the path omits it.
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::{nn::Child, prelude::*};
    ///
    /// #[derive(Module)]
    /// struct Block {
    ///     #[layer(linear(4, 4))]
    ///     #[precision(fp32)]
    ///     head: Linear,
    /// }
    ///
    /// /// Runs `block.head` in f32.
    /// fn head(block: &Block, x: &Tensor, cx: &Context) -> Result<Tensor> {
    ///     Child::new("block", None, block).part("head", |block| &block.head).forward(x, cx)
    /// }
    /// # fn main() {}
    /// ```
    pub fn part<C: ?Sized>(&self, name: &'m str, of: impl FnOnce(&'m M) -> &'m C) -> Child<'m, C> {
        let (mut parents, mut place) = (self.parents.clone(), self.place.clone());
        if let Some(region) = region_of(name, self.module) {
            parents.push(place);
            place = Place { path: Cow::Borrowed(name), index: None, region };
        }
        Child { parents, place, module: of(self.module) }
    }
}

/// Returns the region that `module` declares for its child of this name; `None` if it has no such
/// child.
fn region_of<M: Visit + ?Sized>(name: &str, module: &M) -> Option<Option<Region>> {
    struct Search<'n> {
        name: &'n str,
        depth: usize,
        found: Option<Option<Region>>,
    }

    impl Visitor for Search<'_> {
        fn enter(&mut self, name: &str, region: Option<Region>) {
            if self.depth == 0 && name == self.name {
                self.found = Some(region);
            }
            self.depth += 1;
        }

        fn leave(&mut self) {
            self.depth -= 1;
        }

        fn tensor(&mut self, _: &str, _: &Tensor, _: Role) {}
    }
    let mut search = Search { name, depth: 0, found: None };
    module.visit(&mut search);
    search.found
}

impl<M: Module> Child<'_, M> {
    /// Runs the module by `run`, in one fused call with neighbouring operations that are not
    /// modules. Calls `apart` instead, which runs the operations one by one, if a probe reads the
    /// tensors between them, if the module has a precision region of its own, or if `run` returns
    /// `None`.
    pub(super) fn run_with<const N: usize>(
        &self,
        cx: &Context,
        inputs: [&Tensor; N],
        run: impl Fn([&Tensor; N], &Context) -> Result<Option<Tensor>>,
        apart: impl Fn([&Tensor; N], &Context) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match (&*self.parents, &self.place) {
            ([], Place { path, index: None, region: None }) => {
                cx.call_with(path, self.module, inputs, run, apart)
            }
            _ => apart(inputs, cx),
        }
    }
}

impl<'m, M> Child<'m, M> {
    /// Returns one child for each module of a container. Its path is the container's name and its
    /// index, as in `blocks.0`.
    pub fn list(name: &'m str, region: Option<Region>, modules: &'m [M]) -> Vec<Self> {
        let child = |(index, module)| Self {
            parents: Vec::new(),
            place: Place { path: Cow::Borrowed(name), index: Some(index), region },
            module,
        };
        modules.iter().enumerate().map(child).collect()
    }

    /// Returns the module with this name, if it exists.
    pub fn optional(name: &'m str, region: Option<Region>, module: &'m Option<M>) -> Option<Self> {
        module.as_ref().map(|module| Self::new(name, region, module))
    }
}

impl<'m, M> Child<'m, Vec<M>> {
    /// Returns the container's modules.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Child<'m, M>> + DoubleEndedIterator {
        let list = self.list_place();
        self.module.iter().enumerate().map(move |(index, module)| Child {
            parents: self.parents.clone(),
            place: Place { index: Some(index), ..list.clone() },
            module,
        })
    }

    /// Returns the container's module at this index.
    ///
    /// # Panics
    /// When the container has fewer modules, as when indexing a `Vec`.
    #[must_use]
    pub fn nth(&self, index: usize) -> Child<'m, M> {
        Child {
            parents: self.parents.clone(),
            place: Place { index: Some(index), ..self.list_place() },
            module: &self.module[index],
        }
    }

    /// Returns the path step of the container itself, without an index.
    fn list_place(&self) -> Place<'m> {
        let Place { path, index, region } = &self.place;
        let path = match index {
            Some(index) => Cow::Owned(format!("{path}.{index}")),
            None => path.clone(),
        };
        Place { path, index: None, region: *region }
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

/// Lets functions that accept any module take a child, which keeps its name and precision region.
impl<M: Module + ?Sized> Module for Child<'_, M> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.forward_with((input,), cx)
    }
}
