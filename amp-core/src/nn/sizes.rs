//! Sizes of windows and paddings: one number for all dimensions, or one for each dimension.

/// A size for each of `N` dimensions. As in PyTorch, a single number stands for all dimensions: `3`
/// and `[3, 3]` are the same kernel size.
///
/// ```
/// use amp_core::nn::Sizes;
///
/// assert_eq!(Sizes::<2>::from(3), Sizes::from([3, 3]));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes<const N: usize>(pub [i64; N]);

macro_rules! from_integers {
    ($($integer:ty)*) => {$(
        impl<const N: usize> From<$integer> for Sizes<N> {
            fn from(size: $integer) -> Self {
                Self([size.into(); N])
            }
        }

        impl<const N: usize> From<[$integer; N]> for Sizes<N> {
            fn from(sizes: [$integer; N]) -> Self {
                Self(sizes.map(i64::from))
            }
        }
    )*};
}

// `From<i32>` accepts integer literals, because a literal without a type is an i32.
from_integers!(i64 i32);

impl<const N: usize> Sizes<N> {
    /// Returns the product of the sizes.
    pub(super) fn product(&self) -> i64 {
        self.0.iter().product()
    }

    /// Returns the size that all dimensions have, or `None` if their sizes differ.
    pub(super) fn common(&self) -> Option<i64> {
        self.0.iter().all(|size| *size == self.0[0]).then_some(self.0[0])
    }
}
