//! Describes in one line why a precision failed.

use super::{Cause, Finding};
use crate::text::percent;

/// Formats the diagnosis. If `searched` is true, a search for modules that must stay in FP32 was
/// made, and the text includes its result.
pub(super) fn text(finding: &Finding, searched: bool) -> String {
    let Finding { seed, cause, layer, modules, .. } = finding;
    let text = match cause {
        Cause::Nondeterministic => {
            return format!(
                "nondeterministic: the run with seed {seed} gives other results when it is \
                 repeated; use --deterministic or more seeds"
            );
        }
        Cause::Environment => {
            return "environment: 32-true itself differs from its golden (the recorded results)"
                .into();
        }
        Cause::Baseline => return "baseline: 32-true fails as well".into(),
        Cause::Unknown => return "unknown: ".into(),
        // [`super::rule`] writes the whole text about a broken rule.
        Cause::Rule => return String::new(),
        Cause::Precision => {
            format!("precision: the run with seed {seed} fails again, but passes under 32-true")
        }
    };
    let worst = layer.as_ref().map_or(String::new(), |layer| {
        let error = finding.layer_error_text();
        if finding.is_beyond {
            format!("; the own error of `{layer}` is larger than rounding explains ({error})")
        } else {
            format!("; of all layers, `{layer}` itself makes the largest error ({error})")
        }
    });
    let remedy = if !searched {
        return text + &worst;
    } else if modules.is_empty() {
        "FP32 in every module does not help: look at the loss, the loss scale and the optimizer"
            .to_owned()
    } else {
        let minimal = if finding.one_minimal { "each is needed" } else { "not minimal" };
        format!("must stay in FP32 ({minimal}): {}", modules.join(", "))
    };
    format!("{text}{worst}; {remedy}")
}

impl Finding {
    /// Formats the suspected layer's error, as in `12 % of its output`.
    pub fn layer_error_text(&self) -> String {
        self.layer_error
            .map_or("not finite".into(), |error| format!("{} of its output", percent(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_is_not_finite_is_no_share_of_the_output() {
        let mut finding =
            Finding { layer: Some("head".into()), cause: Cause::Precision, ..Finding::of(1, None) };
        assert!(
            text(&finding, false).ends_with("`head` itself makes the largest error (not finite)")
        );
        finding.layer_error = Some(0.12);
        finding.is_beyond = true;
        assert!(text(&finding, false).ends_with("than rounding explains (12 % of its output)"));
    }
}
