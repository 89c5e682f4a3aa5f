//! The arguments and options that several layers of the table share.

use super::{Key, Range, any, choice, fraction, optional, positive};

pub(super) const fn sizes(name: &'static str) -> Key {
    Key { name, range: Range::Sizes(1) }
}

pub(super) const fn sizes_or_zero(name: &'static str) -> Key {
    Key { name, range: Range::Sizes(0) }
}

pub(super) const CONV: &[Key] =
    &[positive("in_channels"), positive("out_channels"), sizes("kernel_size")];

pub(super) const CONV_OPTIONS: &[Key] = &[
    sizes("stride"),
    Key { name: "padding", range: Range::Padding },
    sizes("dilation"),
    positive("groups"),
    any("bias"),
    choice(
        "padding_mode",
        &[
            ("zeros", "__amp::nn::PaddingMode::Zeros"),
            ("reflect", "__amp::nn::PaddingMode::Reflect"),
            ("replicate", "__amp::nn::PaddingMode::Replicate"),
            ("circular", "__amp::nn::PaddingMode::Circular"),
        ],
    ),
];

pub(super) const CONV_TRANSPOSE_OPTIONS: &[Key] = &[
    sizes("stride"),
    sizes_or_zero("padding"),
    sizes_or_zero("output_padding"),
    positive("groups"),
    any("bias"),
    sizes("dilation"),
];

pub(super) const WINDOW: &[Key] = &[sizes("kernel_size")];

pub(super) const MAX_POOL_OPTIONS: &[Key] =
    &[sizes("stride"), sizes_or_zero("padding"), sizes("dilation"), any("ceil_mode")];

pub(super) const MAX_UNPOOL_OPTIONS: &[Key] = &[sizes("stride"), sizes_or_zero("padding")];

pub(super) const AVG_POOL_OPTIONS: &[Key] =
    &[sizes("stride"), sizes_or_zero("padding"), any("ceil_mode"), any("count_include_pad")];

pub(super) const AVG_POOL_OF_IMAGES_OPTIONS: &[Key] = &[
    sizes("stride"),
    sizes_or_zero("padding"),
    any("ceil_mode"),
    any("count_include_pad"),
    optional("divisor_override"),
];

pub(super) const NORM_OF_WINDOW: &[Key] = &[positive("norm_type"), sizes("kernel_size")];

pub(super) const LP_POOL_OPTIONS: &[Key] = &[sizes("stride"), any("ceil_mode")];

pub(super) const FRACTIONAL_POOL_OPTIONS: &[Key] =
    &[sizes("output_size"), optional("output_ratio")];

pub(super) const WINDOWS_OPTIONS: &[Key] =
    &[sizes("dilation"), sizes_or_zero("padding"), sizes("stride")];

pub(super) const OUTPUT: &[Key] = &[any("output_size")];

pub(super) const PAD: &[Key] = &[sizes_or_zero("padding")];

pub(super) const CONSTANT_PAD: &[Key] = &[sizes_or_zero("padding"), any("value")];

pub(super) const BATCH_NORM: &[Key] = &[positive("num_features")];
pub(super) const BATCH_NORM_OPTIONS: &[Key] =
    &[positive("eps"), fraction("momentum"), any("affine"), any("track_running_stats")];
pub(super) const GROUP_NORM_OPTIONS: &[Key] = &[positive("eps"), any("affine")];

pub(super) const ATTENTION_OPTIONS: &[Key] = &[
    fraction("dropout"),
    any("bias"),
    any("add_bias_kv"),
    any("add_zero_attn"),
    positive("kdim"),
    positive("vdim"),
    positive("num_kv_heads"),
    any("causal"),
    choice(
        "rotary",
        &[
            ("interleaved", "__amp::Some(__amp::nn::RotaryPairing::Interleaved)"),
            ("half_rotated", "__amp::Some(__amp::nn::RotaryPairing::HalfRotated)"),
        ],
    ),
    positive("rotary_base"),
];

pub(super) const FEED_FORWARD: Key = choice(
    "activation",
    &[
        ("relu", "__amp::nn::FeedForward::Relu"),
        ("gelu", "__amp::nn::FeedForward::Gelu"),
        ("gelu_tanh", "__amp::nn::FeedForward::GeluTanh"),
        ("swiglu", "__amp::nn::FeedForward::SwiGlu"),
    ],
);

pub(super) const TRANSFORMER_LAYER: &[Key] = &[positive("d_model"), positive("nhead")];
pub(super) const TRANSFORMER_LAYER_OPTIONS: &[Key] = &[
    positive("dim_feedforward"),
    fraction("dropout"),
    FEED_FORWARD,
    positive("layer_norm_eps"),
    any("norm_first"),
    any("causal"),
    any("bias"),
];

pub(super) const TRANSFORMER: &[Key] =
    &[positive("d_model"), positive("nhead"), positive("num_layers")];
pub(super) const TRANSFORMER_OPTIONS: &[Key] = &[
    positive("dim_feedforward"),
    fraction("dropout"),
    FEED_FORWARD,
    positive("layer_norm_eps"),
    any("norm_first"),
    any("causal"),
    any("bias"),
    any("norm"),
];

pub(super) const WHOLE_TRANSFORMER_OPTIONS: &[Key] = &[
    positive("d_model"),
    positive("nhead"),
    positive("num_encoder_layers"),
    positive("num_decoder_layers"),
    positive("dim_feedforward"),
    fraction("dropout"),
    FEED_FORWARD,
    positive("layer_norm_eps"),
    any("norm_first"),
    any("causal"),
    any("bias"),
];

pub(super) const RECURRENT: &[Key] = &[positive("input_size"), positive("hidden_size")];
pub(super) const GRU_OPTIONS: &[Key] = &[
    positive("num_layers"),
    any("bias"),
    any("batch_first"),
    fraction("dropout"),
    any("bidirectional"),
];
pub(super) const LSTM_OPTIONS: &[Key] = &[
    positive("num_layers"),
    any("bias"),
    any("batch_first"),
    fraction("dropout"),
    any("bidirectional"),
    positive("proj_size"),
];
pub(super) const NONLINEARITY: Key = choice(
    "nonlinearity",
    &[("tanh", "__amp::nn::RnnNonlinearity::Tanh"), ("relu", "__amp::nn::RnnNonlinearity::Relu")],
);
pub(super) const RNN_OPTIONS: &[Key] = &[
    positive("num_layers"),
    NONLINEARITY,
    any("bias"),
    any("batch_first"),
    fraction("dropout"),
    any("bidirectional"),
];
