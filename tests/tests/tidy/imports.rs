//! Checks the imports between the top-level modules of a crate.

use std::path::Path;

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::{
    Attribute, Item, ItemMod, ItemUse, Macro, Meta, UseTree,
    visit::{self, Visit},
};

use crate::{
    Finding,
    modules::{Meaning, Names, Source, declared, is_test, sources},
};

/// Finds imports that the order of the modules does not allow. `order` lists the modules from
/// bottom to top, and a module may not import from a module above it. Also finds modules of `order`
/// that the crate does not have, and modules of the crate that `order` does not contain.
pub(crate) fn upward(root: &Path, krate: &str, order: &[&str]) -> Vec<Finding> {
    let (sources, mut findings) = sources(root, krate);
    let names = Names::new(&sources);
    let place = |module: &str| order.iter().position(|entry| *entry == module);
    for source in &sources {
        let Some(own) = source.module.first() else {
            findings.extend(differences(source, krate, order));
            continue;
        };
        let mut imports = Imports::new(krate, source);
        source.items.iter().for_each(|item| imports.visit_item(item));
        for (line, name) in imports.found {
            let text = match names.meaning(&name) {
                Meaning::Module(other) if place(&other) > place(own) => format!(
                    "`{own}` imports `{name}` of `{other}`, which is above it in the order: move the \
                     imported code to `{own}` or below it",
                ),
                Meaning::Root => format!(
                    "`{own}` imports `{name}` of the crate's root, which is above all modules: import \
                     it from the module that defines it",
                ),
                _ => continue,
            };
            findings.push(Finding::new(&source.file, line, text));
        }
    }
    findings
}

/// Compares the modules that the crate's root declares with the modules in `order`.
fn differences(root: &Source, krate: &str, order: &[&str]) -> Vec<Finding> {
    let items: Vec<&Item> = root.items.iter().collect();
    let modules: Vec<&Ident> = declared(&items).map(|module| &module.ident).collect();
    let missing = modules.iter().filter(|module| !order.iter().any(|entry| *module == entry));
    let missing = missing.map(|module| {
        let text = format!(
            "`{module}` is missing in the order of {krate}: add it to tests/tests/tidy/main.rs, after \
             the modules that it imports"
        );
        Finding::new(&root.file, module.span().start().line, text)
    });
    let stale = order.iter().filter(|entry| !modules.iter().any(|module| module == *entry));
    let stale = stale.map(|entry| {
        let text = format!("there is no module `{entry}`: remove it from the order of {krate}");
        Finding::new(&root.file, 1, text)
    });
    missing.chain(stale).collect()
}

/// Collects the names at the root of the crate that a file uses, for example `nn` in
/// `crate::nn::Linear`.
struct Imports {
    /// The name of the crate in paths.
    krate: String,
    /// The number of modules from the root to the file.
    depth: usize,
    found: Vec<(usize, String)>,
}

/// What the segments of a path that have been followed so far refer to.
#[derive(Clone, Copy)]
enum At {
    Start,
    /// A module. Its depth is 0 for the root of the crate, and 1 for the modules directly below.
    Module(usize),
}

impl Imports {
    fn new(krate: &str, source: &Source) -> Self {
        Self { krate: krate.replace('-', "_"), depth: source.module.len(), found: Vec::new() }
    }

    /// Follows one segment of a path. Returns the module to which the segment leads. Returns `None`
    /// if the segment names no module, because the rest of the path then does not matter. If the
    /// segment names an item at the crate's root, adds it to `found`.
    fn step(&mut self, at: At, name: &Ident) -> Option<At> {
        let text = name.to_string();
        match (at, text.as_str()) {
            (At::Start, "crate") => Some(At::Module(0)),
            (At::Start, krate) if krate == self.krate => Some(At::Module(0)),
            (At::Start | At::Module(_), "self") => {
                Some(if let At::Start = at { At::Module(self.depth) } else { at })
            }
            (At::Start, "super") => self.depth.checked_sub(1).map(At::Module),
            (At::Module(depth), "super") => depth.checked_sub(1).map(At::Module),
            (At::Module(0), _) => {
                self.found.push((name.span().start().line, text));
                None
            }
            _ => None,
        }
    }

    fn tree(&mut self, tree: &UseTree, at: At) {
        match tree {
            UseTree::Path(path) => {
                if let Some(next) = self.step(at, &path.ident) {
                    self.tree(&path.tree, next);
                }
            }
            UseTree::Name(name) => drop(self.step(at, &name.ident)),
            UseTree::Rename(name) => drop(self.step(at, &name.ident)),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, at)),
            UseTree::Glob(glob) => {
                if let At::Module(0) = at {
                    let line = glob.star_token.spans[0].start().line;
                    self.found.push((line, "*".to_owned()));
                }
            }
        }
    }

    /// Follows the paths in the tokens of a macro, each from `start`. In braces after a path, as in
    /// `crate::{…}`, paths begin where that path leads to. Paths with `$crate` are not followed.
    fn tokens(&mut self, tokens: TokenStream, start: At) {
        let (mut at, mut colons, mut dollar) = (None, 0, false);
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    let from = match (at, colons) {
                        (Some(at), 2) => Some(at),
                        (_, 0) if !dollar => Some(start),
                        _ => None,
                    };
                    at = from.and_then(|from| self.step(from, &name));
                    (colons, dollar) = (0, false);
                }
                TokenTree::Punct(mark) => {
                    dollar = mark.as_char() == '$';
                    colons = if mark.as_char() == ':' { colons + 1 } else { 0 };
                }
                TokenTree::Group(group) => {
                    let start = at.filter(|_| colons == 2).unwrap_or(At::Start);
                    self.tokens(group.stream(), start);
                    (at, colons, dollar) = (None, 0, false);
                }
                TokenTree::Literal(_) => (at, colons, dollar) = (None, 0, false),
            }
        }
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.depth += 1;
        visit::visit_item_mod(self, module);
        self.depth -= 1;
    }

    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        self.tree(&import.tree, At::Start);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut at = Some(At::Start);
        for segment in &path.segments {
            at = at.and_then(|at| self.step(at, &segment.ident));
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.tokens(call.tokens.clone(), At::Start);
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attr: &'ast Attribute) {
        match &attr.meta {
            Meta::List(list) => self.tokens(list.tokens.clone(), At::Start),
            _ => visit::visit_attribute(self, attr),
        }
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Const(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        _ => &[],
    }
}
