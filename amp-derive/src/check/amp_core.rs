//! Rules about `#[amp(crate = …)]`, which gives the path of amp-core.

use quote::ToTokens;
use syn::{Expr, ExprLit, ExprPath, Lit, Path, PathArguments};

use super::{keys, only};
use crate::{diag::Diagnostics, manifest::Manifest, model::Pair, spec::Attr, symbol, tokens};

/// Returns the path of amp-core: the path that `#[amp]` gives, or the name in the user's
/// Cargo.toml. Reports an error and returns `None` if there is neither.
pub(crate) fn path(attrs: &[Attr], manifest: fn() -> Manifest, diag: &Diagnostics) -> Option<Path> {
    match only(attrs, symbol::AMP, diag) {
        // If the attribute has an error, the generated stubs use the path from the manifest.
        Some(attr) => given(attr, diag).or_else(|| named(&manifest())),
        None => is_a_dependency(&manifest(), diag),
    }
}

/// Checks the rule: no name in the user's struct is `__amp`, the name under which generated code
/// imports amp-core.
pub(crate) fn alias_is_free(of_the_user: impl ToTokens, diag: &Diagnostics) -> Option<()> {
    let Some(taken) = tokens::mention(of_the_user.to_token_stream(), ALIAS) else {
        return Some(());
    };
    diag.error(
        taken,
        "generated code imports amp-core as `__amp`: write `self::__amp`, or rename your `__amp`",
    );
    None
}

const ALIAS: &str = "__amp";

/// Checks the rule: `#[amp]` takes `crate` and nothing else.
fn given(attr: &Attr, diag: &Diagnostics) -> Option<Path> {
    let args = attr.args.as_deref()?;
    if args.is_empty() {
        diag.error(&attr.path, format!("give the path of amp-core: {EXAMPLE}"));
        return None;
    }
    let mut pairs = keys::pairs(symbol::AMP, args, &[symbol::CRATE], diag)?;
    keys::take(&mut pairs, symbol::CRATE).and_then(|pair| crate_is_a_path(&pair, diag))
}

const EXAMPLE: &str = "`#[amp(crate = \"my_prelude::amp_core\")]`";

/// Checks the rule: the value of `crate` is a path. The path may be in quotes, as in serde, or
/// without quotes, so that a macro can write `$crate`.
fn crate_is_a_path(pair: &Pair, diag: &Diagnostics) -> Option<Path> {
    let path = match &pair.value {
        Expr::Path(ExprPath { qself: None, path, .. }) => Some(path.clone()),
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => text.parse().ok(),
        _ => None,
    };
    let has_no_arguments =
        |path: &Path| path.segments.iter().all(|s| matches!(s.arguments, PathArguments::None));
    let path = path.filter(has_no_arguments);
    let Some(path) = path else {
        diag.error(&pair.value, format!("`crate` takes the path of amp-core, as in {EXAMPLE}"));
        return None;
    };
    // The first call of `alias_is_free` skips string literals, so a path in quotes is checked here.
    if matches!(pair.value, Expr::Lit(_)) {
        alias_is_free(&path, diag)?;
    }
    Some(path)
}

/// Checks the rule: the user's crate depends on amp-core, which generated code uses. A crate
/// without this dependency must give the path of a re-export in `#[amp(crate = …)]`.
fn is_a_dependency(manifest: &Manifest, diag: &Diagnostics) -> Option<Path> {
    let found = named(manifest);
    if found.is_none() {
        diag.push(syn::Error::new(
            proc_macro2::Span::call_site(),
            format!(
                "amp-core is not a dependency of this crate: add it to Cargo.toml, or name the \
                 path of a re-export, as in {EXAMPLE}"
            ),
        ));
    }
    found
}

/// Returns the path of amp-core. The path begins with `::`, so that no module of the user can
/// shadow amp-core.
fn named(manifest: &Manifest) -> Option<Path> {
    match manifest {
        Manifest::Named(name) => syn::parse_str(&format!("::{name}")).ok(),
        Manifest::Missing => None,
    }
}
