//! Finds methods of a trait that a wrapper does not pass on to the wrapped value.

use std::path::Path;

use crate::{Finding, files};

/// Returns the methods of `LightningModule` that amp-verify's `Intercepted` does not pass on. Such a
/// method would have its default, and the intercepted run would differ from the model's own run.
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
