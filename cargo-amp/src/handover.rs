//! The last step: cargo, or the amp binary that cargo has built, takes this process over.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use crate::checkout::Checkout;
use crate::cli::Device;
use crate::error::Error;
use crate::libtorch::Libtorch;

/// Runs the workspace's tests.
pub(crate) fn test(
    checkout: &Checkout,
    libtorch: &Libtorch,
    device: Option<Device>,
    arguments: &[OsString],
) -> Result<ExitCode, Error> {
    let mut command = cargo(checkout, libtorch);
    command.args(["test", "--workspace"]);
    if let Some(device) = device {
        command.env("AMP_DEVICE", device.name());
        if device == Device::Cuda {
            // One at a time: a CUDA device's memory statistics are the process's.
            command.env("RUST_TEST_THREADS", "1");
        }
    }
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    replace_process(command)
}

/// Builds the amp binary and becomes it.
pub(crate) fn amp(
    checkout: &Checkout,
    libtorch: &Libtorch,
    arguments: &[OsString],
) -> Result<ExitCode, Error> {
    // The dev profile is the tests' profile too, so the C++ bindings are compiled once for both;
    // what measures is built for speed. Errors and warnings still go to the terminal; stdout carries what was built.
    let mut build = cargo(checkout, libtorch);
    build
        .args(["build", "--bin", "amp"])
        .args(arguments.first().filter(|command| *command == "bench").map(|_| "--release"))
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    let built = build
        .spawn()
        .and_then(|child| child.wait_with_output())
        .map_err(|e| Error::new(format!("cargo could not be run: {e}")))?;
    if !built.status.success() {
        let code = built.status.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
    }
    let binary = executable(&String::from_utf8_lossy(&built.stdout)).ok_or_else(|| {
        Error::new("cargo built amp but did not say where: check `cargo build --bin amp`")
    })?;
    let mut command = Command::new(binary);
    command.args(arguments);
    libtorch.apply(&mut command);
    replace_process(command)
}

/// A cargo with the right libtorch, in the root, where it finds the checkout's configuration.
fn cargo(checkout: &Checkout, libtorch: &Libtorch) -> Command {
    // Cargo names itself to what it runs: that keeps `cargo +toolchain amp` on the toolchain.
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(checkout.root());
    libtorch.apply(&mut command);
    command
}

/// Gives this process to `command`, so that signals and the exit code are its own.
#[cfg(unix)]
fn replace_process(mut command: Command) -> Result<ExitCode, Error> {
    use std::os::unix::process::CommandExt;

    let error = command.exec();
    Err(could_not_start(&command, &error))
}

/// Where no process can be replaced, waits for `command` and passes its exit code on.
#[cfg(not(unix))]
fn replace_process(mut command: Command) -> Result<ExitCode, Error> {
    let status = command.status().map_err(|e| could_not_start(&command, &e))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn could_not_start(command: &Command, error: &std::io::Error) -> Error {
    Error::new(format!("{} could not be started: {error}", command.get_program().display()))
}

/// The path of the amp binary, from the messages of `cargo build`: one JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter(|line| line.contains(r#""kind":["bin"]"#) && line.contains(r#""name":"amp""#))
        .find_map(|line| line.split_once(r#""executable":""#))
        .and_then(|(_, rest)| json_string(rest))
        .map(PathBuf::from)
}

/// Decodes a JSON string up to its closing quote; `rest` starts behind the opening one.
///
/// Of what can be in a path, only quotes, backslashes and control characters come escaped; a path
/// with control characters is given up.
fn json_string(rest: &str) -> Option<String> {
    let mut decoded = String::new();
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            '"' => return Some(decoded),
            '\\' => match characters.next()? {
                escaped @ ('"' | '\\' | '/') => decoded.push(escaped),
                _ => return None,
            },
            plain => decoded.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::executable;
    use std::path::Path;

    #[test]
    fn the_binary_is_told_from_build_scripts_and_other_artifacts() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["custom-build"],"name":"amp"},"#,
            r#""executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"other"},"#,
            r#""executable":"/wrong"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"amp"},"#,
            r#""executable":"/a \"b\"/c\\d/amp","fresh":true}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages).as_deref(), Some(Path::new(r#"/a "b"/c\d/amp"#)));
    }

    #[test]
    fn a_build_without_the_binary_has_no_path() {
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
