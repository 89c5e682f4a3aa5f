//! Values that contain tensors. A precision region casts the tensors in its inputs and outputs.

use std::{any::Any, cell::OnceCell};

use tch::Tensor;

use crate::Result;

/// A value that contains tensors: the output of a forward pass, or an input that is passed by
/// reference. The trait is implemented for tensors, numbers, and options, lists and tuples of such
/// values. A struct implements the trait by calling [`each`](Self::each) on its fields:
///
/// ```no_run,standalone_crate
/// use amp_core::{nn::Tensors, prelude::*};
///
/// struct Gaussian {
///     mean: Tensor,
///     log_variance: Tensor,
/// }
///
/// impl Tensors for Gaussian {
///     fn each(&self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
///         let mean = self.mean.each(change)?;
///         Ok(Self { mean, log_variance: self.log_variance.each(change)? })
///     }
/// }
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be passed between layers: `Tensors` is not implemented for it",
    note = "a forward pass takes and returns tensors, numbers, and options, lists and tuples of them",
    note = "for a struct of your own implement `amp_core::nn::Tensors`"
)]
pub trait Tensors: Sized {
    /// Returns a copy of the value in which each tensor is replaced by the result of `change`.
    /// `change` is called for the tensors in the order in which the value declares them.
    ///
    /// # Errors
    /// When `change` fails.
    fn each(&self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self>;
}

impl Tensors for Tensor {
    fn each(&self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        change(self)
    }
}

impl<T: Tensors> Tensors for Option<T> {
    fn each(&self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        self.as_ref().map(|value| value.each(change)).transpose()
    }
}

impl<T: Tensors> Tensors for Vec<T> {
    fn each(&self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        self.iter().map(|value| value.each(change)).collect()
    }
}

impl<T: Tensors> Tensors for Box<T> {
    fn each(&self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        (**self).each(change).map(Self::new)
    }
}

/// The input types of a forward pass, without the lifetimes of their references. For example,
/// `(&'static Tensor, Option<&'static Tensor>)` stands for a tensor and an optional tensor. The
/// trait is implemented for references to [`Tensors`], slices, options, tensors and numbers, and
/// for tuples of these types.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an input of a forward pass",
    note = "inputs are `&Tensor`, numbers, references to structs that implement `Tensors`, slices \
            and options of them"
)]
pub trait Arguments: 'static {
    /// The same inputs with the lifetime `'a`.
    type At<'a>;

    /// Returns the inputs with each tensor replaced by the result of `change`, from the first input
    /// to the last. `kept` stores the new tensors, because the returned inputs contain references
    /// to them.
    ///
    /// # Errors
    /// When `change` fails.
    fn each<'a: 'k, 'k>(
        inputs: &Self::At<'a>,
        kept: &'k Kept,
        change: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Self::At<'k>>;

    /// Returns the same inputs once more, without copying the elements of tensors. The caller keeps
    /// `inputs`, and can describe them if the forward pass fails.
    fn again<'a: 'k, 'k>(inputs: &'k Self::At<'a>) -> Self::At<'k>;
}

impl<T: Tensors + 'static> Arguments for &'static T {
    type At<'a> = &'a T;

    fn each<'a: 'k, 'k>(
        inputs: &&'a T,
        kept: &'k Kept,
        change: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<&'k T> {
        Ok(kept.keep((**inputs).each(change)?))
    }

    fn again<'a: 'k, 'k>(inputs: &'k &'a T) -> &'k T {
        inputs
    }
}

impl<T: Tensors + 'static> Arguments for &'static [T] {
    type At<'a> = &'a [T];

    fn each<'a: 'k, 'k>(
        inputs: &&'a [T],
        kept: &'k Kept,
        change: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<&'k [T]> {
        let values: Vec<T> =
            inputs.iter().map(|value| value.each(change)).collect::<Result<_>>()?;
        Ok(kept.keep(values))
    }

    fn again<'a: 'k, 'k>(inputs: &'k &'a [T]) -> &'k [T] {
        inputs
    }
}

impl<A: Arguments> Arguments for Option<A> {
    type At<'a> = Option<A::At<'a>>;

    fn each<'a: 'k, 'k>(
        inputs: &Self::At<'a>,
        kept: &'k Kept,
        change: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Self::At<'k>> {
        inputs.as_ref().map(|inputs| A::each(inputs, kept, change)).transpose()
    }

    fn again<'a: 'k, 'k>(inputs: &'k Option<A::At<'a>>) -> Option<A::At<'k>> {
        inputs.as_ref().map(A::again)
    }
}

impl Arguments for Tensor {
    type At<'a> = Self;

    fn each<'a: 'k, 'k>(
        inputs: &Self,
        _: &'k Kept,
        change: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        change(inputs)
    }

    fn again<'a: 'k, 'k>(inputs: &'k Self) -> Self {
        inputs.shallow_clone()
    }
}

/// Implements [`Tensors`] and [`Arguments`] for values without tensors.
macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Tensors for $number {
            fn each(&self, _: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
                Ok(*self)
            }
        }

        impl Arguments for $number {
            type At<'a> = Self;

            fn each<'a: 'k, 'k>(
                inputs: &Self,
                _: &'k Kept,
                _: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
            ) -> Result<Self> {
                Ok(*inputs)
            }

            fn again<'a: 'k, 'k>(inputs: &'k Self) -> Self {
                *inputs
            }
        }
    )+};
}

numbers!((), bool, i32, i64, u32, u64, usize, f32, f64);

macro_rules! tuple {
    ($($value:ident $at:tt),+) => {
        impl<$($value: Tensors),+> Tensors for ($($value,)+) {
            fn each(&self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
                Ok(($(self.$at.each(change)?,)+))
            }
        }

        impl<$($value: Arguments),+> Arguments for ($($value,)+) {
            type At<'a> = ($($value::At<'a>,)+);

            fn each<'a: 'k, 'k>(
                inputs: &Self::At<'a>,
                kept: &'k Kept,
                change: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
            ) -> Result<Self::At<'k>> {
                Ok(($($value::each(&inputs.$at, kept, change)?,)+))
            }

            fn again<'a: 'k, 'k>(inputs: &'k Self::At<'a>) -> Self::At<'k> {
                ($($value::again(&inputs.$at),)+)
            }
        }
    };
}

tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
tuple!(A 0, B 1, C 2, D 3, E 4);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

/// Stores the inputs that a precision region has cast, while a forward pass has references to them.
#[derive(Default)]
pub struct Kept {
    first: OnceCell<Box<Link>>,
}

struct Link {
    value: Box<dyn Any>,
    next: OnceCell<Box<Link>>,
}

impl Kept {
    /// Stores `value`, and returns a reference to it.
    pub fn keep<T: 'static>(&self, value: T) -> &T {
        let mut end = &self.first;
        while let Some(link) = end.get() {
            end = &link.next;
        }
        let link = || Box::new(Link { value: Box::new(value), next: OnceCell::new() });
        match end.get_or_init(link).value.downcast_ref() {
            Some(value) => value,
            None => unreachable!("the last entry of the list is empty"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn inputs_and_outputs_are_walked_in_order() -> Result<()> {
        let [a, b, c] = [1, 2, 3].map(|value: i64| Tensor::from(value));
        let list = vec![b, c];
        let kept = Kept::default();
        let mut seen = Vec::new();
        type Inputs = (&'static Tensor, Option<&'static Tensor>, &'static [Tensor], i64);
        let (first, none, rest, number) =
            <Inputs as Arguments>::each(&(&a, None, &list, 7), &kept, &mut |tensor| {
                seen.push(tensor.f_int64_value(&[])?);
                Ok(tensor.f_to_kind(Kind::Float)?)
            })?;
        assert_eq!((seen, number, none.is_none()), (vec![1, 2, 3], 7, true));
        let kinds = (first.kind(), rest[0].kind(), rest[1].kind(), a.kind());
        assert_eq!(kinds, (Kind::Float, Kind::Float, Kind::Float, Kind::Int64));
        let output = (a.shallow_clone(), (Some(list), 1.5))
            .each(&mut |tensor| Ok(tensor.f_mul_scalar(10)?))?;
        let (_, (list, _)) = output;
        let values: Vec<i64> =
            list.unwrap_or_default().iter().map(|tensor| tensor.int64_value(&[])).collect();
        assert_eq!(values, [20, 30]);
        Ok(())
    }
}
