//! Tests of a residual around a norm, and of GELU after a linear layer. Fused kernels compute these
//! only on CUDA (`AMP_DEVICE=cuda`). The expected results are computed by libtorch in f64 on the
//! CPU.

use amp_core::{
    nn::{Activation, Context, LinearConfig, split_heads},
    precision::{Policy, Precision},
    prelude::*,
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device,
    layers::{draw, fill, pass, rounding},
    needs_cuda, seeded,
};

const ACTIVATIONS: [Activation; 3] = [Activation::Relu, Activation::Gelu, Activation::GeluTanh];

/// A block with two residual connections, one after the other. In the backward pass, the kernel of
/// the second one also computes the gradient that the first one needs.
#[derive(Module)]
#[forward(|x| {
    let x = self.norm1.residual(x, inner, cx)?;
    self.norm2.residual(&x, |x| outer(&self.wide.activated(x, ACTIVATIONS[self.activation], cx)?), cx)
})]
struct Block {
    #[hparam]
    width: i64,
    #[hparam]
    activation: usize,
    #[layer(layer_norm(width))]
    norm1: LayerNorm,
    #[layer(linear(width, width))]
    inner: Linear,
    #[layer(layer_norm(width))]
    norm2: LayerNorm,
    #[layer(linear(width, 2 * width))]
    wide: Linear,
    #[layer(linear(2 * width, width))]
    outer: Linear,
}

/// The results of fused and of separate layers equal those in f64. The shapes have few rows, more
/// rows than the blocks of a kernel sum at once, more columns than the kernels support, and so many
/// elements that several kernel launches sum the gradient of a bias.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn residuals_and_activations_equal_f64(
    #[values(
        Precision::F32True,
        Precision::F64True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values([3, 128], [2500, 256], [9, 1024], [131, 768], [5, 1152], [4100, 512])] shape: [i64; 2],
    #[values(0, 1, 2)] activation: usize,
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(21);
    let policy = Policy::new(precision, device());
    let block = Block::builder(shape[1], activation).build()?;
    let own = fill(&block, policy, 0.5 / (shape[1] as f64).sqrt(), 0.02)?;
    // Under autocast, the input of a residual and the gradient of its output are f32, like the
    // parameters.
    let input = draw(&shape, precision.storage(), 1.0, 0.5);
    let incoming = draw(&shape, precision.storage(), 1.0, 0.0);
    let together = pass(&block, policy, [&input, &incoming], false)?;
    let alone = pass(&block, policy, [&input, &incoming], true)?;

    let exact_policy = Policy::new(Precision::F64True, Device::Cpu);
    let exact = Block::builder(shape[1], activation).build()?;
    for (exact, own) in fill(&exact, exact_policy, 0.0, 0.0)?.iter().zip(&own) {
        amp_core::tch::no_grad(|| exact.shallow_clone().copy_(&wide(own)));
    }
    let exact = pass(&exact, exact_policy, [&wide(&input), &wide(&incoming)], false)?;
    // In 16 bits, ReLU may set other elements to zero than in f64, so that gradients differ. For
    // ReLU in 16 bits, only the output is therefore compared with f64.
    let is_cut_off =
        ACTIVATIONS[activation] == Activation::Relu && rounding(precision.compute()) > 1e-4;
    for ((name, seen), (_, exact)) in together.named().zip(exact.named()) {
        if is_cut_off && name != "output" {
            continue;
        }
        // Each of about ten operations rounds its result, and these rounding errors add up.
        let bound = 20.0 * rounding(precision.compute());
        let off = relative(seen, exact);
        assert!(off < bound, "{name}: error {off}, bound {bound}");
    }
    for ((name, together), (_, alone)) in together.named().zip(alone.named()) {
        assert_eq!(together.kind(), alone.kind(), "{name}");
    }
    Ok(())
}

/// Computes x + layer(norm(x)). If `narrow` is true, by `residual_of_products`, in which the norm
/// may write its output in the autocast dtype instead of f32.
#[derive(Module)]
#[forward(|x| match self.narrow {
    true => self.norm.residual_of_products(x, layer, cx),
    false => self.norm.residual(x, layer, cx),
})]
struct OfProducts {
    #[hparam]
    narrow: bool,
    #[layer(layer_norm(256))]
    norm: LayerNorm,
    #[layer(linear(256, 256))]
    layer: Linear,
}

/// `residual_of_products` gives the same bits as `residual`, because the linear layer in the branch
/// rounds the norm's output to the dtype of the autocast region in any case.
#[rstest]
fn a_residual_of_products_is_the_residual(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed, Precision::Bf16True)]
    precision: Precision,
    #[values(true, false)] alone: bool,
) -> Result<()> {
    let policy = Policy::new(precision, device());
    let run = |narrow: bool| -> Result<Vec<(String, Tensor)>> {
        let _generator = seeded(25);
        let layer = OfProducts::builder(narrow).build()?;
        fill(&layer, policy, 0.05, 0.02)?;
        let [input, incoming] = [0; 2].map(|_| draw(&[70, 256], precision.storage(), 1.0, 0.5));
        let seen = pass(&layer, policy, [&input, &incoming], alone)?;
        Ok(seen.named().map(|(name, tensor)| (name, tensor.copy())).collect())
    };
    for ((name, narrow), (_, own)) in run(true)?.into_iter().zip(run(false)?) {
        assert!(narrow.equal(&own), "{name}: {}", relative(&narrow, &wide(&own)));
    }
    Ok(())
}

/// On devices other than CUDA, a residual is x + branch(norm(x)), and an activation has the same
/// bits as libtorch's.
#[test]
fn on_a_cpu_separate_operations_run() -> Result<()> {
    let _generator = seeded(22);
    for (at, activation) in ACTIVATIONS.into_iter().enumerate() {
        let block = Block::builder(128, at).build()?;
        let x = draw(&[5, 128], Kind::Float, 1.0, 0.0);
        let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
        let middle = &x + block.inner.forward(&block.norm1.forward(&x, &cx)?, &cx)?;
        let wide = block.wide.forward(&block.norm2.forward(&middle, &cx)?, &cx)?;
        let active = match activation {
            Activation::Relu => wide.relu(),
            Activation::Gelu => wide.gelu("none"),
            Activation::GeluTanh => wide.gelu("tanh"),
        };
        let parts = middle + block.outer.forward(&active, &cx)?;
        assert!(block.forward(&x, &cx)?.equal(&parts), "{activation:?}");
    }
    Ok(())
}

/// A residual has second derivatives, which a gradient penalty needs.
#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_residual_has_second_derivatives() -> Result<()> {
    needs_cuda();
    let penalty = |device: Device| -> Result<Vec<Tensor>> {
        let _generator = seeded(23);
        let policy = Policy::new(Precision::F64True, device);
        let block = Block::builder(128, 1).build()?;
        let own = fill(&block, policy, 0.05, 0.02)?;
        let x = draw(&[4, 128], Kind::Double, 1.0, 0.0).to(device).set_requires_grad(true);
        let energy = block.forward(&x, &Context::new(policy, true))?.square().sum(Kind::Double);
        let slope = Tensor::f_run_backward(&[energy], &[&x], true, true)?.remove(0);
        let of: Vec<&Tensor> = own.iter().collect();
        Ok(Tensor::f_run_backward(&[slope.square().sum(Kind::Double)], &of, false, false)?)
    };
    for (seen, exact) in penalty(device())?.iter().zip(&penalty(Device::Cpu)?) {
        let off = relative(seen, &wide(exact));
        assert!(off < 1e-10, "{off}");
    }
    Ok(())
}

/// If one matrix product computes queries, keys and values, the gradients equal those in f64. One
/// kernel concatenates the gradients of the three and sums them for the bias. The cases have few
/// positions, and more positions than one block of the kernel sums.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn gradients_of_heads_equal_f64(
    #[values(Precision::F32True, Precision::F64True, Precision::F16Mixed, Precision::Bf16Mixed)]
    precision: Precision,
    #[values([2, 5, 4, 8], [3, 300, 2, 64])] size: [i64; 4],
) -> Result<()> {
    needs_cuda();
    let [batch, length, heads, width] = size;
    let all = heads * width;
    let pass = |policy: Policy| -> Result<Vec<Tensor>> {
        let _generator = seeded(24);
        let leaf = |size: &[i64]| {
            let kind = policy.precision.storage();
            draw(size, Kind::BFloat16, 0.3, 0.0).to_kind(kind).to(policy.device)
        };
        let layer = Linear::new(LinearConfig::new(all, 3 * all))?;
        let own = fill(&layer, policy, 0.0, 0.0)?;
        for tensor in &own {
            amp_core::tch::no_grad(|| tensor.shallow_clone().copy_(&leaf(&tensor.size())));
        }
        let x = leaf(&[batch, length, all]).set_requires_grad(true);
        let incoming = [0; 3].map(|_| leaf(&[batch, heads, length, width]));
        let parts = {
            let _region = policy.autocast()?;
            split_heads(&layer.forward(&x, &Context::new(policy, true))?, heads)?
        };
        let kind = policy.precision.storage();
        let sums =
            parts.iter().zip(&incoming).map(|(part, one)| (part.to_kind(kind) * one).sum(kind));
        sums.sum::<Tensor>().backward();
        Ok(vec![x.grad(), own[0].grad(), own[1].grad()])
    };
    let seen = pass(Policy::new(precision, device()))?;
    let exact = pass(Policy::new(Precision::F64True, Device::Cpu))?;
    for (name, (seen, exact)) in
        ["input", "weight", "bias"].into_iter().zip(seen.iter().zip(&exact))
    {
        let (off, bound) = (relative(seen, &wide(exact)), 4.0 * rounding(precision.compute()));
        assert!(off < bound, "{name}: error {off}, bound {bound}");
    }
    Ok(())
}
