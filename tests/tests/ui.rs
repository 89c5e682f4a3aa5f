//! Tests of the error messages of the derive macros. Each file `ui/<rule>/<defect>.rs` breaks one
//! rule at one place. The `.stderr` file next to it contains the expected output of rustc.
//!
//! The cases use the amp-core library that was built for this test, so no crate is built again.
//!
//! `UI=overwrite cargo test -p tests --test ui` overwrites the `.stderr` files. Review the new
//! messages from a user's point of view.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
};

use serde_json::Value;

#[test]
fn every_defect_has_its_message() {
    let overwrite = env::var("UI").is_ok_and(|value| value == "overwrite");
    let amp_core = amp_core();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cases = Mutex::new(cases(root));
    let total = cases.lock().expect("no thread has failed").len();
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(case) = cases.lock().expect("no thread has failed").pop() else {
                        break;
                    };
                    if let Err(failure) = check(root, &case, &amp_core, overwrite) {
                        let text = format!("== {}\n{failure}", case.display());
                        failures.lock().expect("no thread has failed").push(text);
                    }
                }
            });
        }
    });
    assert!(total > 0, "there are no cases in {}", root.join("ui").display());
    let mut failures = failures.into_inner().expect("no thread has failed");
    failures.sort();
    let count = failures.len();
    assert!(failures.is_empty(), "{count} of {total} cases failed:\n{}", failures.join("\n"));
}

/// Returns the paths of the cases, for example `ui/loss/twice.rs`.
fn cases(root: &Path) -> Vec<PathBuf> {
    let entries = |folder: PathBuf| {
        fs::read_dir(&folder)
            .expect("the folder can be read")
            .map(move |entry| folder.join(entry.expect("an entry").file_name()))
    };
    let rules = entries(root.join("ui")).filter(|path| path.is_dir());
    rules
        .flat_map(entries)
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| path.strip_prefix(root).expect("it is below the root").to_owned())
        .collect()
}

/// Compiles the case and compares rustc's output with the `.stderr` file, or writes the file.
fn check(root: &Path, case: &Path, amp_core: &Path, overwrite: bool) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        // rustc prints paths relative to this folder, because amp-core was compiled in it.
        .current_dir(root.parent().expect("the workspace's root"))
        .args(["--edition=2024", "--crate-type=bin", "--emit=metadata", "-Adead_code"])
        .args(["--error-format=json", "--diagnostic-width=140", "--out-dir"])
        .arg(folder.path())
        .arg(format!("--extern=amp_core={}", amp_core.display()))
        .arg(format!("-Ldependency={}", amp_core.parent().expect("a folder").display()))
        .arg(Path::new("tests").join(case))
        .output()
        .expect("rustc runs");
    if output.status.success() {
        return Err("the case compiles, but it must not".to_owned());
    }
    let said = diagnostics(&output.stderr);
    let file = root.join(case).with_extension("stderr");
    if overwrite {
        return fs::write(&file, said).map_err(|error| error.to_string());
    }
    match fs::read_to_string(&file) {
        Ok(expected) if expected == said => Ok(()),
        Ok(expected) => Err(format!("expected:\n{expected}\nrustc says:\n{said}")),
        Err(error) => Err(format!("{}: {error}; rustc says:\n{said}", file.display())),
    }
}

/// Returns rustc's output without the text that depends on the machine or on line numbers in other
/// files.
fn diagnostics(json: &[u8]) -> String {
    let json = str::from_utf8(json).expect("rustc writes UTF-8");
    let messages = json.lines().map(|line| match serde_json::from_str::<Value>(line) {
        Ok(message) => message,
        // The output is not a list of diagnostics, so the compiler itself failed.
        Err(_) => panic!("{json}"),
    });
    messages
        .filter(|message| message["level"] != "failure-note")
        .filter_map(|message| Some(message["rendered"].as_str()?.to_owned()))
        .filter(|text| !text.starts_with("error: aborting due to"))
        .map(|text| normalized(&text))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Formats one diagnostic of rustc. Removes line numbers that refer to other crates of the
/// workspace. If the column of line numbers is then wider than needed, removes the additional space
/// from all lines.
fn normalized(text: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut elsewhere = false;
    let mut lines = Vec::new();
    for line in text.trim_end().lines() {
        let start = line.trim_start();
        // rustc's notes about a file with the full name of a long type are skipped, because the
        // file's path differs between runs.
        if start.starts_with("= note: the full name for the type has been written to")
            || start.starts_with("= note: consider using `--verbose` to print the full type name")
        {
            continue;
        }
        if let Some(place) = start.strip_prefix("--> ") {
            let own = place.strip_prefix("tests/");
            elsewhere = own.is_none();
            let file = place.split(':').next().unwrap_or(place);
            let place = own.map_or_else(|| format!("$WORKSPACE/{file}"), str::to_owned);
            lines.push(format!("{}--> {place}", &line[..indent(line)]));
            continue;
        }
        elsewhere &=
            start.starts_with(|first: char| first.is_ascii_digit() || "|.".contains(first));
        let number = start.len() - start.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        lines.push(match start.strip_suffix(" others").and_then(|all| all.strip_prefix("and ")) {
            Some(_) => format!("{}and $N others", &line[..indent(line)]),
            None if elsewhere => {
                format!("{}{}", " ".repeat(indent(line) + number), &start[number..])
            }
            None => line.to_owned(),
        });
    }
    // rustc writes the arrow of ` --> file` where the column of line numbers ends.
    let arrow = lines.iter().find(|line| line.trim_start().starts_with("--> "));
    let width = arrow.map_or(0, |line| indent(line));
    let digits = |line: &String| {
        let number = line.trim_start();
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
        if number[end..].starts_with(" |") { end } else { 0 }
    };
    let needed = lines.iter().map(digits).max().unwrap_or(0);
    let spare = " ".repeat(width.saturating_sub(needed));
    let mut out = String::new();
    for line in &lines {
        out.push_str(line.strip_prefix(&spare).unwrap_or(line).trim_end());
        out.push('\n');
    }
    out
}

/// Returns the library that cargo built for this test, from the paths in cargo's messages.
fn amp_core() -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--no-run", "--offline", "--package=tests", "--test=ui"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.arg("--message-format=json").output().expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    let artifacts = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    artifacts
        .filter(|artifact| artifact["target"]["name"] == "amp_core")
        .filter_map(|artifact| Some(artifact["filenames"].as_array()?.clone()))
        .flatten()
        .filter_map(|name| Some(PathBuf::from(name.as_str()?)))
        .find(|path| path.extension().is_some_and(|extension| extension == "rlib"))
        .unwrap_or_else(|| panic!("cargo does not name the library: {text}{errors}"))
}
