//! Finds the layer that causes an error. Each layer runs on exact values, so that none inherits the
//! error of another.

use std::rc::Rc;

use amp_core::Result;

use crate::{
    case::Case,
    gate::{job::Job, sample::sample},
    layers::{self, Options, Own, Subject},
    rounding::is_narrow,
};

/// Returns a sentence about the layers for a figure that exceeds its bound. It is empty if the
/// model's layers cannot run alone.
pub(super) fn locate(job: &Job, case: &Case) -> Result<String> {
    if !is_narrow(job.precision.compute()) {
        return Ok(String::new());
    }
    let build = || job.model(case, job.precision);
    let batch = sample(case)?;
    let subject = Subject {
        build: &build,
        batch: &batch,
        device: case.trainer.device,
        seed: case.trainer.seed,
        overrides: Rc::new(job.overrides.clone()),
    };
    let audited = layers::audit(&subject, Options::new(job.precision));
    Ok(audited.map(|(_, own)| in_words(&own)).unwrap_or_default())
}

fn in_words(own: &[Own]) -> String {
    match own.iter().find(|own| own.is_beyond()) {
        Some(Own { path, error, .. }) => format!(
            "; on exact inputs `{path}` is the first layer beyond its own bound, {:.1} times as far off as \
             rounding takes it",
            error.unwrap_or(f64::NAN)
        ),
        None if own.is_empty() => String::new(),
        None => format!(
            "; on exact inputs none of {} layers is beyond its own bound, so that no layer makes the error by \
             itself",
            own.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(path: &str, error: f64) -> Own {
        Own { path: path.into(), error: Some(error), wide: Vec::new(), twice: Vec::new() }
    }

    /// The sentence names the first layer beyond its bound, including errors that are not finite,
    /// or says that there is none.
    #[test]
    fn the_first_layer_beyond_its_bound_is_named() {
        let found = in_words(&[own("a", 1.0), own("b", 3.5), own("c", f64::INFINITY)]);
        assert!(
            found.contains("`b` is the first layer beyond its own bound, 3.5 times"),
            "{found}"
        );
        assert!(in_words(&[own("a", f64::INFINITY)]).contains("`a` is the first"));
        assert!(in_words(&[own("a", 2.9)]).contains("none of 1 layers"));
        assert_eq!(in_words(&[]), "");
    }
}
