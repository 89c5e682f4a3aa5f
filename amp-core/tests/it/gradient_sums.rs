//! Tests that the gradients of 16-bit parameters, which are sums over a batch, are added up in f32
//! and rounded once.

use amp_core::{
    nn::{
        self, BagMode, BatchNorm, BatchNormConfig, Conv1d, Conv1dConfig, Conv2d, Conv2dConfig,
        ConvTranspose2d, ConvTranspose2dConfig, EmbeddingBag, EmbeddingBagConfig, EmbeddingConfig,
        Forward, GroupNorm, GroupNormConfig, InstanceNorm, InstanceNormConfig, LayerNorm,
        LayerNormConfig, LinearConfig, Prelu, PreluConfig, RmsNorm, RmsNormConfig, Visit, Visitor,
        parameters,
    },
    precision::{Policy, Precision},
    prelude::*,
    tch,
};
use rstest::rstest;

use crate::support::{
    device,
    layers::{draw, fill, rounding},
    seeded,
};

/// A sum or a mean over bags of 64 indices each.
struct Bags(EmbeddingBag);

impl Visit for Bags {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.0.visit(visitor);
    }
}

impl Module for Bags {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.0.forward_with((&input.f_view([-1, 64])?, None, None), cx)
    }
}

fn bags(mode: BagMode) -> Result<Bags> {
    Ok(Bags(EmbeddingBag::new(EmbeddingBagConfig { mode, ..EmbeddingBagConfig::new(8, 16) })?))
}

/// A table of vectors that the input indexes, without a layer of this crate.
struct Indexed(Tensor);

impl Visit for Indexed {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("table", &self.0, nn::Role::Parameter);
    }
}

impl Module for Indexed {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(self.0.f_index(&[Some(input)])?)
    }
}

fn indexed() -> Result<Indexed> {
    let table = Tensor::f_randn([8, 16], (Kind::Float, Device::Cpu))?;
    Ok(Indexed(table.f_set_requires_grad(true)?))
}

/// Returns the gradients of the parameters, in f64.
fn gradients(
    layer: &dyn Module,
    policy: Policy,
    input: &Tensor,
    incoming: &Tensor,
) -> Result<Vec<Tensor>> {
    let kind = policy.precision.storage();
    let is_index = input.kind() == Kind::Int64;
    let input = if is_index { input.shallow_clone() } else { input.to_kind(kind) };
    let output = layer.forward(&input, &Context::new(policy, true))?;
    assert_eq!(output.kind(), kind);
    (output.to_kind(Kind::Double) * incoming).sum(Kind::Double).f_backward()?;
    Ok(parameters(layer).iter().map(|own| own.tensor.grad().to_kind(Kind::Double)).collect())
}

/// Returns the gradients of the same layer in f64.
fn in_f64(layer: &dyn Module, input: &Tensor, incoming: &Tensor) -> Result<Vec<Tensor>> {
    let _ = nn::clear_gradients(layer);
    let policy = Policy::new(Precision::F64True, device());
    nn::place(layer, policy, &Default::default())?;
    gradients(layer, policy, input, incoming)
}

/// Compares the gradients of all parameters with those of the same layer in f64. Each output
/// element's gradient has the mean 0.3, so that the sums grow with the number of addends, which is
/// 4096 or more. An error of up to eight roundings is allowed, because some kernels also round
/// partial results. Sums in 16 bits have the error of 12 to 113 roundings.
#[rstest]
#[case::layer_norm(LayerNorm::new(LayerNormConfig::new(16)), &[8192, 16], &[8192, 16])]
#[case::layer_norm_of_images(
    LayerNorm::new(LayerNormConfig::new([4, 4])), &[8192, 4, 4], &[8192, 4, 4]
)]
#[case::layer_norm_without_bias(
    LayerNorm::new(LayerNormConfig { bias: false, ..LayerNormConfig::new(16) }),
    &[8192, 16], &[8192, 16]
)]
#[case::rms_norm(RmsNorm::new(RmsNormConfig::new(16)), &[8192, 16], &[8192, 16])]
#[case::group_norm(GroupNorm::new(GroupNormConfig::new(2, 8)), &[512, 8, 4, 4], &[512, 8, 4, 4])]
#[case::batch_norm(BatchNorm::new(BatchNormConfig::new(16)), &[8192, 16], &[8192, 16])]
#[case::batch_norm_of_images(
    BatchNorm::new(BatchNormConfig::new(8)), &[512, 8, 4, 4], &[512, 8, 4, 4]
)]
#[case::instance_norm(
    InstanceNorm::new(InstanceNormConfig { affine: true, ..InstanceNormConfig::new(8) }),
    &[512, 8, 4, 4], &[512, 8, 4, 4]
)]
#[case::linear(Linear::new(LinearConfig::new(16, 8)), &[8192, 16], &[8192, 8])]
#[case::linear_of_sequences(Linear::new(LinearConfig::new(16, 8)), &[128, 64, 16], &[128, 64, 8])]
#[case::conv1d(Conv1d::new(Conv1dConfig::new(4, 4, 3)), &[256, 4, 34], &[256, 4, 32])]
#[case::conv2d(Conv2d::new(Conv2dConfig::new(4, 4, 3)), &[128, 4, 10, 10], &[128, 4, 8, 8])]
#[case::conv_transpose2d(
    ConvTranspose2d::new(ConvTranspose2dConfig::new(4, 4, 3)), &[128, 4, 6, 6], &[128, 4, 8, 8]
)]
#[case::prelu(Prelu::new(PreluConfig::new()), &[8192, 16], &[8192, 16])]
#[case::embedding(Embedding::new(EmbeddingConfig::new(8, 16)), &[], &[32768, 16])]
#[case::embedding_bag_sum(bags(BagMode::Sum), &[], &[512, 16])]
#[case::embedding_bag_mean(bags(BagMode::Mean), &[], &[512, 16])]
#[case::indexed(indexed(), &[], &[32768, 16])]
fn gradients_are_added_up_in_f32<M: Module>(
    #[case] layer: Result<M>,
    #[case] shape: &[i64],
    #[case] output: &[i64],
    #[values(Precision::F16True, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(11);
    let layer = layer?;
    let kind = precision.storage();
    let narrow = Policy::new(precision, device());
    fill(&layer, narrow, 0.3, 0.5)?;
    let input = match shape.is_empty() {
        true => Tensor::f_randint(8, [32768], (Kind::Int64, Device::Cpu))?,
        false => draw(shape, kind, 1.0, 0.1),
    };
    let input = input.to_device(device());
    let incoming = draw(output, kind, 0.1, 0.03).to_device(device()).to_kind(Kind::Double);
    let found = gradients(&layer, narrow, &input, &incoming)?;
    let exact = in_f64(&layer, &input, &incoming)?;
    assert!(!exact.is_empty() && found.len() == exact.len());
    for (at, (found, exact)) in found.iter().zip(&exact).enumerate() {
        let error = ((found - exact).norm() / exact.norm()).double_value(&[]);
        let units = error / rounding(kind);
        assert!(units <= 8.0, "parameter {at}: the error of {units:.1} roundings");
    }
    Ok(())
}

/// The gradient of a layer norm's weight is computed from mean and 1/σ in f32, also with 16-bit
/// parameters. If the mean of a row, which is 30 here, were rounded to bf16, the normalized values
/// would be off by up to 0.06.
#[rstest]
fn a_layer_norm_reads_statistics_in_f32(
    #[values(Precision::F16True, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(12);
    let narrow = Policy::new(precision, device());
    let layer = LayerNorm::new(LayerNormConfig::new(256))?;
    fill(&layer, narrow, 0.3, 1.0)?;
    let input = draw(&[64, 256], precision.storage(), 1.0, 30.0).to_device(device());
    let incoming = draw(&[64, 256], precision.storage(), 1.0, 0.0).to_device(device());
    let incoming = incoming.to_kind(Kind::Double);
    let found = gradients(&layer, narrow, &input, &incoming)?;
    let exact = in_f64(&layer, &input, &incoming)?;
    let error = ((&found[0] - &exact[0]).norm() / exact[0].norm()).double_value(&[]);
    assert!(error <= 2.0 * rounding(precision.storage()), "{error}");
    Ok(())
}

/// index_put with `accumulate` adds to a 16-bit tensor in place, also to one that is not
/// contiguous, and without `accumulate` it writes the values.
#[test]
fn index_put_adds_or_writes_in_place() -> Result<()> {
    let options = (Kind::BFloat16, device());
    let whole = Tensor::f_zeros([4, 3], options)?;
    let of_columns = whole.f_transpose(0, 1)?;
    let index = Tensor::f_zeros([1000], (Kind::Int64, device()))?;
    let ones = Tensor::f_ones([1000, 4], options)?;
    let _ = tch::no_grad(|| of_columns.shallow_clone().f_index_put_(&[Some(&index)], &ones, true))?;
    assert_eq!(
        Vec::<Vec<f64>>::try_from(whole.to_kind(Kind::Double))?,
        vec![vec![1000.0, 0.0, 0.0]; 4]
    );
    let first = Tensor::f_zeros([1], (Kind::Int64, device()))?;
    let twos = Tensor::f_full([1, 4], 2.0, options)?;
    let _ =
        tch::no_grad(|| of_columns.shallow_clone().f_index_put_(&[Some(&first)], &twos, false))?;
    assert_eq!(
        Vec::<Vec<f64>>::try_from(whole.to_kind(Kind::Double))?,
        vec![vec![2.0, 0.0, 0.0]; 4]
    );
    Ok(())
}
