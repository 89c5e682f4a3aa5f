//! Exit codes of the commands.

use amp_core::Error;

/// The request was valid, but the run failed.
pub(super) const FAILED: u8 = 1;
/// The command line is invalid or cannot be carried out. clap uses the same exit code.
pub(super) const USAGE: u8 = 2;
/// There are too few seeds for a verdict. `parity` uses this constant, and `gate` uses an equal
/// exit code.
pub(super) const INCONCLUSIVE: u8 = 3;
/// A result cannot be compared with recorded values, because the recorded values are from another
/// kind of machine.
const NOT_COMPARABLE: u8 = 4;

/// Returns the exit code of a command that fails with this error.
pub(super) fn code(error: &Error) -> u8 {
    match error {
        // `In` adds the path of a module to the error `source`. The exit code depends only on
        // `source`.
        Error::In { source, .. } => code(source),
        Error::Config(_) | Error::Io { .. } => USAGE,
        Error::NotComparable(_) => NOT_COMPARABLE,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Error::config("no such model"), USAGE)]
    #[case(Error::io("policy.json", io::ErrorKind::NotFound.into()), USAGE)]
    #[case(Error::config("a size").at("model.0"), USAGE)]
    #[case(Error::Data("the dataset panicked".into()), FAILED)]
    #[case(Error::Thread("a logger panicked".into()), FAILED)]
    #[case(Error::Torch("out of memory".into()).at("model.0"), FAILED)]
    #[case(Error::NonFinite("the loss is NaN".into()), FAILED)]
    #[case(Error::Invariant { name: "weights-move", text: String::new() }, FAILED)]
    #[case(Error::NotComparable("another GPU".into()), NOT_COMPARABLE)]
    fn the_kind_of_an_error_decides_the_exit_code(#[case] error: Error, #[case] expected: u8) {
        assert_eq!(code(&error), expected);
    }
}
