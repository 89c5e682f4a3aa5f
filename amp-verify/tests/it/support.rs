use std::{
    env,
    path::Path,
    process::{Command, Output},
};

/// The binary under test; packed tests find it beside their folder.
pub(crate) fn amp(folder: &Path) -> Command {
    let binary = env::var("AMP_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_amp").to_owned());
    let mut command = Command::new(binary);
    command.current_dir(folder);
    command
}

/// The device tests run on: `AMP_DEVICE`, set by `cargo amp test --device`, or the CPU.
pub(crate) fn device() -> String {
    env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What was printed to standard error, which must be one line, with exit code 2 and nothing on
/// standard output.
pub(crate) fn refusal(output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "exit code; stderr: {err}");
    assert_eq!(out, "", "standard output");
    assert_eq!(err.trim_end().lines().count(), 1, "one line, not: {err}");
    err.trim_end().to_owned()
}

/// The names of the files in `folder`.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().expect("a folder");
    entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect()
}

/// The same device for tensors.
pub(crate) fn torch_device() -> amp_core::tch::Device {
    amp_core::hardware::parse_device(&device()).expect("AMP_DEVICE names a device of this machine")
}

static GENERATOR: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Keeps libtorch's generators, which are one for the process, from other tests while it lives.
pub(crate) fn generator() -> std::sync::MutexGuard<'static, ()> {
    // A test that failed has not harmed them.
    GENERATOR.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
