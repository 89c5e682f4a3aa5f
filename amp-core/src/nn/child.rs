use std::{borrow::Cow, ops::Deref};

use tch::Tensor;

use super::{Context, Forward, Module, Role, Visit, Visitor};
use crate::{
    Result,
    precision::{Arguments, Region},
};

/// A component of a module path: a child, identified by its name, or an element of a container,
/// identified by the container's name and an index.
#[derive(Debug, Clone)]
pub(in crate::nn) struct Place<'m> {
    /// The module's name in its parent. In nested containers it contains the name and the index of
    /// each outer container, separated by dots: `blocks.0` for the modules `blocks.0.1` and
    /// `blocks.0.2`.
    pub(in crate::nn) path: Cow<'m, str>,
    /// The index of the module in the container at `path`; `None` if the module is not in a
    /// container.
    pub(in crate::nn) index: Option<usize>,
    /// The precision region that the parent declares for the field that the first component of
    /// `path` names.
    pub(in crate::nn) region: Option<Region>,
}

/// A module together with its name in the parent module, and with the precision region that the
/// parent declares for it. When the module runs, its path is the parent's path followed by its
/// name, and its precision region applies. For a module whose input is one tensor,
/// [`Context::call`] does this without a `Child`. In a derived `#[forward]` every layer field is a
/// `Child`. For example, `self.head.forward(x, cx)` runs under the path `head` and in that field's
/// precision region.
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
    /// The modules between the running module and this module, outermost first.
    parents: Vec<Place<'m>>,
    place: Place<'m>,
    module: &'m M,
}

impl<'m, M: ?Sized> Child<'m, M> {
    /// Creates the child `module` with its name in the parent, and the precision region that the
    /// parent declares for it.
    pub fn new(name: &'m str, region: Option<Region>, module: &'m M) -> Self {
        let place = Place { path: Cow::Borrowed(name), index: None, region };
        Self { parents: Vec::new(), place, module }
    }

    /// Runs a module that has one input.
    ///
    /// # Errors
    /// When the module fails; the error contains the path of the innermost module that failed.
    pub fn forward<A: Arguments>(&self, input: A::At<'_>, cx: &Context) -> Result<M::Output>
    where
        M: Forward<Input = (A,)>,
    {
        cx.call_at(self.places(), self.module, (input,))
    }

    /// Runs a module that has any number of inputs, given as a tuple.
    ///
    /// # Errors
    /// When [`forward`](Self::forward) would fail.
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
    /// Returns the module, without name and precision region.
    pub(super) fn module(&self) -> &M {
        self.module
    }

    /// Runs `view`, which wraps the module to give it other inputs. Adds the child's name to the
    /// module path, and applies the child's precision region.
    pub(super) fn run_as<V: Forward>(
        &self,
        view: &V,
        inputs: <V::Input as Arguments>::At<'_>,
        cx: &Context,
    ) -> Result<V::Output> {
        cx.call_at(self.places(), view, inputs)
    }

    /// Returns the components of the child's path, from the running module inwards.
    fn places(&self) -> impl Iterator<Item = &Place<'m>> {
        self.parents.iter().chain([&self.place])
    }
}

impl<'m, M: Visit + ?Sized> Child<'m, M> {
    /// Returns a child of this module, for example `block.head` of `block`. When the child runs,
    /// both names are added to the path, and the precision regions of both apply, the child's
    /// within that of this module. `name` is the name that this module gives to the child in
    /// [`Visit`]. If the module lists no child of this name in [`Visit`], the path does not contain
    /// the name.
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

/// Returns the precision region that `module` declares for its child of this name. The outer `None`
/// means that `module` has no such child; the inner `None` means that `module` declares no region
/// for the child.
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
    /// Runs the module together with operations before or after it that are not modules. Usually
    /// calls `run`, which computes them in one fused call. Calls `apart`, which computes them one
    /// by one, if `run` returns `None`, if fusion is not allowed (for example because a probe reads
    /// the tensors between them), or if the child has its own precision region, is an element of a
    /// container, or is a child of a child.
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
    /// Returns one child for each module of a container. The path of a child is the container's
    /// name followed by the child's index, as in `blocks.0`.
    pub fn list(name: &'m str, region: Option<Region>, modules: &'m [M]) -> Vec<Self> {
        let child = |(index, module)| Self {
            parents: Vec::new(),
            place: Place { path: Cow::Borrowed(name), index: Some(index), region },
            module,
        };
        modules.iter().enumerate().map(child).collect()
    }

    /// Returns the child `name` if the optional module exists.
    pub fn optional(name: &'m str, region: Option<Region>, module: &'m Option<M>) -> Option<Self> {
        module.as_ref().map(|module| Self::new(name, region, module))
    }
}

impl<'m, M> Child<'m, Vec<M>> {
    /// Returns the container's modules as children.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Child<'m, M>> + DoubleEndedIterator {
        let list = self.list_place();
        self.module.iter().enumerate().map(move |(index, module)| Child {
            parents: self.parents.clone(),
            place: Place { index: Some(index), ..list.clone() },
            module,
        })
    }

    /// Returns the module at this index of the container, as a child.
    ///
    /// # Panics
    /// When the container has no module at this index, as when indexing a `Vec`.
    #[must_use]
    pub fn nth(&self, index: usize) -> Child<'m, M> {
        Child {
            parents: self.parents.clone(),
            place: Place { index: Some(index), ..self.list_place() },
            module: &self.module[index],
        }
    }

    /// Returns the path component of the container itself, without an index.
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

/// A child is a module itself, so that it can be passed to functions that accept any module. The
/// child's name and precision region apply in such functions, too.
impl<M: Module + ?Sized> Module for Child<'_, M> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.forward_with((input,), cx)
    }
}
