//! The table of the layers that `#[layer(…)]` can build by name.

use super::{
    Entry, Form, Key, Layer, Range, any, choice, fraction, not_negative, optional, positive,
};

const fn sizes(name: &'static str) -> Key {
    Key { name, range: Range::Sizes(1) }
}

const fn sizes_or_zero(name: &'static str) -> Key {
    Key { name, range: Range::Sizes(0) }
}

const fn layer(
    name: &'static str,
    ty: &'static str,
    required: &'static [Key],
    options: &'static [Key],
) -> Layer {
    Layer { entry: Entry { name, ty, required, options }, form: Form::Config }
}

const fn plain(name: &'static str, ty: &'static str, required: &'static [Key]) -> Layer {
    Layer { entry: Entry { name, ty, required, options: &[] }, form: Form::Plain }
}

const fn unit(name: &'static str, ty: &'static str) -> Layer {
    Layer { entry: Entry { name, ty, required: &[], options: &[] }, form: Form::Unit }
}

const CONV: &[Key] = &[positive("in_channels"), positive("out_channels"), sizes("kernel_size")];

const CONV_OPTIONS: &[Key] = &[
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

const CONV_TRANSPOSE_OPTIONS: &[Key] = &[
    sizes("stride"),
    sizes_or_zero("padding"),
    sizes_or_zero("output_padding"),
    positive("groups"),
    any("bias"),
    sizes("dilation"),
];

const WINDOW: &[Key] = &[sizes("kernel_size")];

const MAX_POOL_OPTIONS: &[Key] =
    &[sizes("stride"), sizes_or_zero("padding"), sizes("dilation"), any("ceil_mode")];

const MAX_UNPOOL_OPTIONS: &[Key] = &[sizes("stride"), sizes_or_zero("padding")];

const AVG_POOL_OPTIONS: &[Key] =
    &[sizes("stride"), sizes_or_zero("padding"), any("ceil_mode"), any("count_include_pad")];

const AVG_POOL_OF_IMAGES_OPTIONS: &[Key] = &[
    sizes("stride"),
    sizes_or_zero("padding"),
    any("ceil_mode"),
    any("count_include_pad"),
    optional("divisor_override"),
];

const NORM_OF_WINDOW: &[Key] = &[positive("norm_type"), sizes("kernel_size")];

const LP_POOL_OPTIONS: &[Key] = &[sizes("stride"), any("ceil_mode")];

const FRACTIONAL_POOL_OPTIONS: &[Key] = &[sizes("output_size"), optional("output_ratio")];

const WINDOWS_OPTIONS: &[Key] = &[sizes("dilation"), sizes_or_zero("padding"), sizes("stride")];

const OUTPUT: &[Key] = &[any("output_size")];

const PAD: &[Key] = &[sizes_or_zero("padding")];

const CONSTANT_PAD: &[Key] = &[sizes_or_zero("padding"), any("value")];

const BATCH_NORM: &[Key] = &[positive("num_features")];
const BATCH_NORM_OPTIONS: &[Key] =
    &[positive("eps"), fraction("momentum"), any("affine"), any("track_running_stats")];
const GROUP_NORM_OPTIONS: &[Key] = &[positive("eps"), any("affine")];

const ATTENTION_OPTIONS: &[Key] = &[
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

const FEED_FORWARD: Key = choice(
    "activation",
    &[
        ("relu", "__amp::nn::FeedForward::Relu"),
        ("gelu", "__amp::nn::FeedForward::Gelu"),
        ("gelu_tanh", "__amp::nn::FeedForward::GeluTanh"),
        ("swiglu", "__amp::nn::FeedForward::SwiGlu"),
    ],
);

const TRANSFORMER_LAYER: &[Key] = &[positive("d_model"), positive("nhead")];
const TRANSFORMER_LAYER_OPTIONS: &[Key] = &[
    positive("dim_feedforward"),
    fraction("dropout"),
    FEED_FORWARD,
    positive("layer_norm_eps"),
    any("norm_first"),
    any("causal"),
    any("bias"),
];

const TRANSFORMER: &[Key] = &[positive("d_model"), positive("nhead"), positive("num_layers")];
const TRANSFORMER_OPTIONS: &[Key] = &[
    positive("dim_feedforward"),
    fraction("dropout"),
    FEED_FORWARD,
    positive("layer_norm_eps"),
    any("norm_first"),
    any("causal"),
    any("bias"),
    any("norm"),
];

const WHOLE_TRANSFORMER_OPTIONS: &[Key] = &[
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

const RECURRENT: &[Key] = &[positive("input_size"), positive("hidden_size")];
const GRU_OPTIONS: &[Key] = &[
    positive("num_layers"),
    any("bias"),
    any("batch_first"),
    fraction("dropout"),
    any("bidirectional"),
];
const LSTM_OPTIONS: &[Key] = &[
    positive("num_layers"),
    any("bias"),
    any("batch_first"),
    fraction("dropout"),
    any("bidirectional"),
    positive("proj_size"),
];
const NONLINEARITY: Key = choice(
    "nonlinearity",
    &[("tanh", "__amp::nn::RnnNonlinearity::Tanh"), ("relu", "__amp::nn::RnnNonlinearity::Relu")],
);
const RNN_OPTIONS: &[Key] = &[
    positive("num_layers"),
    NONLINEARITY,
    any("bias"),
    any("batch_first"),
    fraction("dropout"),
    any("bidirectional"),
];

pub(crate) const LAYERS: &[Layer] = &[
    layer("linear", "Linear", &[positive("in_features"), positive("out_features")], &[any("bias")]),
    layer(
        "bilinear",
        "Bilinear",
        &[positive("in1_features"), positive("in2_features"), positive("out_features")],
        &[any("bias")],
    ),
    layer("conv1d", "Conv1d", CONV, CONV_OPTIONS),
    layer("conv2d", "Conv2d", CONV, CONV_OPTIONS),
    layer("conv3d", "Conv3d", CONV, CONV_OPTIONS),
    layer("conv_transpose1d", "ConvTranspose1d", CONV, CONV_TRANSPOSE_OPTIONS),
    layer("conv_transpose2d", "ConvTranspose2d", CONV, CONV_TRANSPOSE_OPTIONS),
    layer("conv_transpose3d", "ConvTranspose3d", CONV, CONV_TRANSPOSE_OPTIONS),
    layer("max_pool1d", "MaxPool1d", WINDOW, MAX_POOL_OPTIONS),
    layer("max_pool2d", "MaxPool2d", WINDOW, MAX_POOL_OPTIONS),
    layer("max_pool3d", "MaxPool3d", WINDOW, MAX_POOL_OPTIONS),
    layer("max_unpool1d", "MaxUnpool1d", WINDOW, MAX_UNPOOL_OPTIONS),
    layer("max_unpool2d", "MaxUnpool2d", WINDOW, MAX_UNPOOL_OPTIONS),
    layer("max_unpool3d", "MaxUnpool3d", WINDOW, MAX_UNPOOL_OPTIONS),
    layer("avg_pool1d", "AvgPool1d", WINDOW, AVG_POOL_OPTIONS),
    layer("avg_pool2d", "AvgPool2d", WINDOW, AVG_POOL_OF_IMAGES_OPTIONS),
    layer("avg_pool3d", "AvgPool3d", WINDOW, AVG_POOL_OF_IMAGES_OPTIONS),
    layer("lp_pool1d", "LpPool1d", NORM_OF_WINDOW, LP_POOL_OPTIONS),
    layer("lp_pool2d", "LpPool2d", NORM_OF_WINDOW, LP_POOL_OPTIONS),
    layer("lp_pool3d", "LpPool3d", NORM_OF_WINDOW, LP_POOL_OPTIONS),
    layer("fractional_max_pool2d", "FractionalMaxPool2d", WINDOW, FRACTIONAL_POOL_OPTIONS),
    layer("fractional_max_pool3d", "FractionalMaxPool3d", WINDOW, FRACTIONAL_POOL_OPTIONS),
    plain("adaptive_avg_pool1d", "AdaptiveAvgPool1d", OUTPUT),
    plain("adaptive_avg_pool2d", "AdaptiveAvgPool2d", OUTPUT),
    plain("adaptive_avg_pool3d", "AdaptiveAvgPool3d", OUTPUT),
    plain("adaptive_max_pool1d", "AdaptiveMaxPool1d", OUTPUT),
    plain("adaptive_max_pool2d", "AdaptiveMaxPool2d", OUTPUT),
    plain("adaptive_max_pool3d", "AdaptiveMaxPool3d", OUTPUT),
    layer("batch_norm1d", "BatchNorm", BATCH_NORM, BATCH_NORM_OPTIONS),
    layer("batch_norm2d", "BatchNorm", BATCH_NORM, BATCH_NORM_OPTIONS),
    layer("batch_norm3d", "BatchNorm", BATCH_NORM, BATCH_NORM_OPTIONS),
    layer("instance_norm1d", "InstanceNorm", BATCH_NORM, BATCH_NORM_OPTIONS),
    layer("instance_norm2d", "InstanceNorm", BATCH_NORM, BATCH_NORM_OPTIONS),
    layer("instance_norm3d", "InstanceNorm", BATCH_NORM, BATCH_NORM_OPTIONS),
    layer(
        "group_norm",
        "GroupNorm",
        &[positive("num_groups"), positive("num_channels")],
        GROUP_NORM_OPTIONS,
    ),
    layer(
        "local_response_norm",
        "LocalResponseNorm",
        &[positive("size")],
        &[any("alpha"), any("beta"), any("k")],
    ),
    layer(
        "layer_norm",
        "LayerNorm",
        &[sizes("normalized_shape")],
        &[positive("eps"), any("elementwise_affine"), any("bias")],
    ),
    layer(
        "rms_norm",
        "RmsNorm",
        &[sizes("normalized_shape")],
        &[optional("eps"), any("elementwise_affine")],
    ),
    layer(
        "embedding",
        "Embedding",
        &[positive("num_embeddings"), positive("embedding_dim")],
        &[
            optional("padding_idx"),
            optional("max_norm"),
            positive("norm_type"),
            any("scale_grad_by_freq"),
            positive("std"),
        ],
    ),
    layer(
        "embedding_bag",
        "EmbeddingBag",
        &[positive("num_embeddings"), positive("embedding_dim")],
        &[
            choice(
                "mode",
                &[
                    ("sum", "__amp::nn::BagMode::Sum"),
                    ("mean", "__amp::nn::BagMode::Mean"),
                    ("max", "__amp::nn::BagMode::Max"),
                ],
            ),
            optional("padding_idx"),
            optional("max_norm"),
            positive("norm_type"),
            any("scale_grad_by_freq"),
            any("include_last_offset"),
            positive("std"),
        ],
    ),
    layer(
        "multihead_attention",
        "MultiheadAttention",
        &[positive("embed_dim"), positive("num_heads")],
        ATTENTION_OPTIONS,
    ),
    layer(
        "rotary_embedding",
        "RotaryEmbedding",
        &[
            positive("dim"),
            choice(
                "pairing",
                &[
                    ("interleaved", "__amp::nn::RotaryPairing::Interleaved"),
                    ("half_rotated", "__amp::nn::RotaryPairing::HalfRotated"),
                ],
            ),
        ],
        &[positive("base")],
    ),
    layer(
        "transformer_encoder_layer",
        "TransformerEncoderLayer",
        TRANSFORMER_LAYER,
        TRANSFORMER_LAYER_OPTIONS,
    ),
    layer(
        "transformer_decoder_layer",
        "TransformerDecoderLayer",
        TRANSFORMER_LAYER,
        TRANSFORMER_LAYER_OPTIONS,
    ),
    layer("transformer_encoder", "TransformerEncoder", TRANSFORMER, TRANSFORMER_OPTIONS),
    layer("transformer_decoder", "TransformerDecoder", TRANSFORMER, TRANSFORMER_OPTIONS),
    layer("transformer", "Transformer", &[], WHOLE_TRANSFORMER_OPTIONS),
    layer("lstm", "Lstm", RECURRENT, LSTM_OPTIONS),
    layer("gru", "Gru", RECURRENT, GRU_OPTIONS),
    layer("rnn", "Rnn", RECURRENT, RNN_OPTIONS),
    layer("lstm_cell", "LstmCell", RECURRENT, &[any("bias")]),
    layer("gru_cell", "GruCell", RECURRENT, &[any("bias")]),
    layer("rnn_cell", "RnnCell", RECURRENT, &[any("bias"), NONLINEARITY]),
    layer(
        "upsample",
        "Upsample",
        &[],
        &[
            sizes("size"),
            optional("scale_factor"),
            choice(
                "mode",
                &[
                    ("nearest", "__amp::nn::Interpolation::Nearest"),
                    ("nearest_exact", "__amp::nn::Interpolation::NearestExact"),
                    ("area", "__amp::nn::Interpolation::Area"),
                    ("linear", "__amp::nn::Interpolation::Linear"),
                    ("bilinear", "__amp::nn::Interpolation::Linear"),
                    ("trilinear", "__amp::nn::Interpolation::Linear"),
                    ("bicubic", "__amp::nn::Interpolation::Bicubic"),
                ],
            ),
            any("align_corners"),
            any("recompute_scale_factor"),
        ],
    ),
    plain("channel_shuffle", "ChannelShuffle", &[positive("groups")]),
    plain("pixel_shuffle", "PixelShuffle", &[positive("upscale_factor")]),
    plain("pixel_unshuffle", "PixelUnshuffle", &[positive("downscale_factor")]),
    plain("zero_pad1d", "ZeroPad1d", PAD),
    plain("zero_pad2d", "ZeroPad2d", PAD),
    plain("zero_pad3d", "ZeroPad3d", PAD),
    plain("reflection_pad1d", "ReflectionPad1d", PAD),
    plain("reflection_pad2d", "ReflectionPad2d", PAD),
    plain("reflection_pad3d", "ReflectionPad3d", PAD),
    plain("replication_pad1d", "ReplicationPad1d", PAD),
    plain("replication_pad2d", "ReplicationPad2d", PAD),
    plain("replication_pad3d", "ReplicationPad3d", PAD),
    plain("circular_pad1d", "CircularPad1d", PAD),
    plain("circular_pad2d", "CircularPad2d", PAD),
    plain("circular_pad3d", "CircularPad3d", PAD),
    plain("constant_pad1d", "ConstantPad1d", CONSTANT_PAD),
    plain("constant_pad2d", "ConstantPad2d", CONSTANT_PAD),
    plain("constant_pad3d", "ConstantPad3d", CONSTANT_PAD),
    plain("dropout", "Dropout", &[fraction("p")]),
    plain("dropout1d", "ChannelDropout", &[fraction("p")]),
    plain("dropout2d", "ChannelDropout", &[fraction("p")]),
    plain("dropout3d", "ChannelDropout", &[fraction("p")]),
    plain("alpha_dropout", "AlphaDropout", &[fraction("p")]),
    plain("feature_alpha_dropout", "FeatureAlphaDropout", &[fraction("p")]),
    plain("stochastic_depth", "StochasticDepth", &[fraction("p")]),
    layer("cosine_similarity", "CosineSimilarity", &[], &[any("dim"), not_negative("eps")]),
    layer(
        "pairwise_distance",
        "PairwiseDistance",
        &[],
        &[any("p"), not_negative("eps"), any("keepdim")],
    ),
    layer("unfold", "Unfold", WINDOW, WINDOWS_OPTIONS),
    layer("fold", "Fold", &[sizes("output_size"), sizes("kernel_size")], WINDOWS_OPTIONS),
    layer("flatten", "Flatten", &[], &[any("start_dim"), any("end_dim")]),
    plain("unflatten", "Unflatten", &[any("dim"), any("unflattened_size")]),
    layer("leaky_relu", "LeakyRelu", &[], &[any("negative_slope")]),
    layer("rrelu", "Rrelu", &[], &[any("lower"), any("upper")]),
    layer("prelu", "Prelu", &[], &[positive("num_parameters"), any("init")]),
    layer("elu", "Elu", &[], &[any("alpha")]),
    layer("celu", "Celu", &[], &[positive("alpha")]),
    layer("softplus", "Softplus", &[], &[positive("beta"), any("threshold")]),
    layer("hardtanh", "Hardtanh", &[], &[any("min_val"), any("max_val")]),
    layer("glu", "Glu", &[], &[any("dim")]),
    layer("hardshrink", "Hardshrink", &[], &[not_negative("lambd")]),
    layer("softshrink", "Softshrink", &[], &[not_negative("lambd")]),
    plain("threshold", "Threshold", &[any("threshold"), any("value")]),
    plain("softmax", "Softmax", &[any("dim")]),
    plain("softmin", "Softmin", &[any("dim")]),
    plain("log_softmax", "LogSoftmax", &[any("dim")]),
    unit("relu", "Relu"),
    unit("relu6", "Relu6"),
    unit("gelu", "Gelu"),
    unit("gelu_tanh", "GeluTanh"),
    unit("silu", "Silu"),
    unit("mish", "Mish"),
    unit("selu", "Selu"),
    unit("hardswish", "Hardswish"),
    unit("hardsigmoid", "Hardsigmoid"),
    unit("log_sigmoid", "LogSigmoid"),
    unit("softsign", "Softsign"),
    unit("tanh", "Tanh"),
    unit("tanhshrink", "Tanhshrink"),
    unit("sigmoid", "Sigmoid"),
    unit("identity", "Identity"),
];
