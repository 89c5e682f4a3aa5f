//! Reports every matrix product of a forward pass to a dtype probe, even if the product is computed
//! outside of layers. Also reports the operators that draw random numbers.

use super::{Context, Observer};
use crate::{
    Result,
    ffi::{self, PausedProducts, Recorded, WatchedProducts},
    nn::{Draw, Product},
};

/// A guard. While it exists, the matrix products and random numbers that this thread computes are
/// reported to the probe of `context`.
#[must_use = "matrix products are reported until this guard is dropped"]
pub(crate) struct ProductsOf<'c> {
    context: &'c Context,
    _watched: WatchedProducts,
}

impl Context {
    /// Starts reporting to the probe of this context. A `DtypeProbe` receives every matrix product
    /// and every draw of random numbers, and a `Probe` receives every draw. Returns `None` if the
    /// context has no probe of these two kinds.
    ///
    /// # Errors
    /// When libtorch does not accept a callback.
    pub(crate) fn watch_products(&self) -> Result<Option<ProductsOf<'_>>> {
        if !matches!(self.observer, Observer::Dtypes(_) | Observer::Tensors(_)) {
            return Ok(None);
        }
        let watched = WatchedProducts::start()?;
        self.watches_products.set(true);
        Ok(Some(ProductsOf { context: self, _watched: watched }))
    }

    /// Stops the reporting of matrix products until the result is dropped, so that the products of
    /// this context do not reach the probe of another context. Does nothing if the products are
    /// reported to the probe of this context.
    pub(crate) fn pause_others_products(&self) -> Option<PausedProducts> {
        (!self.watches_products.get()).then(PausedProducts::pause)
    }

    /// Reports the matrix products and random numbers that were computed since the last change of
    /// the path or of the precision region.
    pub(super) fn report_products(&self) {
        if !self.watches_products.get() {
            return;
        }
        let (path, plan) = (self.path(), self.plan.get());
        for Recorded { operator, kind, draws } in ffi::take_products().unwrap_or_default() {
            let draw = Draw { path: &path, operator, kind };
            match &self.observer {
                Observer::Dtypes(probe) if draws => probe.draw(&draw),
                Observer::Dtypes(probe) => {
                    probe.matrix_product(&Product { path: &path, operator, plan, kind });
                }
                Observer::Tensors(probe) if draws => probe.draw(&draw),
                _ => {}
            }
        }
    }
}

impl Drop for ProductsOf<'_> {
    fn drop(&mut self) {
        self.context.report_products();
        self.context.watches_products.set(false);
    }
}
