//! Detects probabilities that are passed to a loss of logits.

use std::{cell::Cell, marker::PhantomData};

use tch::{Kind, Tensor};

use crate::Result;

thread_local! {
    /// Whether a loss has received probabilities. `None` if no watch exists on this thread.
    static FOUND: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Watches whether [`CrossEntropy`](super::CrossEntropy) receives probabilities in place of logits
/// on this thread. The look at the logits waits for the device, so a run watches only its first
/// batch. The watch ends when it is dropped.
pub(crate) struct WatchedProbabilities {
    _thread: PhantomData<*const ()>,
}

impl WatchedProbabilities {
    pub(crate) fn start() -> Self {
        FOUND.set(Some(false));
        Self { _thread: PhantomData }
    }

    /// Returns a note if a loss has received probabilities since the watch was started.
    pub(crate) fn note(&self) -> Option<String> {
        (FOUND.get() == Some(true)).then(|| {
            "cross_entropy takes logits, but its input in the first batch looks like the output of a \
             softmax: no value is negative, and the values of each example sum to 1; leave out the \
             softmax, because cross_entropy applies it, or use nll_loss after a log_softmax"
                .to_owned()
        })
    }
}

impl Drop for WatchedProbabilities {
    fn drop(&mut self) {
        FOUND.set(None);
    }
}

/// Tells the watch of this thread, if there is one, whether the logits of shape `[N, C, …]` are
/// probabilities: none is negative, and those of each example sum to 1, except for rounding.
pub(super) fn look(logits: &Tensor) -> Result<()> {
    if FOUND.get() != Some(false) || logits.numel() == 0 {
        return Ok(());
    }
    let tolerance = match logits.kind() {
        Kind::Half | Kind::BFloat16 => 0.02,
        _ => 1e-4,
    };
    let logits = logits.f_detach()?;
    let is_found = logits.f_min()?.f_double_value(&[])? >= 0.0 && {
        let sums = logits.f_sum_dim_intlist([1].as_slice(), false, logits.kind())?;
        let off = sums.f_sub_scalar(1.0)?.f_abs()?.f_max()?;
        off.f_double_value(&[])? <= tolerance
    };
    FOUND.set(Some(is_found));
    Ok(())
}
