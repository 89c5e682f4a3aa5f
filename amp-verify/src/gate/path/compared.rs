//! How far the gradient and the losses of a step are from those under 32-true.

/// A parameter is compared separately if the norm of its gradient is at least this fraction of the
/// whole gradient's norm. A smaller gradient may consist mostly of rounding errors.
pub(super) const SHARE: f64 = 0.05;

/// How far a step's gradient g and losses l are from the gradient r and the losses m of the
/// reference, the model under 32-true.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Figures {
    /// |⟨g, r⟩/⟨r, r⟩ − 1| of the whole gradient.
    pub(super) projection: f64,
    /// |⟨g, r⟩/⟨r, r⟩ − 1| for the gradient of a single parameter: the largest value of all
    /// parameters that are compared separately, see [`SHARE`].
    pub(super) parameter: f64,
    /// ‖g − r‖/‖r‖ for the whole gradient.
    pub(super) error: f64,
    /// ‖g − r‖/‖r‖ for the gradient of a single parameter: the largest value of the parameters that
    /// are compared separately.
    pub(super) parameter_error: f64,
    /// |l − m|/|m| for the losses of a batch: the largest value of all batches of the step.
    pub(super) loss: f64,
}

/// How far a step is from the same step of the reference (the model under 32-true): in the observed
/// run (`found`), and in each pass with emulated rounding (`rounded`).
#[derive(Debug, Clone, Default)]
pub(super) struct Compared {
    pub(super) found: Figures,
    pub(super) rounded: Vec<Figures>,
}

/// Computes |a − b|/|b|. If the two values are equal, returns 0, even for two zeros or two
/// infinities.
pub(super) fn relative(a: f64, b: f64) -> f64 {
    if a == b { 0.0 } else { ((a - b) / b).abs() }
}

/// Returns the larger of two values. If one of them is NaN, returns NaN.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
