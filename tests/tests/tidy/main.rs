//! Checks rules for the source files. No module imports a module above it. No file is too long.
//! Unsafe code is only in amp-core's `ffi`. Every page is mentioned in another file. Every link
//! leads to an existing page or heading. Comments of functions begin with a verb. The wrapper of a
//! `LightningModule` forwards every method to the model. Each violation is reported in one line.

mod files;
mod imports;
mod links;
mod modules;
mod pages;
mod passed_on;
mod planted;
mod unsafety;
mod verbs;

use std::path::{Path, PathBuf};

/// amp-core's modules from bottom to top. A module may import only modules that stand before it in
/// this list.
const AMP_CORE: &[&str] = &[
    "error",
    "tch_panics",
    "parameter",
    "ffi",
    "named",
    "file",
    "state",
    "monitor",
    "optimizer",
    "random",
    "precision",
    "hardware",
    "memory",
    "tensor_file",
    "convert",
    "loss",
    "metric",
    "log",
    "nn",
    "generate",
    "weights",
    "hparam",
    "probe",
    "optim",
    "data",
    "module",
    "checkpoint",
    "provenance",
    "event",
    "record",
    "callback",
    "logger",
    "trainer",
];

/// amp-derive's modules from bottom to top. A module may import only modules that stand before it.
const AMP_DERIVE: &[&str] = &[
    "manifest",
    "symbol",
    "tokens",
    "suggest",
    "diag",
    "spec",
    "fragments",
    "parse",
    "table",
    "model",
    "check",
    "expand",
    "fallback",
    "batch",
];

/// amp-verify's modules from bottom to top. A module may import only modules that stand before it.
const AMP_VERIFY: &[&str] = &[
    "text",
    "python",
    "verdict",
    "scalars",
    "exponents",
    "length",
    "changes",
    "draws",
    "margins_file",
    "rounding",
    "interceptor",
    "faults",
    "speed",
    "registry",
    "stopping",
    "case",
    "reset",
    "comparison",
    "runner",
    "matrix",
    "golden",
    "options",
    "layers",
    "diagnose",
    "bench",
    "parity",
    "view",
    "gate",
    "margins",
    "selftest",
    "report",
    "output",
    "cli",
];

/// The folders in which the comments of functions must begin with a verb.
const VERBS: &[&str] = &["amp-core", "amp-derive", "amp-verify", "cargo-amp", "fixtures", "tests"];

/// The only folder that may contain unsafe code.
const FFI: &str = "amp-core/src/ffi";

/// A violation of a rule: where it is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// The path of the file, relative to the workspace.
    file: PathBuf,
    line: usize,
    text: String,
}

impl Finding {
    fn new(file: impl AsRef<Path>, line: usize, text: impl Into<String>) -> Self {
        Self { file: file.as_ref().to_owned(), line, text: text.into() }
    }
}

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the workspace is the folder above").to_owned()
}

/// Panics with one line for each finding.
fn assert_none(mut findings: Vec<Finding>) {
    findings.sort();
    let lines = findings
        .iter()
        .map(|Finding { file, line, text }| format!("{}:{line}: {text}\n", file.display()));
    let lines: String = lines.collect();
    assert!(findings.is_empty(), "{} findings:\n{lines}", findings.len());
}

#[test]
fn no_module_of_amp_core_imports_one_above_it() {
    assert_none(imports::upward(&root(), "amp-core", AMP_CORE));
}

#[test]
fn no_module_of_amp_derive_imports_one_above_it() {
    assert_none(imports::upward(&root(), "amp-derive", AMP_DERIVE));
}

#[test]
fn no_module_of_amp_verify_imports_one_above_it() {
    assert_none(imports::upward(&root(), "amp-verify", AMP_VERIFY));
}

#[test]
fn no_file_is_long() {
    assert_none(files::long(&root()));
}

#[test]
fn unsafe_code_is_in_the_ffi_alone() {
    assert_none(unsafety::outside(&root(), Path::new(FFI)));
}

#[test]
fn every_page_is_mentioned() {
    assert_none(pages::unlinked_pages(&root()));
}

#[test]
fn every_link_leads_somewhere() {
    assert_none(links::broken(&root()));
}

#[test]
fn the_book_has_every_page_of_its_folder_and_no_link_out_of_it() {
    assert_none(links::outside_the_book(&root()));
}

#[test]
fn comments_of_functions_begin_with_a_verb() {
    assert_none(verbs::missing(&root(), VERBS));
}

#[test]
fn an_intercepted_model_passes_on_every_method() {
    assert_none(passed_on::missing(&root()));
}
