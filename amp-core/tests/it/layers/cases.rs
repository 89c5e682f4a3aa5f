//! Builds the layers of the recorded cases.

use amp_core::{
    Module, Result,
    nn::{
        AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d, AdaptiveMaxPool1d,
        AdaptiveMaxPool2d, AdaptiveMaxPool3d, AvgPool1d, AvgPool1dConfig, AvgPool2d,
        AvgPool2dConfig, AvgPool3d, AvgPool3dConfig, BatchNorm, BatchNormConfig, Celu, CeluConfig,
        ChannelShuffle, CircularPad1d, CircularPad2d, ConstantPad1d, ConstantPad2d, Conv1d,
        Conv1dConfig, Conv2d, Conv2dConfig, Conv3d, Conv3dConfig, ConvTranspose1d,
        ConvTranspose1dConfig, ConvTranspose2d, ConvTranspose2dConfig, ConvTranspose3d,
        ConvTranspose3dConfig, Elu, EluConfig, FeedForward, Flatten, FlattenConfig, Fold,
        FoldConfig, GeluTanh, Glu, GluConfig, GroupNorm, GroupNormConfig, Hardshrink,
        HardshrinkConfig, Hardsigmoid, Hardswish, Hardtanh, HardtanhConfig, InstanceNorm,
        InstanceNormConfig, Interpolation, LayerNorm, LayerNormConfig, LeakyRelu, LeakyReluConfig,
        LocalResponseNorm, LocalResponseNormConfig, LogSigmoid, LogSoftmax, LpPool1d,
        LpPool1dConfig, LpPool2d, LpPool2dConfig, LpPool3d, LpPool3dConfig, MaxPool1d,
        MaxPool1dConfig, MaxPool2d, MaxPool2dConfig, MaxPool3d, MaxPool3dConfig, Mish, Padding,
        PaddingMode, PixelShuffle, PixelUnshuffle, Prelu, PreluConfig, ReflectionPad1d,
        ReflectionPad2d, ReflectionPad3d, Relu6, ReplicationPad2d, ReplicationPad3d, RmsNorm,
        RmsNormConfig, Rrelu, RreluConfig, Selu, Softmax, Softmin, Softplus, SoftplusConfig,
        Softshrink, SoftshrinkConfig, Softsign, Tanhshrink, Threshold, TransformerEncoderLayer,
        TransformerEncoderLayerConfig, Unflatten, Unfold, UnfoldConfig, Upsample, UpsampleConfig,
        ZeroPad1d, ZeroPad2d, ZeroPad3d,
    },
};

/// Builds the layer of the recorded case with this name.
pub(super) fn build(name: &str) -> Result<Box<dyn Module>> {
    fn boxed<M: Module + 'static>(layer: Result<M>) -> Result<Box<dyn Module>> {
        Ok(Box::new(layer?))
    }
    let up = |scale_factor: f64, mode, align_corners| {
        let scale_factor = scale_factor.into();
        boxed(Upsample::new(UpsampleConfig {
            scale_factor,
            mode,
            align_corners,
            ..UpsampleConfig::new()
        }))
    };
    let to =
        |size, mode| boxed(Upsample::new(UpsampleConfig { size, mode, ..UpsampleConfig::new() }));
    let encoder = |activation, norm_first| {
        boxed(TransformerEncoderLayer::new(TransformerEncoderLayerConfig {
            dim_feedforward: 8,
            dropout: 0.0,
            activation,
            norm_first,
            ..TransformerEncoderLayerConfig::new(4, 2)
        }))
    };
    match name {
        "conv1d" => boxed(Conv1d::new(Conv1dConfig::new(4, 6, 3))),
        "conv1d dilated" => boxed(Conv1d::new(Conv1dConfig {
            stride: 2.into(),
            padding: 2.into(),
            dilation: 2.into(),
            groups: 2,
            ..Conv1dConfig::new(4, 6, 3)
        })),
        "conv1d same" => boxed(Conv1d::new(Conv1dConfig {
            padding: Padding::Same,
            ..Conv1dConfig::new(4, 3, 4)
        })),
        "conv1d circular" => boxed(Conv1d::new(Conv1dConfig {
            padding: 2.into(),
            padding_mode: PaddingMode::Circular,
            ..Conv1dConfig::new(4, 3, 3)
        })),
        "conv2d" => boxed(Conv2d::new(Conv2dConfig {
            stride: 2.into(),
            padding: 1.into(),
            ..Conv2dConfig::new(4, 6, 3)
        })),
        "conv2d rectangular" => boxed(Conv2d::new(Conv2dConfig {
            stride: [1, 2].into(),
            padding: [2, 1].into(),
            dilation: [1, 2].into(),
            ..Conv2dConfig::new(4, 2, [3, 2])
        })),
        "conv2d depthwise" => boxed(Conv2d::new(Conv2dConfig {
            groups: 4,
            bias: false,
            ..Conv2dConfig::new(4, 8, 3)
        })),
        "conv2d same" => boxed(Conv2d::new(Conv2dConfig {
            padding: Padding::Same,
            dilation: [1, 2].into(),
            ..Conv2dConfig::new(4, 3, [2, 3])
        })),
        "conv2d reflect" => boxed(Conv2d::new(Conv2dConfig {
            padding: [1, 2].into(),
            padding_mode: PaddingMode::Reflect,
            ..Conv2dConfig::new(4, 3, 3)
        })),
        "conv2d replicate" => boxed(Conv2d::new(Conv2dConfig {
            stride: 2.into(),
            padding: 1.into(),
            padding_mode: PaddingMode::Replicate,
            ..Conv2dConfig::new(4, 3, 3)
        })),
        "conv3d" => boxed(Conv3d::new(Conv3dConfig {
            stride: [1, 2, 1].into(),
            padding: 1.into(),
            ..Conv3dConfig::new(4, 3, [2, 3, 2])
        })),
        "conv_transpose1d" => boxed(ConvTranspose1d::new(ConvTranspose1dConfig {
            stride: 2.into(),
            padding: 1.into(),
            output_padding: 1.into(),
            ..ConvTranspose1dConfig::new(4, 6, 3)
        })),
        "conv_transpose2d" => boxed(ConvTranspose2d::new(ConvTranspose2dConfig {
            stride: 2.into(),
            groups: 2,
            ..ConvTranspose2dConfig::new(4, 6, 3)
        })),
        "conv_transpose2d rectangular" => boxed(ConvTranspose2d::new(ConvTranspose2dConfig {
            stride: [3, 2].into(),
            padding: [0, 1].into(),
            output_padding: [1, 0].into(),
            dilation: [1, 2].into(),
            bias: false,
            ..ConvTranspose2dConfig::new(4, 2, [2, 3])
        })),
        "conv_transpose3d" => boxed(ConvTranspose3d::new(ConvTranspose3dConfig {
            stride: 2.into(),
            ..ConvTranspose3dConfig::new(4, 2, 2)
        })),
        "zero_pad1d" => boxed(ZeroPad1d::new(2)),
        "zero_pad3d" => boxed(ZeroPad3d::new(1)),
        "reflection_pad1d" => boxed(ReflectionPad1d::new(3)),
        "reflection_pad2d" => boxed(ReflectionPad2d::new([1, 2])),
        "reflection_pad3d" => boxed(ReflectionPad3d::new(1)),
        "replication_pad2d" => boxed(ReplicationPad2d::new(2)),
        "replication_pad3d" => boxed(ReplicationPad3d::new(1)),
        "zero_pad2d sides" => boxed(ZeroPad2d::new([[2, 3], [1, 0]])),
        "reflection_pad1d sides" => boxed(ReflectionPad1d::new([[0, 3]])),
        "constant_pad1d" => boxed(ConstantPad1d::new(2, -1.5)),
        "constant_pad2d" => boxed(ConstantPad2d::new([[2, 3], [0, 1]], 0.5)),
        "circular_pad1d" => boxed(CircularPad1d::new(2)),
        "circular_pad2d" => boxed(CircularPad2d::new([2, 1])),
        "max_pool1d" => boxed(MaxPool1d::new(MaxPool1dConfig {
            stride: 2.into(),
            padding: 1.into(),
            ..MaxPool1dConfig::new(3)
        })),
        "max_pool2d" => boxed(MaxPool2d::new(MaxPool2dConfig::new(2))),
        "max_pool2d rectangular" => boxed(MaxPool2d::new(MaxPool2dConfig {
            stride: [2, 1].into(),
            padding: [1, 0].into(),
            dilation: [1, 2].into(),
            ceil_mode: true,
            ..MaxPool2dConfig::new([3, 2])
        })),
        "max_pool3d" => boxed(MaxPool3d::new(MaxPool3dConfig {
            stride: [1, 2, 1].into(),
            ..MaxPool3dConfig::new(2)
        })),
        "avg_pool1d" => boxed(AvgPool1d::new(AvgPool1dConfig {
            stride: 2.into(),
            padding: 1.into(),
            count_include_pad: false,
            ..AvgPool1dConfig::new(3)
        })),
        "avg_pool2d" => boxed(AvgPool2d::new(AvgPool2dConfig {
            padding: [1, 0].into(),
            ceil_mode: true,
            ..AvgPool2dConfig::new([3, 2])
        })),
        "avg_pool2d divisor" => boxed(AvgPool2d::new(AvgPool2dConfig {
            stride: 2.into(),
            padding: 1.into(),
            divisor_override: Some(5),
            ..AvgPool2dConfig::new(3)
        })),
        "avg_pool3d divisor" => boxed(AvgPool3d::new(AvgPool3dConfig {
            divisor_override: Some(3),
            ..AvgPool3dConfig::new(2)
        })),
        "avg_pool3d" => {
            boxed(AvgPool3d::new(AvgPool3dConfig { stride: 1.into(), ..AvgPool3dConfig::new(2) }))
        }
        "adaptive_avg_pool1d" => boxed(AdaptiveAvgPool1d::new(4)),
        "adaptive_avg_pool2d" => boxed(AdaptiveAvgPool2d::new([2, 3])),
        "adaptive_avg_pool3d" => boxed(AdaptiveAvgPool3d::new(1)),
        "adaptive_max_pool1d" => boxed(AdaptiveMaxPool1d::new(2)),
        "adaptive_max_pool2d" => boxed(AdaptiveMaxPool2d::new([3, 2])),
        "adaptive_max_pool3d" => boxed(AdaptiveMaxPool3d::new(2)),
        "group_norm" => boxed(GroupNorm::new(GroupNormConfig::new(2, 4))),
        "group_norm plain" => boxed(GroupNorm::new(GroupNormConfig {
            eps: 1e-3,
            affine: false,
            ..GroupNormConfig::new(4, 4)
        })),
        "instance_norm" => boxed(InstanceNorm::new(InstanceNormConfig::new(4))),
        "instance_norm affine" => boxed(InstanceNorm::new(InstanceNormConfig {
            eps: 1e-4,
            affine: true,
            ..InstanceNormConfig::new(4)
        })),
        "instance_norm running" => boxed(InstanceNorm::new(InstanceNormConfig {
            momentum: 0.3,
            affine: true,
            track_running_stats: true,
            ..InstanceNormConfig::new(4)
        })),
        "rms_norm" => boxed(RmsNorm::new(RmsNormConfig::new(9))),
        "rms_norm eps" => {
            boxed(RmsNorm::new(RmsNormConfig { eps: Some(1e-2), ..RmsNormConfig::new(7) }))
        }
        "rms_norm plain" => boxed(RmsNorm::new(RmsNormConfig {
            elementwise_affine: false,
            ..RmsNormConfig::new(9)
        })),
        "layer_norm" => boxed(LayerNorm::new(LayerNormConfig::new(9))),
        "layer_norm without bias" => boxed(LayerNorm::new(LayerNormConfig {
            eps: 1e-3,
            bias: false,
            ..LayerNormConfig::new(7)
        })),
        "layer_norm of images" => boxed(LayerNorm::new(LayerNormConfig::new([4, 6, 7]))),
        "rms_norm of rows" => boxed(RmsNorm::new(RmsNormConfig::new([6, 7]))),
        "layer_norm plain" => boxed(LayerNorm::new(LayerNormConfig {
            elementwise_affine: false,
            ..LayerNormConfig::new(9)
        })),
        "batch_norm plain" => {
            boxed(BatchNorm::new(BatchNormConfig { affine: false, ..BatchNormConfig::new(4) }))
        }
        "batch_norm of batches" => boxed(BatchNorm::new(BatchNormConfig {
            track_running_stats: false,
            ..BatchNormConfig::new(4)
        })),
        "upsample size" => to([7, 4].into(), Interpolation::Linear),
        "upsample size nearest" => to(7.into(), Interpolation::Nearest),
        "upsample size bicubic" => to([3, 9].into(), Interpolation::Bicubic),
        "upsample area" => to([2, 3].into(), Interpolation::Area),
        "upsample exact 1d" => to([13].into(), Interpolation::NearestExact),
        "upsample exact 3d" => to([3, 2, 3].into(), Interpolation::NearestExact),
        "upsample exact" => up(1.7, Interpolation::NearestExact, false),
        "upsample factors" => boxed(Upsample::new(UpsampleConfig {
            scale_factor: [1.7, 2.3].into(),
            mode: Interpolation::Linear,
            ..UpsampleConfig::new()
        })),
        "upsample recomputed" => boxed(Upsample::new(UpsampleConfig {
            scale_factor: 1.7.into(),
            mode: Interpolation::Linear,
            recompute_scale_factor: true,
            ..UpsampleConfig::new()
        })),
        "flatten dims" => boxed(Flatten::new(FlattenConfig { start_dim: 0, end_dim: 2 })),
        "unflatten" => boxed(Unflatten::new(-1, [3, -1])),
        "channel_shuffle" => boxed(ChannelShuffle::new(2)),
        "unfold" => boxed(Unfold::new(UnfoldConfig {
            stride: [2, 1].into(),
            padding: [1, 0].into(),
            dilation: [1, 2].into(),
            ..UnfoldConfig::new([3, 2])
        })),
        "fold" => boxed(Fold::new(FoldConfig {
            stride: 2.into(),
            padding: 1.into(),
            ..FoldConfig::new([5, 6], [3, 2])
        })),
        "local_response_norm" => boxed(LocalResponseNorm::new(LocalResponseNormConfig {
            alpha: 0.5,
            beta: 0.6,
            k: 2.0,
            ..LocalResponseNormConfig::new(3)
        })),
        "local_response_norm even" => {
            boxed(LocalResponseNorm::new(LocalResponseNormConfig::new(2)))
        }
        "upsample nearest" | "upsample nearest 3d" => up(2.0, Interpolation::Nearest, false),
        "upsample nearest 1d" => up(1.5, Interpolation::Nearest, false),
        "upsample linear" | "upsample trilinear" => up(2.0, Interpolation::Linear, false),
        "upsample bilinear" => up(1.7, Interpolation::Linear, false),
        "upsample corners" => up(2.0, Interpolation::Linear, true),
        "upsample bicubic" => up(2.0, Interpolation::Bicubic, false),
        "pixel_shuffle" => boxed(PixelShuffle::new(2)),
        "pixel_unshuffle" => boxed(PixelUnshuffle::new(2)),
        "encoder" => encoder(FeedForward::Relu, false),
        "encoder gelu" => encoder(FeedForward::Gelu, false),
        "encoder norm_first" => encoder(FeedForward::GeluTanh, true),
        "encoder without bias" => {
            boxed(TransformerEncoderLayer::new(TransformerEncoderLayerConfig {
                dim_feedforward: 8,
                dropout: 0.0,
                bias: false,
                ..TransformerEncoderLayerConfig::new(4, 2)
            }))
        }
        "leaky_relu" => boxed(LeakyRelu::new(LeakyReluConfig { negative_slope: 0.2 })),
        "prelu" => boxed(Prelu::new(PreluConfig::new())),
        "prelu channels" => {
            boxed(Prelu::new(PreluConfig { num_parameters: 4, ..PreluConfig::new() }))
        }
        "elu" => boxed(Elu::new(EluConfig { alpha: 0.7 })),
        "celu" => boxed(Celu::new(CeluConfig { alpha: 0.7 })),
        "selu" => boxed(Ok(Selu)),
        "softplus" => boxed(Softplus::new(SoftplusConfig { beta: 2.0, threshold: 1.5 })),
        "hardtanh" => boxed(Hardtanh::new(HardtanhConfig { min_val: -0.5, max_val: 0.75 })),
        "glu" => boxed(Glu::new(GluConfig { dim: 1 })),
        "softmax" => boxed(Softmax::new(1)),
        "log_softmax" => boxed(LogSoftmax::new(-1)),
        "relu6" => boxed(Ok(Relu6)),
        "gelu_tanh" => boxed(Ok(GeluTanh)),
        "mish" => boxed(Ok(Mish)),
        "hardswish" => boxed(Ok(Hardswish)),
        "hardsigmoid" => boxed(Ok(Hardsigmoid)),
        "log_sigmoid" => boxed(Ok(LogSigmoid)),
        "softsign" => boxed(Ok(Softsign)),
        "softmin" => boxed(Softmin::new(1)),
        "tanhshrink" => boxed(Ok(Tanhshrink)),
        "softshrink" => boxed(Softshrink::new(SoftshrinkConfig { lambd: 0.3 })),
        "hardshrink" => boxed(Hardshrink::new(HardshrinkConfig { lambd: 0.4 })),
        "threshold" => boxed(Threshold::new(0.1, -2.0)),
        "lp_pool1d" => {
            boxed(LpPool1d::new(LpPool1dConfig { stride: 2.into(), ..LpPool1dConfig::new(2, 3) }))
        }
        "lp_pool2d" => boxed(LpPool2d::new(LpPool2dConfig {
            ceil_mode: true,
            ..LpPool2dConfig::new(4, [3, 2])
        })),
        "lp_pool2d sums" => boxed(LpPool2d::new(LpPool2dConfig::new(1.0, 2))),
        "lp_pool3d" => boxed(LpPool3d::new(LpPool3dConfig {
            stride: [1, 2, 1].into(),
            ..LpPool3dConfig::new(2, 2)
        })),
        "rrelu" => boxed(Rrelu::new(RreluConfig { lower: 0.3, upper: 0.3 })),
        other => panic!("the oracle has a case `{other}` that no layer is built for"),
    }
}
