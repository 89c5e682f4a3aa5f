//! Finds the modules of a crate that `mod` declares, and what the names at the root of the crate
//! refer to.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use syn::{Attribute, Item, ItemMod, Meta, UseTree};

use crate::{Finding, files};

/// A file of the crate, without test code.
pub(crate) struct Source {
    /// The path of the source file, relative to the workspace.
    pub(crate) file: PathBuf,
    /// The path of the file's module below the root of the crate. The path is empty for `lib.rs`.
    pub(crate) module: Vec<String>,
    pub(crate) items: Vec<Item>,
}

/// Reads the sources of a crate. Also returns a finding for each file that could not be read.
pub(crate) fn sources(root: &Path, krate: &str) -> (Vec<Source>, Vec<Finding>) {
    let (mut sources, mut findings) = (Vec::new(), Vec::new());
    let folder = Path::new(krate).join("src");
    let mut open = vec![(folder.join("lib.rs"), folder, Vec::new())];
    while let Some((file, folder, module)) = open.pop() {
        let text = files::text(&root.join(&file));
        let items = match syn::parse_file(&text) {
            Ok(parsed) => parsed.items,
            Err(error) => {
                let line = error.span().start().line;
                findings.push(Finding::new(&file, line, format!("cannot be read: {error}")));
                continue;
            }
        };
        for item in &items {
            let Item::Mod(child) = item else { continue };
            if child.content.is_some() || is_test(&child.attrs) {
                continue;
            }
            let name = child.ident.to_string();
            let beside = folder.join(format!("{name}.rs"));
            let within = folder.join(&name);
            let file = if root.join(&beside).exists() { beside } else { within.join("mod.rs") };
            let module = module.iter().cloned().chain([name]).collect();
            open.push((file, within, module));
        }
        sources.push(Source { file, module, items });
    }
    (sources, findings)
}

/// Returns whether an item exists only for tests.
pub(crate) fn is_test(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| match &attr.meta {
        Meta::List(list) => {
            list.path.is_ident("cfg")
                && list.parse_args::<syn::Ident>().is_ok_and(|on| on == "test")
        }
        _ => false,
    })
}

/// What `crate::NAME` refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// An item of the crate's top-level module whose name this is.
    Module(String),
    /// An item of another crate. Using it is not an import between modules of this crate.
    Foreign,
    /// An item that is defined at the root, above all modules.
    Root,
}

/// The names at the root of a crate, and what they refer to.
pub(crate) struct Names(HashMap<String, Meaning>);

impl Names {
    pub(crate) fn new(sources: &[Source]) -> Self {
        let mut names = HashMap::new();
        let root = sources.iter().filter(|source| source.module.is_empty());
        let items: Vec<&Item> = root.flat_map(|source| &source.items).collect();
        let modules: Vec<String> =
            declared(&items).map(|module| module.ident.to_string()).collect();
        for module in &modules {
            names.insert(module.clone(), Meaning::Module(module.clone()));
        }
        for item in items {
            if let Item::Use(import) = item {
                re_exported(&import.tree, None, &modules, &mut names);
            }
        }
        // Macros with `#[macro_export]` belong to the root of the crate, whichever module defines
        // them.
        for source in sources {
            let Some(module) = source.module.first() else { continue };
            for item in &source.items {
                if let Item::Macro(item) = item
                    && let Some(name) = &item.ident
                    && item.attrs.iter().any(|attr| attr.path().is_ident("macro_export"))
                {
                    names.insert(name.to_string(), Meaning::Module(module.clone()));
                }
            }
        }
        Self(names)
    }

    pub(crate) fn meaning(&self, name: &str) -> Meaning {
        self.0.get(name).cloned().unwrap_or(Meaning::Root)
    }
}

/// Returns the modules that the root declares in separate files.
pub(crate) fn declared<'a>(items: &[&'a Item]) -> impl Iterator<Item = &'a ItemMod> {
    let modules = items.iter().filter_map(|item| match item {
        Item::Mod(module) if module.content.is_none() && !is_test(&module.attrs) => Some(module),
        _ => None,
    });
    modules.collect::<Vec<_>>().into_iter()
}

/// Adds the names that a re-export at the root defines. `first` is the path's first segment, not
/// counting `crate` and `self`; `None` if no segment has been read yet.
fn re_exported(
    tree: &UseTree,
    first: Option<&str>,
    modules: &[String],
    names: &mut HashMap<String, Meaning>,
) {
    let mut put = |name: String, original: &str| {
        let first = first.unwrap_or(original);
        match modules.iter().find(|module| *module == first) {
            Some(module) => drop(names.insert(name, Meaning::Module(module.clone()))),
            // A trait of this crate may have the same name as a derive macro of another crate. The
            // name then refers to the trait.
            None => drop(names.entry(name).or_insert(Meaning::Foreign)),
        }
    };
    match tree {
        UseTree::Path(path) => {
            let own = path.ident.to_string();
            let first = match own.as_str() {
                "crate" | "self" if first.is_none() => None,
                own => first.or(Some(own)),
            };
            re_exported(&path.tree, first, modules, names);
        }
        UseTree::Name(name) => put(name.ident.to_string(), &name.ident.to_string()),
        UseTree::Rename(name) => put(name.rename.to_string(), &name.ident.to_string()),
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| re_exported(tree, first, modules, names));
        }
        UseTree::Glob(_) => {}
    }
}
