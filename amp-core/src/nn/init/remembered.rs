//! A cache of large tensors of random initial values, for models that are built several times with
//! the same seed. Computing the random weights of GPT-2 takes ten times as long as copying them.

use std::cell::RefCell;

use tch::{Device, Tensor};

use super::values::Draw;
use crate::{Result, random::RandomState};

/// The smallest number of elements of a tensor that is cached.
const LEAST: usize = 1 << 16;
/// The largest number of bytes that the cached tensors may take.
const MOST: usize = 8 << 30;

thread_local! {
    static KEPT: RefCell<Option<Vec<Kept>>> = const { RefCell::new(None) };
}

struct Kept {
    draw: Draw,
    before: RandomState,
    values: Tensor,
    after: RandomState,
}

/// A guard. While it exists, large tensors of random initial values are cached on this thread. If a
/// tensor of the same shape and distribution is requested in the same state of libtorch's
/// generator, the cached values are copied, and the generator gets the state that it had after the
/// first computation. The values are the same as without the cache.
///
/// ```
/// use amp_core::{nn::{Init, Role, init}, random};
///
/// # fn main() -> amp_core::Result<()> {
/// let draw = || -> amp_core::Result<_> {
///     let _section = random::seeded(7)?;
///     Init::Normal { mean: 0.0, std: 1.0 }.tensor(&[512, 512], Role::Parameter)
/// };
/// let first = draw()?;
/// let _remembering = init::Remembering::new();
/// assert!(draw()?.f_equal(&first)? && draw()?.f_equal(&first)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Remembering {
    /// Whether another guard existed when this one was created. If so, dropping this guard does not
    /// clear the cache.
    is_inner: bool,
}

impl Remembering {
    /// Starts the caching of random initial values. If another guard exists already, the two guards
    /// share one cache.
    #[expect(clippy::new_without_default, reason = "it is a guard")]
    pub fn new() -> Self {
        KEPT.with_borrow_mut(|kept| {
            let is_inner = kept.is_some();
            kept.get_or_insert_default();
            Self { is_inner }
        })
    }
}

impl Drop for Remembering {
    fn drop(&mut self) {
        if !self.is_inner {
            KEPT.set(None);
        }
    }
}

/// Returns random values: a copy of the cached values for the same request and generator state, or
/// otherwise the values that `new` computes.
pub(super) fn values(
    draw: Draw,
    shape: &[i64],
    new: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    let count: i64 = shape.iter().product();
    let is_kept = KEPT.with_borrow(Option::is_some) && count >= LEAST as i64;
    if !is_kept {
        return new();
    }
    let before = RandomState::read(Device::Cpu)?;
    let known = KEPT.with_borrow(|kept| -> Result<Option<Tensor>> {
        for one in kept.iter().flatten() {
            if one.draw == draw && one.values.size() == shape && one.before.is_same(&before)? {
                one.after.restore(Device::Cpu)?;
                return Ok(Some(one.values.f_detach_copy()?));
            }
        }
        Ok(None)
    })?;
    if let Some(known) = known {
        return Ok(known);
    }
    let values = new()?;
    let (kept, after) = (values.f_detach_copy()?, RandomState::read(Device::Cpu)?);
    KEPT.with_borrow_mut(|all| {
        let all = all.get_or_insert_default();
        let bytes: usize = all.iter().map(|one| 4 * one.values.numel()).sum();
        if bytes + 4 * values.numel() > MOST {
            all.clear();
        }
        all.push(Kept { draw, before, values: kept, after });
    });
    Ok(values)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tch::Kind;

    use super::*;
    use crate::{
        nn::{Init, Role},
        random,
    };

    /// Returns a large random tensor, a small one, another large one, and a tensor of eight random
    /// numbers, all drawn one after the other from one seed.
    fn drawn(seed: u64, std: f64) -> Result<Vec<Tensor>> {
        let _section = random::seeded(seed)?;
        let init = Init::Normal { mean: 0.0, std };
        let mut all = vec![init.tensor(&[300, 300], Role::Buffer)?];
        all.push(Init::Uniform { low: 0.0, high: std }.tensor(&[10], Role::Buffer)?);
        all.push(init.tensor(&[300, 300], Role::Buffer)?);
        all.push(Tensor::f_rand([8], (Kind::Float, Device::Cpu))?);
        Ok(all)
    }

    /// Checks that cached random values, and the random values drawn after them, are bit-identical
    /// to those drawn without the cache. This must hold for the first and for every later request,
    /// for each seed, and for each distribution. Changing a returned tensor in place must not
    /// change the values that are returned later.
    #[rstest]
    #[case::again(&[(1, 1.0), (1, 1.0), (1, 1.0)])]
    #[case::other_seed(&[(1, 1.0), (2, 1.0), (1, 1.0)])]
    #[case::other_width(&[(1, 1.0), (1, 0.5), (1, 1.0)])]
    fn kept_draws_are_the_draws(#[case] draws: &[(u64, f64)]) -> Result<()> {
        let plain =
            draws.iter().map(|(seed, std)| drawn(*seed, *std)).collect::<Result<Vec<_>>>()?;
        let _remembering = Remembering::new();
        for ((seed, std), plain) in draws.iter().zip(&plain) {
            for (found, expected) in drawn(*seed, *std)?.into_iter().zip(plain) {
                assert!(found.f_equal(expected)?, "seed {seed}");
                let _ = found.shallow_clone().f_zero_()?;
            }
        }
        Ok(())
    }

    /// Checks that nothing is cached any more after the outermost guard was dropped.
    #[test]
    fn nothing_is_kept_behind_the_guard() -> Result<()> {
        {
            let _outer = Remembering::new();
            drop(Remembering::new());
            drawn(1, 1.0)?;
            assert_eq!(KEPT.with_borrow(|kept| kept.as_ref().map(Vec::len)), Some(2));
        }
        assert!(KEPT.with_borrow(Option::is_none));
        Ok(())
    }
}
