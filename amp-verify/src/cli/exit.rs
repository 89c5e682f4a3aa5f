//! Exit codes of the commands.

use amp_core::Error;

/// The command line was valid, but the run failed.
pub(super) const FAILED: u8 = 1;
/// The command line is invalid, or the command cannot do what it asks for. clap uses the same exit
/// code.
pub(super) const USAGE: u8 = 2;
/// There are too few seeds for a verdict. `parity` uses this constant. The exit code of `gate` has
/// the same value.
pub(super) const INCONCLUSIVE: u8 = 3;
/// A result cannot be compared with recorded values, because the recorded values are from another
/// kind of machine.
const NOT_COMPARABLE: u8 = 4;

/// Returns the exit code of a command that fails with this error.
pub(super) fn code(error: &Error) -> u8 {
    match error {
        // The exit code depends only on the inner error.
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
