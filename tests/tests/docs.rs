//! Checks that each rule of `docs/SEMANTICS.md` and each complaint of `docs/PAINS.md` names a test,
//! and that each named test exists.

use std::{fs, path::PathBuf};

const RULES: std::ops::RangeInclusive<u32> = 1..=37;
/// The rules on FP8. Instead of naming a test, they may say that FP8 is not built yet.
const FP8: std::ops::RangeInclusive<u32> = 20..=22;
const NO_FP8: &str = "FP8 is not implemented yet";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Reads a page and joins the lines of each paragraph, heading and table row.
fn page(name: &str) -> Vec<String> {
    let path = root().join("docs").join(name);
    let text = fs::read_to_string(&path).expect("the page can be read");
    let mut lines = vec![String::new()];
    for line in text.lines() {
        if line.is_empty() || line.starts_with(['#', '|']) {
            lines.push(String::new());
        }
        let last = lines.last_mut().expect("one at least");
        last.push_str(line);
        last.push(' ');
        if line.starts_with('#') {
            lines.push(String::new());
        }
    }
    lines.into_iter().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// Returns the texts in backticks that are Rust paths, that is, contain `::`.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|name| name.contains("::"))
}

/// Returns `None` if a test of this name exists. Otherwise returns what is missing: the file or the
/// function.
fn missing(name: &str) -> Option<String> {
    let (folder, rest) = match name.split_once("::") {
        Some(("tests", rest)) => ("tests/tests", rest),
        Some(("amp-verify", rest)) => ("amp-verify/tests/it", rest),
        Some(("fixtures", rest)) => ("fixtures/tests/it", rest),
        Some(("amp-derive", rest)) => ("amp-derive/src/check/tests", rest),
        _ => ("amp-core/tests/it", name),
    };
    let Some((file, function)) = rest.split_once("::") else {
        return Some(format!("`{name}` is not a `file::function`"));
    };
    let path = root().join(folder).join(file).with_extension("rs");
    let Ok(source) = fs::read_to_string(&path) else {
        return Some(format!("`{name}`: there is no {folder}/{file}.rs"));
    };
    let found = ["(", "<"].iter().find_map(|next| source.find(&format!("\nfn {function}{next}")));
    let Some(at) = found else {
        return Some(format!("`{name}`: {folder}/{file}.rs has no such function"));
    };
    // The attributes and doc comments of a function follow the last blank line.
    let before = source[..at].rsplit("\n\n").next().unwrap_or_default();
    let is_test = ["#[test]", "#[rstest]"].iter().any(|mark| before.contains(mark));
    (!is_test).then(|| format!("`{name}` is not a test"))
}

#[test]
fn every_rule_has_tests_and_every_test_exists() {
    let mut wrong = Vec::new();
    let mut rule = 0;
    let mut held = vec![false; *RULES.end() as usize + 1];
    for line in page("SEMANTICS.md") {
        if let Some(heading) = line.strip_prefix("### ") {
            let number = heading.split('.').next().and_then(|number| number.parse().ok());
            let next = number.expect("a rule's heading begins with its number");
            assert_eq!(next, rule + 1, "the rules are numbered in order");
            rule = next;
        } else if let Some(tests) = line.strip_prefix("Tests: ") {
            wrong.extend(names(tests).filter_map(missing));
            held[rule as usize] |= names(tests).next().is_some();
        } else if FP8.contains(&rule) && line.contains(NO_FP8) {
            held[rule as usize] = true;
        }
    }
    assert_eq!(rule, *RULES.end());
    wrong.extend(
        RULES.filter(|rule| !held[*rule as usize]).map(|rule| format!("rule {rule} has no test")),
    );
    assert!(wrong.is_empty(), "SEMANTICS.md: {wrong:#?}");
}

#[test]
fn every_complaint_has_tests_and_every_test_exists() {
    let mut wrong = Vec::new();
    let mut rows = 0;
    for line in page("PAINS.md").iter().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let (first, tests) = (cells[0], cells[cells.len() - 1]);
        if tests == "tests" || tests.starts_with("---") {
            continue;
        }
        rows += 1;
        if names(tests).next().is_none() {
            wrong.push(format!("no test for: {first}"));
        }
        wrong.extend(names(tests).filter_map(missing));
    }
    assert!(rows >= 24, "only {rows} rows were read");
    assert!(wrong.is_empty(), "PAINS.md: {wrong:#?}");
}

/// The check reports names of tests that do not exist.
#[test]
fn a_name_that_is_not_a_test_is_found() {
    assert_eq!(missing("scaler_misuse::the_defaults_are_torchs"), None);
    assert_eq!(missing("tests::docs::a_name_that_is_not_a_test_is_found"), None);
    assert_eq!(missing("tests::docs::page").as_deref(), Some("`tests::docs::page` is not a test"));
    assert!(missing("scaler::no_such_function").is_some());
    assert!(missing("no_such_file::at_all").is_some());
}

/// `cargo amp --help`, which works outside of a crate, and the reference page list all commands of
/// the binary.
#[test]
fn every_command_is_in_the_help_and_in_the_reference() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("the file can be read");
    let (help, reference) = (read("cargo-amp/src/cli.rs"), read("docs/guide/reference.md"));
    let cli = <amp_verify::cli::Cli as clap::CommandFactory>::command();
    let commands: Vec<&str> = cli
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| command.get_name())
        .collect();
    assert!(commands.len() > 10, "{commands:?}");
    for name in commands {
        let in_help = help.lines().any(|line| line.starts_with(&format!("  {name} ")));
        assert!(in_help, "`{name}` is not in the help of cargo-amp");
        assert!(reference.contains(&format!("`{name}`")), "`{name}` is not in reference.md");
    }
}
