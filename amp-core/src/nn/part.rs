//! Implements expressions such as `block.head` in a derived `#[forward]`. The derive writes
//! `(&Within(&block)).part("head", |block| &block.head)`. Two traits have the method `part`.
//! [`PartOfChild`] applies if `block` is a [`Child`] (a layer with its path), and returns `head` as
//! a `Child`, too. [`PartOfAny`] applies to everything else, and returns a reference to the field.
//! The method of `PartOfChild` needs one automatic reference less than that of `PartOfAny`, so
//! method resolution tries it first.

use std::ops::Index;

use super::{Child, Visit};

/// The object whose field is accessed.
#[derive(Debug)]
pub struct Within<T>(pub T);

/// Gives access to the fields of a [`Child`].
pub trait PartOfChild<'m, M: Visit + ?Sized + 'm> {
    /// Returns the child whose field is accessed.
    fn child(&self) -> &Child<'m, M>;

    /// Returns the field as a child module with the field's name.
    fn part<C: ?Sized>(&self, name: &'static str, of: impl FnOnce(&'m M) -> &'m C) -> Child<'m, C> {
        self.child().part(name, of)
    }

    /// Returns one element of a field that is a list, as a child module.
    fn part_nth<C>(
        &self,
        name: &'static str,
        of: impl FnOnce(&'m M) -> &'m Vec<C>,
        at: usize,
    ) -> Child<'m, C> {
        self.part(name, of).nth(at)
    }
}

impl<'m, M: Visit + ?Sized> PartOfChild<'m, M> for Within<&Child<'m, M>> {
    fn child(&self) -> &Child<'m, M> {
        self.0
    }
}

impl<'m, M: Visit + ?Sized> PartOfChild<'m, M> for Within<&&Child<'m, M>> {
    fn child(&self) -> &Child<'m, M> {
        self.0
    }
}

/// Gives access to the fields of an object that is not a [`Child`].
pub trait PartOfAny<'t, T: ?Sized + 't> {
    /// Returns the field itself.
    fn part<C: ?Sized>(&self, name: &'static str, of: impl FnOnce(&'t T) -> &'t C) -> &'t C;

    /// Returns the element of the field at the index `at`.
    fn part_nth<I, C: Index<I> + ?Sized + 't>(
        &self,
        name: &'static str,
        of: impl FnOnce(&'t T) -> &'t C,
        at: I,
    ) -> &'t C::Output;
}

impl<'t, T: ?Sized> PartOfAny<'t, T> for &Within<&'t T> {
    fn part<C: ?Sized>(&self, _: &'static str, of: impl FnOnce(&'t T) -> &'t C) -> &'t C {
        of(self.0)
    }

    fn part_nth<I, C: Index<I> + ?Sized + 't>(
        &self,
        _: &'static str,
        of: impl FnOnce(&'t T) -> &'t C,
        at: I,
    ) -> &'t C::Output {
        &of(self.0)[at]
    }
}
