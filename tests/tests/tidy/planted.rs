//! Tests of the checks. Each test writes a small workspace with violations, and the check must find
//! them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::{TempDir, tempdir};

use crate::{
    AMP_DERIVE, Finding, files,
    imports::upward,
    links,
    pages::unlinked_pages,
    root,
    unsafety::{outside, words},
    verbs,
};

/// Creates a temporary workspace that contains these files.
fn planted(files: &[(&str, &str)]) -> TempDir {
    let folder = tempdir().expect("a temporary folder");
    for (file, text) in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    folder
}

/// Formats the findings as `file:line: text`.
fn shown(findings: Vec<Finding>) -> Vec<String> {
    let show = |Finding { file, line, text }| format!("{}:{line}: {text}", file.display());
    let mut lines: Vec<String> = findings.into_iter().map(show).collect();
    lines.sort();
    lines
}

/// Returns the findings for a crate with the modules `low` and `high`. `low` is the code of the
/// module of this name, and `root` is additional code in `lib.rs`.
fn about_low(root: &str, low: &str) -> Vec<String> {
    let root = format!("mod low;\nmod high;\n{root}");
    let folder = planted(&[
        ("my-kit/src/lib.rs", &root),
        ("my-kit/src/low.rs", low),
        ("my-kit/src/high.rs", ""),
    ]);
    shown(upward(folder.path(), "my-kit", &["low", "high"]))
}

const ABOVE: &str = "which is above it in the order: move the imported code to `low` or below it";

#[test]
fn an_upward_import_is_found_in_every_form() {
    let forms = [
        "use crate::high::Thing;",
        "pub use crate::{other::X, high::{self, deep::Thing}};",
        "use super::high;",
        "mod inner { use super::super::high::Thing; }",
        "use my_kit::high::Thing;",
        "fn f() { let _ = crate::high::thing(); }",
        "fn f(thing: &super::high::Thing) {}",
        "fn f() { println!(\"{}\", crate::high::thing()); }",
        "macro_rules! call { () => { crate::high::thing() } }",
        "macro_rules! call { () => { use crate::{low::X, high::Thing}; } }",
        "#[arg(value_parser = crate::high::thing)] struct Args;",
        "impl crate::high::Thing for u8 {}",
    ];
    for low in forms {
        let root = "use high as other;";
        let found = about_low(root, &format!("\n{low}\n"));
        assert!(!found.is_empty(), "{low}");
        for finding in found {
            assert!(
                finding.starts_with("my-kit/src/low.rs:2: `low` imports `"),
                "{low}: {finding}"
            );
            assert!(finding.ends_with(ABOVE), "{low}: {finding}");
        }
    }
}

#[test]
fn names_at_the_root_are_resolved_to_their_module() {
    let root = "pub use high::{Thing, Other as Renamed};\npub use elsewhere::Foreign;\nfn own() {}";
    let finds = |low: &str| about_low(root, low).concat();
    assert!(finds("use crate::Thing;").contains("`low` imports `Thing` of `high`, which"));
    assert!(
        finds("use crate::{Renamed as X};").contains("`low` imports `Renamed` of `high`, which")
    );
    assert!(finds("use crate::own;").contains("`own` of the crate's root, which"));
    assert!(finds("use crate::*;").contains("`*` of the crate's root, which"));
    assert_eq!(finds("use crate::Foreign;"), "");
}

#[test]
fn other_imports_are_not_reported() {
    let low = "
        //! See [`crate::high`].
        use std::fmt;
        use self::inner::crated;
        mod inner { use super::fmt; pub fn crated() {} }
        pub(crate) fn f() { g::<fmt::Error>(\"crate::high\") }
        macro_rules! call { () => { $crate::high::thing() } }
        #[cfg(test)]
        mod tests { use crate::high::Thing; use super::*; }
        #[cfg(test)]
        mod elsewhere;
    ";
    assert_eq!(about_low("", low), [""; 0]);
}

#[test]
fn missing_and_unknown_modules_of_the_order_are_found() {
    let folder = planted(&[("kit/src/lib.rs", "mod low;"), ("kit/src/low.rs", "")]);
    let found = shown(upward(folder.path(), "kit", &["gone"]));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("kit/src/lib.rs:1: `low` is missing in the order"), "{found:?}");
    assert!(found[1].starts_with("kit/src/lib.rs:1: there is no module `gone`"), "{found:?}");
}

/// The check also finds a forbidden import in real code. The test adds an import of a higher module
/// to a copy of amp-derive, which otherwise has none.
#[test]
fn an_import_planted_in_amp_derive_is_found() {
    let folder = tempdir().expect("a temporary folder");
    let sources = |file: &PathBuf| file.starts_with("amp-derive/src");
    for file in files::all(&root()).iter().filter(|file| sources(file)) {
        let copy = folder.path().join(file);
        fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder");
        fs::copy(root().join(file), copy).expect("a copy");
    }
    let symbol = folder.path().join("amp-derive/src/symbol.rs");
    let text = files::text(&symbol);
    fs::write(&symbol, format!("{text}use crate::expand::expand;\n")).expect("a changed file");
    let found = shown(upward(folder.path(), "amp-derive", AMP_DERIVE));
    let line = text.lines().count() + 1;
    assert_eq!(found.len(), 1, "{found:?}");
    let begins = format!("amp-derive/src/symbol.rs:{line}: `symbol` imports `expand` of `expand`");
    assert!(found[0].starts_with(&begins), "{found:?}");
}

#[test]
fn a_long_file_is_found() {
    let (fits, long) = ("\n".repeat(400), "\n".repeat(401));
    let folder = planted(&[("a/fits.rs", &fits), ("a/long.rs", &long), ("target/long.rs", &long)]);
    let found = shown(files::long(folder.path()));
    assert_eq!(found, ["a/long.rs:401: 401 lines, at most 400: move a part into another file"]);
}

#[test]
fn unsafe_code_is_found() {
    let lines = |source| words(source).into_iter().map(|(line, _)| line).collect::<Vec<_>>();
    assert_eq!(lines("fn f() {\n    unsafe { g() }\n}"), [2]);
    assert_eq!(
        lines("unsafe fn f() {}\nunsafe impl Send for X {}\nunsafe extern \"C\" {}"),
        [1, 2, 3]
    );
    assert_eq!(lines("macro_rules! m {\n() => {\nunsafe { f() }\n}}"), [3]);
    assert_eq!(
        lines("#![allow(dead_code, unsafe_code)]\n#[expect(unsafe_code)]\nfn f() {}"),
        [1, 2]
    );
    assert_eq!(
        lines("#![deny(unsafe_code)]\n// unsafe\n/// unsafe\nconst X: &str = \"unsafe\";"),
        [0; 0]
    );
    let code = "unsafe fn f() {}";
    let folder = planted(&[("kit/src/ffi/mod.rs", code), ("kit/src/lib.rs", code)]);
    let found = shown(outside(folder.path(), Path::new("kit/src/ffi")));
    assert_eq!(
        found,
        ["kit/src/lib.rs:1: `unsafe`: unsafe code is allowed only in kit/src/ffi; call a safe \
                        function there"]
    );
}

#[test]
fn an_unlinked_page_is_found() {
    let folder = planted(&[
        ("README.md", "See [the guide](docs/GUIDE.md) and `RULES.md`."),
        ("docs/GUIDE.md", "See [the kit](../kit/README.md)."),
        ("docs/RULES.md", ""),
        ("docs/ALONE.md", "I am ALONE.md."),
        ("kit/README.md", ""),
        ("kit/src/lib.rs", "#![doc = include_str!(\"../PAGE.md\")]"),
        ("kit/PAGE.md", ""),
        ("other/README.md", ""),
    ]);
    let advice = "no other page or source mentions this page: link it, or remove it";
    let expected = ["docs/ALONE.md", "other/README.md"].map(|page| format!("{page}:1: {advice}"));
    assert_eq!(shown(unlinked_pages(folder.path())), expected);
}

#[test]
fn a_broken_link_is_found() {
    let page = "# A page\n\n## The same\n\n## The same\n\n## `code`, too!\n\
                [x](docs/OTHER.md) [x](docs/OTHER.md#the-end) [x](#a-page) ![x](docs/x.svg)\n\
                [x](#the-same-1) [x](#code-too) [x](https://nowhere.example) [x](derive.X.html#y)\n\
                `[x](no/link)`\n```text\n[x](no/link)\n# No heading\n```\n\
                [x](docs/GONE.md)\n[x](docs/OTHER.md#gone) [x](#no-heading)\n";
    let folder = planted(&[
        ("README.md", page),
        ("docs/OTHER.md", "# The end\n[up](../README.md#a-page) [up](../README.md#b-page)"),
        ("docs/x.svg", ""),
    ]);
    let expected = [
        "README.md:15: link `docs/GONE.md`: there is no docs/GONE.md",
        "README.md:16: link `#no-heading`: README.md has no heading of this name",
        "README.md:16: link `docs/OTHER.md#gone`: docs/OTHER.md has no heading of this name",
        "docs/OTHER.md:2: link `../README.md#b-page`: README.md has no heading of this name",
    ];
    assert_eq!(shown(links::broken(folder.path())), expected);
}

#[test]
fn a_page_outside_the_book_is_found() {
    let folder = planted(&[
        ("README.md", "[x](docs/ONE.md)"),
        ("docs/SUMMARY.md", "# Summary\n- [One](ONE.md)\n- [Two](guide/two.md)"),
        ("docs/ONE.md", "[x](guide/two.md) [x](#here) [x](https://nowhere.example)"),
        ("docs/guide/two.md", "[x](../ONE.md)\n[x](../../README.md)"),
        ("docs/guide/three.md", ""),
    ]);
    let expected = [
        "docs/guide/three.md:1: list this page in docs/SUMMARY.md",
        "docs/guide/two.md:2: link `../../README.md`: the book contains only docs: name the file without a link",
    ];
    assert_eq!(shown(links::outside_the_book(folder.path())), expected);
}

#[test]
fn a_comment_without_a_verb_is_found() {
    let source = "/// The sum.\nfn a() {}\n\
                  struct S;\nimpl S {\n/// Bytes of it.\n#[must_use]\nfn b() {}\n/// Returns it.\nfn c() {}\n}\n\
                  trait T {\n/// As [`a`].\nfn d();\n}\n\
                  /// `x` squared.\nfn e() {\n/// Torch's sum.\nfn inner() {}\n}\n\
                  /// A sum is a sum.\n#[test]\nfn f() {}\n/// One case.\n#[rstest]\n#[case(1)]\nfn g() {}\n\
                  /// A struct.\nstruct U;\nfn h() {}\n/// Drops: all.\nfn i() {}\n/// # Errors\n/// When it fails.\nfn j() {}\n";
    let folder = planted(&[("kit/src/lib.rs", source), ("other/src/lib.rs", "/// A.\nfn a() {}")]);
    let advice = "is not a verb: begin the comment of a function as in `Returns the sum.`";
    let expected = [(12, "As"), (15, "`x`"), (17, "Torch's"), (1, "The"), (5, "Bytes")]
        .map(|(line, word)| format!("kit/src/lib.rs:{line}: `{word}` {advice}"));
    assert_eq!(shown(verbs::missing(folder.path(), &["kit"])), expected);
}
