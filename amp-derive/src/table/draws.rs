//! The table of initializers, which are the distributions of random initial values.

use super::{Entry, Key, Named, any, choice};

/// An initializer. The entry's `ty` names a variant of amp-core's `Init`. The keys are the fields
/// of this variant.
#[derive(Debug)]
pub(crate) struct Draw {
    pub(crate) entry: Entry,
    /// The default values of the options, in the same order as the options.
    pub(crate) defaults: &'static [&'static str],
}

impl Named for Draw {
    fn entry(&self) -> &Entry {
        &self.entry
    }
}

const fn draw(name: &'static str, ty: &'static str, required: &'static [Key]) -> Draw {
    Draw { entry: Entry { name, ty, required, options: &[] }, defaults: &[] }
}

const fn with_gain(name: &'static str, ty: &'static str) -> Draw {
    const GAIN: &[Key] = &[any("gain")];
    Draw { entry: Entry { name, ty, required: &[], options: GAIN }, defaults: &["1.0"] }
}

const fn kaiming(name: &'static str, ty: &'static str) -> Draw {
    const OPTIONS: &[Key] = &[
        any("a"),
        choice(
            "mode",
            &[
                ("fan_in", "__amp::nn::init::FanMode::FanIn"),
                ("fan_out", "__amp::nn::init::FanMode::FanOut"),
            ],
        ),
        choice(
            "nonlinearity",
            &[
                ("linear", "__amp::nn::init::Nonlinearity::Linear"),
                ("sigmoid", "__amp::nn::init::Nonlinearity::Sigmoid"),
                ("tanh", "__amp::nn::init::Nonlinearity::Tanh"),
                ("relu", "__amp::nn::init::Nonlinearity::Relu"),
                ("leaky_relu", "__amp::nn::init::Nonlinearity::LeakyRelu"),
                ("selu", "__amp::nn::init::Nonlinearity::Selu"),
            ],
        ),
    ];
    const DEFAULTS: &[&str] =
        &["0.0", "__amp::nn::init::FanMode::FanIn", "__amp::nn::init::Nonlinearity::LeakyRelu"];
    Draw { entry: Entry { name, ty, required: &[], options: OPTIONS }, defaults: DEFAULTS }
}

pub(crate) const DRAWS: &[Draw] = &[
    draw("zeros", "Zeros", &[]),
    draw("ones", "Ones", &[]),
    draw("full", "Full", &[any("value")]),
    draw("uniform", "Uniform", &[any("low"), any("high")]),
    draw("normal", "Normal", &[any("mean"), any("std")]),
    Draw {
        entry: Entry {
            name: "trunc_normal",
            ty: "TruncNormal",
            required: &[any("mean"), any("std")],
            options: &[any("a"), any("b")],
        },
        defaults: &["-2.0", "2.0"],
    },
    with_gain("xavier_uniform", "XavierUniform"),
    with_gain("xavier_normal", "XavierNormal"),
    kaiming("kaiming_uniform", "KaimingUniform"),
    kaiming("kaiming_normal", "KaimingNormal"),
    with_gain("orthogonal", "Orthogonal"),
    draw("eye", "Eye", &[]),
];
