//! How a tensor's first values are drawn.

/// A way to draw a tensor's first values.
pub(crate) struct Draw {
    pub(crate) name: &'static str,
    /// The variant of amp-core's `Init`.
    pub(crate) variant: &'static str,
    pub(crate) arguments: &'static [&'static str],
}

pub(crate) const DRAWS: &[Draw] = &[
    Draw { name: "zeros", variant: "Zeros", arguments: &[] },
    Draw { name: "ones", variant: "Ones", arguments: &[] },
    Draw { name: "full", variant: "Full", arguments: &["value"] },
    Draw { name: "uniform", variant: "Uniform", arguments: &["low", "high"] },
    Draw { name: "normal", variant: "Normal", arguments: &["mean", "std"] },
    Draw { name: "kaiming_uniform", variant: "KaimingUniform", arguments: &["fan_in"] },
];
