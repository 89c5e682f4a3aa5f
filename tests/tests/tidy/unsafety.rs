//! Finds unsafe code, and lint attributes that allow unsafe code.

use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};

use crate::{
    Finding,
    files::{all, ends_in, text},
};

/// Finds the word `unsafe`, and lint attributes that allow unsafe code, outside the folder `home`.
pub(crate) fn outside(root: &Path, home: &Path) -> Vec<Finding> {
    let sources = all(root).into_iter().filter(|file| ends_in(file, &["rs"]));
    let mut findings = Vec::new();
    for file in sources.filter(|file| !file.starts_with(home)) {
        let source = text(&root.join(&file));
        // Most files do not contain the word `unsafe`, so they need not be parsed.
        if source.contains("unsafe") {
            findings.extend(words(&source).into_iter().map(|(line, word)| {
                let home = home.display();
                let text = format!(
                    "{word}: unsafe code is allowed only in {home}; call a safe function there"
                );
                Finding::new(&file, line, text)
            }));
        }
    }
    findings
}

/// Returns the occurrences of `unsafe` outside of comments and strings, with their line numbers.
pub(crate) fn words(source: &str) -> Vec<(usize, String)> {
    let Ok(tokens) = source.parse::<TokenStream>() else {
        return vec![(1, "not valid Rust, so that unsafe code cannot be found".to_owned())];
    };
    let mut found = Vec::new();
    collect(tokens, false, &mut found);
    found
}

/// Collects the places with unsafe code or with a lint attribute that allows it. `allowed` is true
/// if the tokens are the arguments of `allow`, `expect` or `warn`.
fn collect(tokens: TokenStream, allowed: bool, found: &mut Vec<(usize, String)>) {
    let mut levels = false;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                let line = ident.span().start().line;
                levels = ["allow", "expect", "warn"].iter().any(|level| ident == level);
                if ident == "unsafe" {
                    found.push((line, "`unsafe`".to_owned()));
                } else if ident == "unsafe_code" && allowed {
                    found.push((line, "a lint level for `unsafe_code`".to_owned()));
                }
            }
            TokenTree::Group(group) => collect(group.stream(), std::mem::take(&mut levels), found),
            _ => levels = false,
        }
    }
}
