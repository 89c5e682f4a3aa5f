//! Runs cargo and reads its output.

use std::env;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use serde_json::Value;

use crate::error::Error;

/// Creates a command that runs cargo in the working directory, so that cargo reads the same
/// configuration as if the user had called it.
pub(crate) fn command() -> Command {
    // For the programs that it starts, cargo sets the variable `CARGO` to its own path. With this
    // cargo, `cargo +toolchain amp` builds with the chosen toolchain.
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Creates the command `cargo test` for `package`, or for the whole workspace.
pub(crate) fn test(package: Option<&str>) -> Command {
    let mut command = command();
    command.arg("test");
    match package {
        Some(name) => command.args(["--package", name]),
        None => command.arg("--workspace"),
    };
    command
}

pub(crate) fn could_not_start(error: &std::io::Error) -> Error {
    Error::new(format!("cargo could not be run ({error}): put it on PATH"))
}

/// Returns cargo's metadata of the workspace, without dependencies.
pub(crate) fn metadata() -> Result<Value, Error> {
    let mut command = command();
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
    let answer = run(&mut command, |reason| {
        format!("cargo cannot read the crate here: {reason}; run `cargo metadata` for details")
    })?;
    serde_json::from_slice(&answer).map_err(|e| {
        Error::new(format!("`cargo metadata` printed something that is not JSON ({e})"))
    })
}

/// Runs cargo without showing its output, and returns what cargo wrote to stdout. If cargo fails,
/// `explain` makes the error message from the reason that cargo printed.
pub(crate) fn run(
    command: &mut Command,
    explain: impl FnOnce(String) -> String,
) -> Result<Vec<u8>, Error> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| could_not_start(&e))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Error::new(explain(reason(&String::from_utf8_lossy(&output.stderr)))))
    }
}

/// Shortens cargo's error message to one line: the first line of the message and of each cause.
fn reason(message: &str) -> String {
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.find_map(|line| line.strip_prefix("error: ")).unwrap_or("no message");
    let mut reason = first.to_owned();
    while let Some(line) = lines.next() {
        if line == "Caused by:"
            && let Some(cause) = lines.next()
        {
            reason.push_str(": ");
            reason.push_str(cause);
        }
    }
    reason
}

/// An executable file that cargo has built.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// The folder of the package that the executable belongs to.
    pub(crate) package: PathBuf,
    pub(crate) target: String,
    pub(crate) kind: String,
    /// Whether the executable is a test binary.
    pub(crate) is_test: bool,
    pub(crate) path: PathBuf,
}

/// Runs the build `command` and returns the executables that it built. If the build failed, returns
/// cargo's exit code. Cargo has then already printed the reason.
pub(crate) fn build(mut command: Command) -> Result<ControlFlow<ExitCode, Vec<Executable>>, Error> {
    // Cargo writes errors and warnings to the terminal, and the list of built files to stdout.
    let built = command
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .spawn()
        .and_then(|child| child.wait_with_output())
        .map_err(|e| could_not_start(&e))?;
    Ok(if built.status.success() {
        ControlFlow::Continue(executables(&String::from_utf8_lossy(&built.stdout)))
    } else {
        ControlFlow::Break(exit_code(built.status))
    })
}

/// Returns the exit code of a finished program, or 1 if a signal ended the program.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Reads the executables from cargo's messages, which are one JSON object per line.
fn executables(messages: &str) -> Vec<Executable> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter_map(|message| {
            let manifest = Path::new(message["manifest_path"].as_str()?);
            Some(Executable {
                package: manifest.parent()?.into(),
                target: message["target"]["name"].as_str()?.into(),
                kind: message["target"]["kind"][0].as_str()?.into(),
                is_test: message["profile"]["test"].as_bool()?,
                path: message["executable"].as_str()?.into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Executable, executables, reason};

    #[test]
    fn executables_are_told_from_build_scripts_and_libraries() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","#,
            r#""target":{"kind":["custom-build"],"name":"build-script-build"},"#,
            r#""profile":{"test":false},"executable":null}"#,
            "\nnot JSON\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","#,
            r#""target":{"kind":["bin"],"name":"amp"},"#,
            r#""profile":{"test":false},"executable":"/a \"b\"/c\\d/amp","fresh":true}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","#,
            r#""target":{"kind":["test"],"name":"golden"},"#,
            r#""profile":{"test":true},"executable":"/t/golden-0"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let executable = |kind: &str, target: &str, path: &str| Executable {
            package: "/p".into(),
            target: target.into(),
            kind: kind.into(),
            is_test: kind == "test",
            path: path.into(),
        };
        let expected = [
            executable("bin", "amp", r#"/a "b"/c\d/amp"#),
            executable("test", "golden", "/t/golden-0"),
        ];
        assert_eq!(executables(messages), expected);
    }

    #[test]
    fn an_error_of_cargo_becomes_one_line() {
        let message = "warning: something else\nerror: failed to parse manifest at `/x`\n\n\
                       Caused by:\n  no targets specified\n  either src/lib.rs or more\n";
        assert_eq!(reason(message), "failed to parse manifest at `/x`: no targets specified");
        assert_eq!(reason("killed"), "no message");
    }
}
