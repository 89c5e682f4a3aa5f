//! A Python program that communicates in lines of JSON. The program reads one request per line from
//! standard input, and writes one answer per line to standard output. If a request fails, the
//! answer's field `error` contains the error message.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use amp_core::{Error, Result, tch::Device};
use serde_json::Value;

/// A running Python program, to which requests are sent.
pub(crate) struct Process {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Starts the Python interpreter `program` with these arguments. Returns at once, so that
    /// several programs can start at the same time. [`Process::versions`] waits until the program
    /// is ready.
    ///
    /// # Errors
    /// When the program does not exist.
    pub(crate) fn start(
        program: &Path,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| Error::io(program, error))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are pipes");
        };
        Ok(Self { child, requests: Some(requests), answers: BufReader::new(answers) })
    }

    /// Waits for the program's first answer. Returns the versions of Python and of its packages, by
    /// the package's name.
    ///
    /// # Errors
    /// When a Python package is missing. The error names the package.
    pub(crate) fn versions(&mut self) -> Result<BTreeMap<String, String>> {
        let hello = self.answer()?;
        let versions = hello.get("versions").and_then(Value::as_object);
        let versions = versions.ok_or_else(|| unexpected(&hello))?;
        let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
        Ok(versions.iter().map(|(name, value)| (name.clone(), text(value))).collect())
    }

    /// Sends a request and returns the answer.
    ///
    /// # Errors
    /// When the program reports an error, the program has ended, or its answer is not valid JSON.
    pub(crate) fn ask(&mut self, request: &Value) -> Result<Value> {
        self.send(request)?;
        self.answer()
    }

    /// Sends a request whose [`answer`](Self::answer) is read later.
    ///
    /// # Errors
    /// When the program has ended.
    pub(crate) fn send(&mut self, request: &Value) -> Result<()> {
        let sent = match &mut self.requests {
            Some(requests) => writeln!(requests, "{request}").and_then(|()| requests.flush()),
            None => Ok(()),
        };
        sent.map_err(|_| self.gone())
    }

    /// Waits for the next answer of the program and returns it.
    ///
    /// # Errors
    /// When the program reports an error, the program has ended, or its answer is not valid JSON.
    pub(crate) fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) | Err(_) => return Err(self.gone()),
            Ok(_) => {}
        }
        let answer: Value = serde_json::from_str(&line)
            .map_err(|_| unexpected(&Value::String(line.trim_end().to_owned())))?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(Error::config(error)),
            None => Ok(answer),
        }
    }

    fn gone(&mut self) -> Error {
        self.requests = None;
        match self.child.wait() {
            Ok(status) => {
                Error::config(format!("the Python process ended without an answer: {status}"))
            }
            Err(error) => {
                Error::config(format!("the connection to the Python process failed: {error}"))
            }
        }
    }
}

/// Returns the error for an answer that is not valid JSON, or not what the request asks for. The
/// error contains the answer.
pub(crate) fn unexpected(answer: &Value) -> Error {
    Error::config(format!("the Python program sent an unexpected answer: {answer}"))
}

/// Returns the name of the device in torch, for example `cuda:0`.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The program ends as soon as its standard input is closed.
        self.requests = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
