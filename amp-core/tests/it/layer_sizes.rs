//! Tests that layers refuse sizes below 1 with an error that names the layer and the size.

use amp_core::{
    nn::{
        Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig, EmbeddingBag,
        EmbeddingBagConfig, EmbeddingConfig, GroupNormConfig, InstanceNormConfig, Sizes,
    },
    prelude::*,
};
use rstest::rstest;

fn conv(change: impl FnOnce(&mut Conv2dConfig)) -> Result<()> {
    let mut config = Conv2dConfig::new(4, 4, 3);
    change(&mut config);
    Conv2d::new(config).map(drop)
}

fn conv_transpose(change: impl FnOnce(&mut ConvTranspose2dConfig)) -> Result<()> {
    let mut config = ConvTranspose2dConfig::new(4, 4, 3);
    change(&mut config);
    ConvTranspose2d::new(config).map(drop)
}

#[rstest]
#[case::channels(conv(|config| config.out_channels = 0), "conv: channels is 0")]
#[case::negative(conv(|config| config.in_channels = -4), "conv: channels is -4")]
#[case::kernel(conv(|config| config.kernel_size = Sizes([3, 0])), "conv: kernel_size is 0")]
#[case::stride(conv(|config| config.stride = Sizes([0, 1])), "conv: stride is 0")]
#[case::dilation(conv(|config| config.dilation = Sizes([1, -1])), "conv: dilation is -1")]
#[case::transposed(conv_transpose(|config| config.out_channels = 0), "conv_transpose: channels is 0")]
#[case::transposed_kernel(
    conv_transpose(|config| config.kernel_size = Sizes([0, 3])),
    "conv_transpose: kernel_size is 0"
)]
#[case::embedding(
    Embedding::new(EmbeddingConfig::new(-1, 4)).map(drop),
    "embedding: num_embeddings is -1"
)]
#[case::embedding_dim(
    Embedding::new(EmbeddingConfig::new(10, 0)).map(drop),
    "embedding: embedding_dim is 0"
)]
#[case::bag(
    EmbeddingBag::new(EmbeddingBagConfig::new(10, -2)).map(drop),
    "embedding_bag: embedding_dim is -2"
)]
#[case::group_norm(GroupNorm::new(GroupNormConfig::new(1, 0)).map(drop), "group_norm: num_channels is 0")]
#[case::instance_norm(
    InstanceNorm::new(InstanceNormConfig::new(-3)).map(drop),
    "instance_norm: num_features is -3"
)]
fn a_size_below_1_is_refused(#[case] built: Result<()>, #[case] expected: &str) {
    let error = built.expect_err("a refused size");
    assert!(matches!(error, Error::Config(_)), "{error:?}");
    assert_eq!(error.to_string(), format!("{expected}, but must be at least 1"));
}
