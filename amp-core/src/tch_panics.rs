//! Turns panics of tch into errors.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    sync::Once,
};

use crate::{Error, Result};

/// The source file of tch whose panics are turned into errors.
const SCALARS: &str = "wrappers/scalar.rs";
/// The beginning and the end of the panic's text. Between them is libtorch's text, escaped as in a
/// Rust string.
const AROUND: (&str, &str) = ("called `Result::unwrap()` on an `Err` value: Torch(\"", "\")");

thread_local! {
    /// The number of calls of [`returned`] on this thread that have not ended.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Whether the latest panic of this thread came from [`SCALARS`].
    static IS_OF_TCH: Cell<bool> = const { Cell::new(false) };
}

/// Calls `body`, and returns the error of libtorch with which tch has panicked.
///
/// If an operator that takes a number fails, as in `x.f_mul_scalar(2.0)?`, tch panics instead of
/// returning the error: before tch reads libtorch's error, it frees the number, and this call finds
/// the error of the operator. Other panics pass through.
///
/// The first call adds a hook to the process's panic hook, which then prints nothing about the
/// panics that become errors.
///
/// # Errors
/// When `body` fails, or tch panics with an error of libtorch.
#[doc(hidden)]
pub fn returned<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    /// Counts a call of [`returned`] until the guard is dropped, also after a panic.
    struct Call;

    impl Drop for Call {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
        }
    }

    add_hook();
    DEPTH.set(DEPTH.get() + 1);
    let _call = Call;
    // What `body` has changed is either dropped with the error, or restored by the caller, as after
    // any other error of libtorch.
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        match text_of(payload.as_ref()).filter(|_| IS_OF_TCH.take()) {
            Some(text) => Err(Error::torch(&text)),
            None => panic::resume_unwind(payload),
        }
    })
}

fn add_hook() {
    static ADDED: Once = Once::new();
    ADDED.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            let is_of_tch = DEPTH.get() > 0
                && info.location().is_some_and(|place| place.file().ends_with(SCALARS))
                && text_of(info.payload()).is_some();
            IS_OF_TCH.set(is_of_tch);
            if !is_of_tch {
                hook(info);
            }
        }));
    });
}

/// Returns libtorch's text, if `payload` is that of a panic with an error of libtorch.
fn text_of(payload: &(dyn Any + Send)) -> Option<String> {
    let escaped = payload.downcast_ref::<String>()?.strip_prefix(AROUND.0)?;
    let escaped = escaped.strip_suffix(AROUND.1)?;
    let mut text = String::new();
    let mut letters = escaped.chars();
    while let Some(letter) = letters.next() {
        text.push(match letter {
            '\\' => match letters.next()? {
                'n' => '\n',
                't' => '\t',
                other => other,
            },
            letter => letter,
        });
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    /// Checks that a failing operator with a number gives libtorch's text, in a nested call too.
    #[test]
    fn a_failing_operator_with_a_number_is_an_error() {
        let x = Tensor::ones([2, 5], (Kind::Float, Device::Cpu));
        let mask = Tensor::ones([2, 4], (Kind::Bool, Device::Cpu));
        let fill = || Ok(x.f_masked_fill(&mask, -1e9)?);
        for result in [returned(fill), returned(|| returned(fill))] {
            let text = result.expect_err("the shapes differ").to_string();
            assert!(text.contains("must match the size of tensor b"), "{text}");
            assert!(!text.contains("frame #0"), "{text}");
        }
    }

    /// Checks that a panic that tch does not cause stays a panic, even if it has the same text.
    #[test]
    fn other_panics_stay_panics() {
        let text = format!("{}own{}", AROUND.0, AROUND.1);
        for payload in ["mine".to_owned(), text] {
            let body = || returned(|| -> Result<()> { panic!("{payload}") });
            let caught = panic::catch_unwind(AssertUnwindSafe(body)).expect_err("a panic");
            assert_eq!(caught.downcast_ref::<String>(), Some(&payload));
        }
    }
}
