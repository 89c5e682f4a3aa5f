//! Finds the layer that causes an error. Each layer runs separately on exact inputs, so that its
//! result does not contain the errors of earlier layers.

use amp_core::Result;

use crate::{
    case::Case,
    gate::{budget::Budget, job::Job},
    layers::{self, Options, Own},
    rounding::is_narrow,
};

/// Measures each layer separately. Returns a sentence that names the first layer whose error
/// exceeds its bound. The report adds this sentence to the failure. The sentence is empty if the
/// precision does not compute in 16 bits, or if the layers cannot be measured separately.
pub(super) fn locate(job: &Job, case: &Case, budget: Budget) -> Result<String> {
    if !is_narrow(job.precision.compute()) {
        return Ok(String::new());
    }
    budget.measured(job, case, job.precision, |subject| {
        let audited = layers::audit(subject, Options::new(job.precision));
        Ok(audited.map(|(_, own)| in_words(&own)).unwrap_or_default())
    })
}

fn in_words(own: &[Own]) -> String {
    match own.iter().find(|own| own.is_beyond()) {
        Some(Own { path, error, .. }) => format!(
            "; on exact inputs `{path}` is the first layer whose own error exceeds its bound: it is {:.1} \
             times as large as rounding explains",
            error.unwrap_or(f64::NAN)
        ),
        None if own.is_empty() => String::new(),
        None => format!(
            "; none of {} layers exceeds its bound on exact inputs, so no single layer causes \
             the difference",
            own.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Lost;

    fn own(path: &str, error: f64) -> Own {
        Own {
            path: path.into(),
            error: Some(error),
            wide: Vec::new(),
            twice: Vec::new(),
            lost: Lost::default(),
        }
    }

    /// Checks that the sentence names the first layer whose error exceeds its bound, even if the
    /// error is not finite. If there is no such layer, the sentence says so.
    #[test]
    fn the_first_layer_beyond_its_bound_is_named() {
        let found = in_words(&[own("a", 1.0), own("b", 3.5), own("c", f64::INFINITY)]);
        assert!(
            found.contains("`b` is the first layer whose own error exceeds its bound: it is 3.5"),
            "{found}"
        );
        assert!(in_words(&[own("a", f64::INFINITY)]).contains("`a` is the first"));
        assert!(in_words(&[own("a", 2.9)]).contains("none of 1 layers"));
        assert_eq!(in_words(&[]), "");
    }
}
