//! Counts the lines of code of a model, in the Rust source and in the Python source that a
//! [`Twin`](crate::registry::Twin) contains.
//!
//! In the Rust source, the count includes the model's struct and everything in the same source that
//! the struct refers to, directly or indirectly: blocks, batches, functions and constants. The
//! count does not include imports, the code of data sets and of the registration, or methods that
//! the counted code does not call. The Python source contains only the model, so all its lines of
//! code except imports are counted.

use std::collections::BTreeSet;

use amp_core::{Error, Result};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{ImplItem, Item, Type, spanned::Spanned};

/// Counts the lines of code of a PyTorch version's Python source.
pub(super) fn of_twin(python: &str) -> usize {
    let is_import = |line: &str| line.starts_with("import ") || line.starts_with("from ");
    python.lines().filter(|line| has_code(line, "#") && !is_import(line)).count()
}

/// Counts the lines of code of the model `name` in its Rust source.
///
/// # Errors
/// When the source is not Rust, or does not contain this struct.
pub(super) fn of_model(rust: &str, name: &str) -> Result<usize> {
    // The text may consist of several files, one after another. `//!` is valid only at the start of
    // a file.
    let lines: Vec<&str> =
        rust.lines().map(|line| if line.starts_with("//!") { "" } else { line }).collect();
    let refused =
        |why: String| Error::config(format!("the Rust source in `Twin::new` for {name}: {why}"));
    let file = syn::parse_file(&lines.join("\n")).map_err(|error| {
        refused(format!("line {} is not valid Rust: {error}", error.span().start().line))
    })?;
    let mut parts: Vec<Part> = file.items.iter().flat_map(parts).collect();
    let mut known = BTreeSet::from([name.to_owned()]);
    let mut own = BTreeSet::new();
    let mut found = false;
    while let Some(at) = parts.iter().position(|part| part.is_of(&known)) {
        let part = parts.swap_remove(at);
        found |= part.name == name && part.owner.is_none();
        known.extend(part.mentions);
        own.extend(part.lines);
    }
    if !found {
        return Err(refused(format!("it has no `{name}`")));
    }
    Ok(own.into_iter().filter(|line| has_code(lines[line - 1], "//")).count())
}

fn has_code(line: &str, comment: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with(comment)
}

/// A piece of the model's Rust source whose lines are counted or left out as a whole: an item, or a
/// method of an `impl` block.
struct Part {
    /// The type to which the `impl` block belongs. `None` if the piece is not from an `impl` block.
    owner: Option<String>,
    /// The name of the item or method. It is empty for the implementation of a trait, which is
    /// counted whenever its type is counted.
    name: String,
    /// The names that occur in the item or method.
    mentions: BTreeSet<String>,
    /// The line numbers of the item, from 1.
    lines: Vec<usize>,
}

impl Part {
    fn new(owner: Option<String>, name: impl ToString, of: &(impl ToTokens + Spanned)) -> Self {
        let mut mentions = BTreeSet::new();
        names(of.to_token_stream(), &mut mentions);
        let lines = (of.span().start().line..=of.span().end().line).collect();
        Self { owner, name: name.to_string(), mentions, lines }
    }

    /// Returns whether the lines of this piece are counted. `known` has the names that the counted
    /// code mentions. The lines are counted if `known` contains the piece's owner and name, as far
    /// as the piece has them.
    fn is_of(&self, known: &BTreeSet<String>) -> bool {
        let is_known = |name: &String| known.contains(name);
        self.owner.as_ref().is_none_or(is_known) && (self.name.is_empty() || is_known(&self.name))
    }
}

/// Divides an item of the Rust source into the pieces whose lines are counted separately. An `impl`
/// block has one piece for each method. An import has no piece.
fn parts(item: &Item) -> Vec<Part> {
    let alone = |name: &dyn ToString| vec![Part::new(None, name.to_string(), item)];
    match item {
        Item::Struct(item) => alone(&item.ident),
        Item::Enum(item) => alone(&item.ident),
        Item::Trait(item) => alone(&item.ident),
        Item::Type(item) => alone(&item.ident),
        Item::Fn(item) => alone(&item.sig.ident),
        Item::Const(item) => alone(&item.ident),
        Item::Static(item) => alone(&item.ident),
        Item::Impl(implementation) => {
            let Type::Path(owner) = &*implementation.self_ty else { return Vec::new() };
            let owner = owner.path.segments.last().map(|last| last.ident.to_string());
            if implementation.trait_.is_some() {
                return vec![Part::new(owner, "", item)];
            }
            let methods = implementation.items.iter().map(|method| match method {
                ImplItem::Fn(of) => Part::new(owner.clone(), &of.sig.ident, method),
                ImplItem::Const(of) => Part::new(owner.clone(), &of.ident, method),
                _ => Part::new(owner.clone(), "", method),
            });
            methods.collect()
        }
        _ => Vec::new(),
    }
}

/// Adds all identifiers among the tokens to `found`.
fn names(tokens: TokenStream, found: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => names(group.stream(), found),
            TokenTree::Ident(name) => {
                found.insert(name.to_string());
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const RUST: &str = "
//! A net.

use amp_core::prelude::*;

/// Inputs.
const WIDTH: i64 = 4;
const EXAMPLES: i64 = 100;

/// Draws the examples.
fn examples() -> Result<Batch> {
    draw(EXAMPLES, WIDTH)
}

#[derive(LightningModule)]
#[loss(far)]
pub struct Net {
    // The block.
    #[layer(Block::builder().build()?)]
    block: Block,

    #[layer(linear(WIDTH, 1))]
    head: Linear,
}

#[derive(Module)]
struct Block {
    #[layer(linear(WIDTH, WIDTH))]
    inner: Linear,
}

impl Drop for Block {
    fn drop(&mut self) {}
}

fn far(output: &Tensor) -> Result<Tensor> {
    Net::apart(output)
}

impl Net {
    fn apart(output: &Tensor) -> Result<Tensor> {
        Ok(output.abs())
    }

    pub fn draw(&self) -> Result<Batch> {
        examples()
    }
}
";

    /// Checks the number of lines that are counted for `Net`: 8 for the struct, 5 for `Block`, 3
    /// for `Drop for Block`, 3 for the function `far`, 3 for the method `apart`, and 1 for the
    /// constant `WIDTH`.
    #[test]
    fn lines_are_counted_for_each_model() -> Result<()> {
        assert_eq!(of_model(RUST, "Net")?, 23);
        assert_eq!(of_model(RUST, "Block")?, 9);
        let two = format!("{RUST}\n//! Another file.\nuse x::y;\nstruct More;\n");
        assert_eq!((of_model(&two, "Net")?, of_model(&two, "More")?), (23, 1));
        Ok(())
    }

    #[rstest]
    #[case("struct Other;", "it has no `Net`")]
    #[case("fn f() {}\nstruct Net {", "line 2 is not valid Rust")]
    fn a_source_without_the_model_is_refused(#[case] rust: &str, #[case] says: &str) {
        let text = of_model(rust, "Net").map_or_else(|error| error.to_string(), |n| n.to_string());
        assert!(text.contains(says), "{text}");
    }

    #[test]
    fn a_twins_imports_do_not_count() {
        let python =
            "import torch\nfrom torch import nn\n\n# A net.\nclass Net(nn.Module):\n    pass\n";
        assert_eq!(of_twin(python), 2);
    }
}
