//! Finds doc comments of functions that do not begin with a verb in the third person, as in
//! `Returns the sum.`. Comments of tests state the property under test, so they are not checked.

use std::path::Path;

use syn::{
    Attribute, Expr, ExprLit, ForeignItemFn, ImplItemFn, ItemFn, Lit, Meta, TraitItemFn,
    spanned::Spanned,
    visit::{self, Visit},
};

use crate::{
    Finding,
    files::{all, ends_in, text},
};

/// Words that end like a verb in the third person but are not verbs.
const NO_VERBS: &[&str] = &[
    "Always",
    "As",
    "Batches",
    "Blocks",
    "Bytes",
    "Channels",
    "Classes",
    "Columns",
    "Elements",
    "Epochs",
    "Errors",
    "Examples",
    "Factors",
    "Gradients",
    "Graphs",
    "Handles",
    "Images",
    "Its",
    "Keys",
    "Labels",
    "Layers",
    "Lines",
    "Logits",
    "Losses",
    "Milliseconds",
    "Names",
    "Numbers",
    "Options",
    "Parameters",
    "Parts",
    "Plus",
    "Positions",
    "Queries",
    "Rates",
    "Rows",
    "Seconds",
    "Sequences",
    "Settings",
    "Shapes",
    "Sizes",
    "Stubs",
    "Systems",
    "Tensors",
    "This",
    "Thus",
    "Times",
    "Tokens",
    "Unless",
    "Values",
    "Waves",
    "Weights",
    "Windows",
];

/// Returns the doc comments of functions in these folders that do not begin with a verb.
pub(crate) fn missing(root: &Path, folders: &[&str]) -> Vec<Finding> {
    let in_folders = |file: &Path| folders.iter().any(|folder| file.starts_with(folder));
    let sources = all(root).into_iter().filter(|file| ends_in(file, &["rs"]) && in_folders(file));
    let mut findings = Vec::new();
    for file in sources {
        let Ok(parsed) = syn::parse_file(&text(&root.join(&file))) else {
            findings.push(Finding::new(&file, 1, "not valid Rust, so it cannot be checked"));
            continue;
        };
        let mut functions = Functions::default();
        functions.visit_file(&parsed);
        findings.extend(functions.found.into_iter().map(|(line, word)| {
            let text = format!(
                "`{word}` is not a verb: begin the comment of a function as in `Returns the sum.`"
            );
            Finding::new(&file, line, text)
        }));
    }
    findings
}

/// The line and the first word of each comment that does not begin with a verb.
#[derive(Default)]
struct Functions {
    found: Vec<(usize, String)>,
}

impl Functions {
    fn check(&mut self, attrs: &[Attribute]) {
        if attrs.iter().any(is_test) {
            return;
        }
        let Some((line, word)) = attrs.iter().find_map(first_word) else { return };
        // A function in an `impl` may have a comment that begins with a heading such as `# Errors`,
        // because the comment of its trait says what the function does.
        if word != "#" && !is_verb(&word) {
            self.found.push((line, word));
        }
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.check(&function.attrs);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.check(&function.attrs);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        self.check(&function.attrs);
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_foreign_item_fn(&mut self, function: &'ast ForeignItemFn) {
        self.check(&function.attrs);
    }
}

/// Returns whether the attribute marks a test (`#[test]` or `#[rstest]`) or a case of a
/// parametrized test (`#[case]`).
fn is_test(attr: &Attribute) -> bool {
    let last = attr.path().segments.last().map(|segment| segment.ident.to_string());
    last.is_some_and(|name| ["test", "rstest", "case"].contains(&name.as_str()))
}

/// Returns the line and the first word of a doc comment.
fn first_word(attr: &Attribute) -> Option<(usize, String)> {
    let Meta::NameValue(pair) = &attr.meta else { return None };
    let Expr::Lit(ExprLit { lit: Lit::Str(comment), .. }) = &pair.value else { return None };
    let word = comment.value().split_whitespace().next()?.to_owned();
    pair.path.is_ident("doc").then(|| (attr.span().start().line, word))
}

fn is_verb(word: &str) -> bool {
    let word = word.trim_end_matches(['.', ',', ':', ';']);
    let is_capital = word.starts_with(|first: char| first.is_ascii_uppercase());
    let is_word = word.chars().skip(1).all(|letter| letter.is_ascii_lowercase() || letter == '-');
    let in_third_person = word.ends_with('s') && !word.ends_with("ss");
    is_capital && is_word && in_third_person && !NO_VERBS.contains(&word)
}
