//! Finds methods of a trait that a wrapper does not forward to the wrapped value.

use std::path::Path;

use crate::{Finding, files};

/// Returns the methods of `LightningModule` that amp-verify's `Intercepted` does not forward to the
/// wrapped model. For such a method, a run with `Intercepted` would call the trait's default
/// instead of the model's own method.
pub(crate) fn missing(root: &Path) -> Vec<Finding> {
    let text = |file: &str| files::text(&root.join(file));
    let (of_trait, wrapper) = ("amp-core/src/module/mod.rs", "amp-verify/src/interceptor.rs");
    let (of_trait, own) = (text(of_trait), text(wrapper));
    let of_trait = methods(&of_trait, "\npub trait LightningModule: Visit {");
    let own = methods(&own, "LightningModule for Intercepted<'_, T> {");
    assert!(of_trait.len() > 15, "{of_trait:?}");
    let missing = of_trait.into_iter().filter(|name| !own.contains(name));
    missing.map(|name| Finding::new(wrapper, 1, format!("{name} is not passed on"))).collect()
}

/// Returns the names of the methods of a trait or an `impl`. `begin` is the text with which the
/// first line of the trait or `impl` ends.
fn methods<'s>(source: &'s str, begin: &str) -> Vec<&'s str> {
    let (_, item) = source.split_once(begin).expect("the item");
    let (item, _) = item.split_once("\n}\n").expect("the end of the item");
    let name = |line: &'s str| Some(line.strip_prefix("    fn ")?.split_once('(')?.0);
    item.lines().filter_map(name).collect()
}
