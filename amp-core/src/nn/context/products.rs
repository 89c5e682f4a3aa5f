//! The matrix products of a pass, wherever its code has them.

use super::{Context, Observer};
use crate::{
    Result,
    ffi::{self, PausedProducts, WatchedProducts},
    nn::Product,
};

/// Shows a context's dtype probe the products of this thread while it lives.
#[must_use = "products are watched until this is dropped"]
pub(crate) struct ProductsOf<'c> {
    context: &'c Context,
    _watched: WatchedProducts,
}

impl Context {
    /// Shows the dtype probe every product from now on; `None` where there is no such probe.
    ///
    /// # Errors
    /// When libtorch takes no callback.
    pub(crate) fn watch_products(&self) -> Result<Option<ProductsOf<'_>>> {
        if !matches!(self.observer, Observer::Dtypes(_)) {
            return Ok(None);
        }
        let watched = WatchedProducts::start()?;
        self.watches_products.set(true);
        Ok(Some(ProductsOf { context: self, _watched: watched }))
    }

    /// Keeps what runs under this context out of another one's products.
    pub(crate) fn pause_others_products(&self) -> Option<PausedProducts> {
        (!self.watches_products.get()).then(PausedProducts::pause)
    }

    /// Shows what was multiplied since the path or the plan changed.
    pub(super) fn show_products(&self) {
        if !self.watches_products.get() {
            return;
        }
        let Observer::Dtypes(probe) = &self.observer else { return };
        let (path, plan) = (self.path(), self.plan.get());
        for (operator, kind) in ffi::take_products().unwrap_or_default() {
            probe.multiplied(&Product { path: &path, operator, plan, kind });
        }
    }
}

impl Drop for ProductsOf<'_> {
    fn drop(&mut self) {
        self.context.show_products();
        self.context.watches_products.set(false);
    }
}
