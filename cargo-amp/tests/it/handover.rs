//! Tests of how `cargo amp` reads its command line, and of the cargo commands and the amp binary that
//! it starts after it has found libtorch.

use std::env;
use std::fs;
use std::process::Command;

use crate::support::{Checkout, assert_refused, assert_succeeded, fakes, output, stderr, stdout};

#[test]
fn help_needs_no_libtorch_and_no_crate() {
    let checkout = Checkout::new();
    for arguments in [
        &[][..],
        &["help"],
        &["--help"],
        &["-h"],
        &["test", "--help"],
        &["setup", "-h"],
        &["new", "-h"],
        &["init", "--help"],
        &["pack", "--help"],
        &["amp"],
        &["amp", "--help"],
    ] {
        let run = output(checkout.cargo_amp(arguments).current_dir(env::temp_dir()));
        assert_succeeded(&run);
        for part in [
            "verify",
            "test",
            "setup",
            "--cpu",
            "--cuda",
            "new NAME",
            "init",
            "pack",
            "--package NAME",
            "--amp-source SOURCE",
            "pack-skip-tests",
            "test-python-packages",
            "cargo amp verify --help",
            "LIBTORCH",
        ] {
            assert!(stdout(&run).contains(part), "`{part}` is missing: {}", stdout(&run));
        }
        assert_eq!(stderr(&run), "");
    }
    assert!(checkout.is_bare());
}

#[test]
fn a_wrong_command_line_is_one_line_and_fetches_nothing() {
    let checkout = Checkout::new();
    let cases: [(&[&str], &[&str]); 21] = [
        (&["test", "--device", "tpu"], &["unknown device `tpu`", "cpu or cuda"]),
        (&["test", "--device=tpu"], &["unknown device `tpu`", "cpu or cuda"]),
        (&["test", "--device"], &["--device needs a value"]),
        (&["test", "scaler"], &["unexpected argument `scaler`", "behind `--`"]),
        (&["setup", "now"], &["unexpected argument `now`", "--cpu or --cuda"]),
        (&["setup", "--cpu", "--cuda"], &["exclude each other", "use --cuda"]),
        (&["--release", "verify"], &["unexpected option `--release`", "before the command"]),
        (&["--package"], &["--package needs a value", "a package of the workspace"]),
        (&["--package=", "verify"], &["--package needs a value"]),
        (&["-p", "absent", "verify"], &["no package `absent`", "`mine`"]),
        (&["test", "--package", "absent"], &["no package `absent`", "`mine`"]),
        (&["pack", "-p", "absent"], &["no package `absent`", "`mine`"]),
        (&["init", "--package=absent"], &["no package `absent`", "`mine`"]),
        (&["new"], &["name is missing", "cargo amp new NAME"]),
        (&["new", "one", "two"], &["unexpected argument `two`", "NAME"]),
        (&["new", "--cpu-only"], &["unexpected argument `--cpu-only`", "--amp-source"]),
        (&["new", "one", "--amp-source"], &["--amp-source needs a value", "a git URL"]),
        (&["init", "here"], &["unexpected argument `here`", "--amp-source"]),
        (&["init", "--amp-source="], &["--amp-source needs a value"]),
        (&["pack", "--output"], &["--output needs a value", "a folder"]),
        (&["pack", "dist"], &["unexpected argument `dist`", "--bin-only"]),
    ];
    for (arguments, parts) in cases {
        assert_refused(&output(&mut checkout.cargo_amp(arguments)), parts);
    }
    assert!(checkout.is_bare());
}

#[test]
fn amp_test_runs_cargo_test_of_the_workspace() {
    let checkout = Checkout::new();
    let run = output(&mut checkout.cargo_amp(&["test"]));
    // cargo-amp returns the exit code of cargo.
    assert_eq!(run.status.code(), Some(7), "{}", stderr(&run));
    // cargo-amp sets LD_LIBRARY_PATH, because documentation tests have no run-time search path.
    let home = checkout.home().display().to_string();
    let search = |more| format!("LD_LIBRARY_PATH {home}/torch/lib:{home}/nvidia/cu13/lib{more}");
    for line in [
        "cargo test --workspace --no-fail-fast",
        "device unset",
        "python unset",
        "test threads unset",
        // Several tests run at the same time, so each operation of libtorch gets one thread.
        "threads 1",
        // cargo-amp does not set LIBTORCH, because `.cargo/config.toml` does, as for a plain cargo.
        "LIBTORCH unset",
        &search(""),
    ] {
        assert!(stdout(&run).lines().any(|l| l == line), "`{line}`: {}", stdout(&run));
    }
    let run = output(checkout.cargo_amp(&["test"]).env("LD_LIBRARY_PATH", "/users/own"));
    let line = search(":/users/own");
    assert!(stdout(&run).lines().any(|l| l == line), "`{line}`: {}", stdout(&run));

    let arguments = ["test", "--device", "cuda", "--", "--nocapture", "--device"];
    let run = output(&mut checkout.cargo_amp(&arguments));
    for line in [
        "cargo test --workspace --no-fail-fast -- --nocapture --device",
        "device cuda",
        "test threads 1",
        "threads unset",
    ] {
        assert!(stdout(&run).lines().any(|l| l == line), "`{line}`: {}", stdout(&run));
    }
    let run = output(checkout.cargo_amp(&["test", "--device=cpu"]).env("OMP_NUM_THREADS", "3"));
    for line in ["device cpu", "threads 3"] {
        assert!(stdout(&run).lines().any(|l| l == line), "`{line}`: {}", stdout(&run));
    }

    // cargo-amp runs cargo in the user's working directory, so that cargo finds the same
    // configuration as without cargo-amp.
    checkout.write("src/deep/note", "");
    let deep = checkout.path("src/deep");
    let run = output(checkout.cargo_amp(&["test", "--package", "mine"]).current_dir(&deep));
    for line in ["cargo test --package mine --no-fail-fast", &format!("folder {}", deep.display())]
    {
        assert!(stdout(&run).lines().any(|l| l == line), "`{line}`: {}", stdout(&run));
    }
}

#[test]
fn the_name_that_cargo_passes_to_a_subcommand_is_not_an_argument() {
    let checkout = Checkout::new();
    let run = output(&mut checkout.cargo_amp(&["amp", "test", "--device", "cpu"]));
    assert!(stdout(&run).contains("device cpu"), "{}", stderr(&run));
    let run = output(&mut checkout.cargo_amp(&["amp", "amp"]));
    // Only the first `amp` comes from cargo. The second is a command, so cargo is called to build
    // the binary.
    assert_eq!(run.status.code(), Some(7), "{}", stderr(&run));
}

#[test]
fn an_empty_libtorch_counts_as_unset() {
    let checkout = Checkout::new();
    let run = output(checkout.cargo_amp(&["test"]).env("LIBTORCH", ""));
    assert!(stdout(&run).contains("LIBTORCH unset"), "{}", stderr(&run));
    assert!(checkout.is_provisioned());
}

#[test]
fn a_failed_build_keeps_the_exit_code_of_cargo() {
    let checkout = Checkout::new();
    let run = output(&mut checkout.cargo_amp(&["verify"]));
    assert_eq!(run.status.code(), Some(7), "{}", stderr(&run));
    assert_eq!(stdout(&run), "");
}

#[test]
fn every_other_command_passes_its_arguments_to_the_built_binary() {
    let checkout = Checkout::new();
    checkout.write("Cargo.toml", "[workspace]\nmembers = [\"amp-verify\"]\nresolver = \"3\"\n");
    checkout.write(
        "amp-verify/Cargo.toml",
        "[package]\nname = \"amp-verify\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
         [[bin]]\nname = \"amp\"\npath = \"main.rs\"\n",
    );
    checkout.write(
        "amp-verify/main.rs",
        "fn main() {\n    let given: Vec<String> = std::env::args().skip(1).collect();\n    \
         println!(\"{given:?} in {}\", std::env::current_dir().unwrap().display());\n    \
         println!(\"search {}\", std::env::var(\"LD_LIBRARY_PATH\").unwrap_or_default());\n    \
         std::process::exit(3);\n}\n",
    );
    let mut command = checkout.cargo_amp(&["verify", "--format", "a b", "--", "-x"]);
    real_cargo(&mut command);
    // Sets another target folder than the default, and calls cargo-amp in a subfolder of the root.
    // The binary must then run in this subfolder.
    checkout.write("data/note", "");
    let folder = checkout.path("data");
    command.env("CARGO_TARGET_DIR", checkout.path("some \"target\"")).current_dir(&folder);
    let run = output(&mut command);
    assert_eq!(run.status.code(), Some(3), "{}", stderr(&run));
    // The binary needs LD_LIBRARY_PATH, because its run-time search path works only in the default
    // target folder.
    let expected = format!(
        r#"["verify", "--format", "a b", "--", "-x"] in {}
search {home}/torch/lib:{home}/nvidia/cu13/lib
"#,
        folder.display(),
        home = checkout.home().display(),
    );
    assert_eq!(stdout(&run), expected);
    assert!(fs::exists(checkout.path("some \"target\"/debug/amp")).expect("readable"));
}

/// Sets the environment variables with which `command` runs the real cargo with the toolchain of
/// this test.
fn real_cargo(command: &mut Command) {
    for variable in ["CARGO", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "HOME"] {
        if let Some(value) = env::var_os(variable) {
            command.env(variable, value);
        }
    }
    let mut path = vec![fakes()];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    command.env("PATH", env::join_paths(path).expect("PATH was a path list"));
}
