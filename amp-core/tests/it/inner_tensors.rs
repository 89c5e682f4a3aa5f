//! Tests that layers show their intermediate tensors, and each use of a weight, to an observer. If
//! the observer rounds these tensors to 16 bits, the layers compute nearly the same as in a 16-bit
//! precision.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use amp_core::{
    Module, Result,
    nn::{
        Call, Checkpoint, Context, FeedForward, Linear, LocalResponseNorm, LocalResponseNormConfig,
        LpPool1d, LpPool1dConfig, MultiheadAttention, MultiheadAttentionConfig, Probe,
        RotaryPairing, Sequential, Sigmoid, Softsign, Substitute, Tanh, Tanhshrink,
        TransformerEncoderLayer, TransformerEncoderLayerConfig, Visit, Visitor, causal_attention,
        named_tensors, place,
    },
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    model::linear,
    rounds::{Rounds, distance},
    seeded,
};

fn policy(precision: Precision) -> Policy {
    Policy::new(precision, Device::Cpu)
}

fn context(precision: Precision) -> Context {
    Context::new(policy(precision), true)
}

/// Records the names and dtypes of intermediate tensors.
#[derive(Default)]
struct Names(RefCell<Vec<(String, Kind)>>);

impl Probe for Names {
    fn ran(&self, _: &Call<'_>) {}

    fn inner(&self, path: &str, name: &str, inner: &Tensor) {
        self.0.borrow_mut().push((format!("{path}/{name}"), inner.kind()));
    }
}

/// Replaces each intermediate tensor by a copy with the same values, and records the names.
#[derive(Default)]
struct Equal(RefCell<Vec<String>>);

impl Substitute for Equal {
    fn given(&self, _: &str, input: &Tensor) -> Result<Tensor> {
        Ok(input.shallow_clone())
    }

    fn returned(&self, _: &str, output: &Tensor) -> Result<Tensor> {
        Ok(output.shallow_clone())
    }

    fn within(&self, _: &str, name: &str, inner: &Tensor) -> Result<Tensor> {
        self.0.borrow_mut().push(name.to_owned());
        Ok(inner.f_mul_scalar(1.0)?)
    }
}

fn encoder() -> Result<Box<dyn Module>> {
    let config = TransformerEncoderLayerConfig {
        dim_feedforward: 8,
        dropout: 0.0,
        activation: FeedForward::SwiGlu,
        ..TransformerEncoderLayerConfig::new(8, 2)
    };
    Ok(Box::new(TransformerEncoderLayer::new(config)?))
}

fn attention() -> Result<Box<dyn Module>> {
    let config = MultiheadAttentionConfig {
        rotary: Some(RotaryPairing::Interleaved),
        causal: true,
        ..MultiheadAttentionConfig::new(8, 2)
    };
    Ok(Box::new(MultiheadAttention::new(config)?))
}

fn response_norm() -> Result<Box<dyn Module>> {
    let config = LocalResponseNormConfig { alpha: 0.5, ..LocalResponseNormConfig::new(3) };
    Ok(Box::new(LocalResponseNorm::new(config)?))
}

fn lp_pool() -> Result<Box<dyn Module>> {
    Ok(Box::new(LpPool1d::new(LpPool1dConfig::new(3.0, 2))?))
}

/// Layers show their intermediate tensors to an observer under fixed names, with the dtypes of the
/// precision. If the observer replaces a tensor by a copy with the same values, neither the output
/// nor the gradient changes.
#[rstest]
#[case::swiglu(encoder(), &["0/gate"])]
#[case::rotary(attention(), &["0/before rotation", "0/before rotation"])]
#[case::response_norm(response_norm(), &["0/squares", "0/means", "0/share", "0/sum", "0/scale"])]
#[case::lp_pool(lp_pool(), &["0/powers", "0/means", "0/sums"])]
#[case::softsign(Ok(Box::new(Softsign) as Box<dyn Module>), &["0/divisor"])]
#[case::tanhshrink(Ok(Box::new(Tanhshrink) as Box<dyn Module>), &["0/tanh"])]
#[case::tanh(Ok(Box::new(Tanh) as Box<dyn Module>), &["0/output"])]
#[case::sigmoid(Ok(Box::new(Sigmoid) as Box<dyn Module>), &["0/output"])]
fn layers_offer_their_intermediate_tensors(
    #[case] layer: Result<Box<dyn Module>>,
    #[case] names: &[&str],
) -> Result<()> {
    let _generator = seeded(0);
    let module = Sequential::new(vec![layer?]);
    let input = Tensor::rand([2, 4, 8], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    place(&module, policy(Precision::Bf16True), &BTreeMap::default())?;
    let seen = Rc::new(Names::default());
    let probed = context(Precision::Bf16True).with_probe(seen.clone());
    module.forward(&input.to_kind(Kind::BFloat16), &probed).map(drop)?;
    let expected: Vec<_> = names.iter().map(|name| (name.to_string(), Kind::BFloat16)).collect();
    assert_eq!(seen.0.take(), expected);
    place(&module, policy(Precision::F64True), &BTreeMap::default())?;
    let run = |cx: Context| -> Result<[Tensor; 2]> {
        let output = module.forward(&input, &cx)?;
        let gradient = Tensor::run_backward(&[output.square().sum(None)], &[&input], false, false);
        Ok([output, gradient[0].shallow_clone()])
    };
    let expected = run(context(Precision::F64True))?;
    let found = run(context(Precision::F64True).with_substitute(Rc::new(Equal::default())))?;
    for (found, expected) in found.iter().zip(&expected) {
        assert!(relative(found, expected) < 1e-9, "{}", relative(found, expected));
    }
    Ok(())
}

/// An attention layer that is defined outside of the crate.
struct Own;

impl Visit for Own {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Own {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        causal_attention(input, &(input * 0.5), &input.sin(), cx)
    }
}

/// `causal_attention` shows its intermediate tensors to an observer. It then computes the same
/// values and gradients as the fused kernel.
#[test]
fn causal_attention_offers_its_intermediate_tensors() -> Result<()> {
    let _generator = seeded(0);
    let module = Sequential::new(vec![Box::new(Own) as Box<dyn Module>]);
    let x = Tensor::randn([2, 3, 5, 4], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let run = |cx: &Context| -> Result<[Tensor; 2]> {
        let output = module.forward(&x, cx)?;
        let gradient = Tensor::run_backward(&[output.square().sum(None)], &[&x], false, false);
        Ok([output, gradient[0].shallow_clone()])
    };
    let expected = run(&context(Precision::F64True))?;
    let equal = Rc::new(Equal::default());
    let found = run(&context(Precision::F64True).with_substitute(equal.clone()))?;
    assert_eq!(equal.0.take(), ["queries", "keys", "values", "scores", "weights", "attended"]);
    for (found, expected) in found.iter().zip(&expected) {
        assert!(relative(found, expected) < 1e-12, "{}", relative(found, expected));
    }
    Ok(())
}

/// Compares a bf16 layer with an f32 layer whose tensors an observer rounds to bf16. The fraction
/// of elements in which the two layers differ is less than a third of the fraction in which the
/// bf16 layer differs from the f32 layer without the observer. `least` is a lower limit of this
/// second fraction, for the output and for the gradient. `None` means that the output or the
/// gradient is not compared. The gradients of tanh and sigmoid are compared, because libtorch
/// computes them from the rounded output.
#[rstest]
#[case::response_norm(response_norm(), [Some(0.1), None])]
#[case::softsign(Ok(Box::new(Softsign) as Box<dyn Module>), [Some(0.1), None])]
#[case::tanhshrink(Ok(Box::new(Tanhshrink) as Box<dyn Module>), [Some(0.5), None])]
#[case::tanh(Ok(Box::new(Tanh) as Box<dyn Module>), [None, Some(0.1)])]
#[case::sigmoid(Ok(Box::new(Sigmoid) as Box<dyn Module>), [None, Some(0.1)])]
fn rounded_layers_are_those_of_16_bits(
    #[case] layer: Result<Box<dyn Module>>,
    #[case] least: [Option<f64>; 2],
) -> Result<()> {
    let _generator = seeded(0);
    let module = Sequential::new(vec![layer?]);
    let input = Tensor::rand([8, 16, 32], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    let run = |precision: Precision, cx: Context| -> Result<[Tensor; 2]> {
        let input = input.to_kind(precision.storage()).set_requires_grad(true);
        let output = module.forward(&input, &cx)?;
        let sum = output.sum(output.kind());
        let gradient = Tensor::run_backward(&[sum], &[&input], false, false);
        Ok([wide(&output), wide(&gradient[0])].map(|tensor| tensor.to_kind(Kind::BFloat16)))
    };
    let actual = run(Precision::Bf16True, context(Precision::Bf16True))?;
    let rounds = Rc::new(Rounds::to(Kind::BFloat16));
    let emulated = run(Precision::F32True, context(Precision::F32True).with_substitute(rounds))?;
    let plain = run(Precision::F32True, context(Precision::F32True))?;
    let share = |one: &Tensor, other: &Tensor| {
        one.ne_tensor(other).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
    };
    for (at, least) in least.into_iter().enumerate() {
        let [found, without] = [&emulated, &plain].map(|other| share(&other[at], &actual[at]));
        let text = format!("{at}: {found} of the elements differ, {without} without rounding");
        assert!(least.is_none_or(|least| without > least && found < without / 3.0), "{text}");
    }
    Ok(())
}

/// In mixed precision, autocast casts a weight only once. If a forward pass uses a linear layer
/// forty times, the forty gradients of the weight are therefore added up in 16 bits. An f32 layer
/// whose tensors an observer rounds to bf16 adds them up in 16 bits too. This brings its gradients
/// closer to those in mixed precision: the difference is less than half of the difference without
/// the observer.
#[test]
fn the_gradients_of_several_uses_are_added_up_in_16_bits() -> Result<()> {
    let _generator = seeded(0);
    let layer: Linear = linear(32, 32)?;
    let input = Tensor::randn([16, 32], (Kind::Float, Device::Cpu));
    let run = |precision: Precision, cx: &Context| -> Result<Vec<Tensor>> {
        place(&layer, policy(precision), &BTreeMap::default())?;
        let weights: Vec<Tensor> = named_tensors(&layer).into_iter().map(|(_, t, _)| t).collect();
        let sum = {
            let _autocast = policy(precision).autocast()?;
            let (mut x, mut sum) =
                (input.shallow_clone(), Tensor::zeros([], (Kind::Float, Device::Cpu)));
            for _ in 0..40 {
                let product = cx.call("layer", None, &layer, &x)?.to_kind(Kind::Float);
                sum = (&product * input.sin()).mean(None) + sum;
                x = product.tanh();
            }
            sum
        };
        Ok(Tensor::run_backward(&[sum], &weights, false, false).iter().map(wide).collect())
    };
    let exact = run(Precision::F32True, &context(Precision::F32True))?;
    let actual = run(Precision::Bf16Mixed, &context(Precision::Bf16Mixed))?;
    for tensor in named_tensors(&layer).iter().map(|(_, tensor, _)| tensor) {
        // With the observer, the weights are rounded to bf16 before the forward pass.
        let rounded = tensor.to_kind(Kind::BFloat16);
        amp_core::tch::no_grad(|| tensor.shallow_clone().copy_(&rounded));
    }
    let rounds = Rc::new(Rounds::to(Kind::BFloat16));
    let emulated = run(Precision::F32True, &context(Precision::F32True).with_substitute(rounds))?;
    for ((actual, emulated), exact) in actual.iter().zip(&emulated).zip(&exact) {
        let (error, left) = (distance(actual, exact), distance(emulated, actual));
        assert!(left < 0.5 * error, "difference {left} with rounding, {error} without");
    }
    Ok(())
}

/// Doubles the output of the module `0.0`, and with it the gradient of this module's input.
struct Doubles;

impl Substitute for Doubles {
    fn given(&self, _: &str, input: &Tensor) -> Result<Tensor> {
        Ok(input.shallow_clone())
    }

    fn returned(&self, path: &str, output: &Tensor) -> Result<Tensor> {
        Ok(output.f_mul_scalar(if path == "0.0" { 2.0 } else { 1.0 })?)
    }
}

/// If an observer replaces tensors, checkpointed modules keep their activations. The backward pass
/// would otherwise recompute the activations without the replaced tensors.
#[test]
fn tensors_inside_a_checkpointed_module_are_substituted() -> Result<()> {
    let _generator = seeded(0);
    let inner: Vec<Box<dyn Module>> = vec![Box::new(Tanh), Box::new(Tanh)];
    let block = Checkpoint::new(Sequential::new(inner), true);
    let module = Sequential::new(vec![Box::new(block)]);
    let x = Tensor::randn([6], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let cx = context(Precision::F64True).with_substitute(Rc::new(Doubles));
    let output = module.forward(&x, &cx)?;
    let expected = (x.tanh() * 2.0).tanh();
    let gradient =
        |output: &Tensor| Tensor::run_backward(&[output.sum(None)], &[&x], false, false).remove(0);
    assert!(output.allclose(&expected, 1e-12, 1e-12, false));
    assert!(gradient(&output).allclose(&gradient(&expected), 1e-12, 1e-12, false));
    Ok(())
}
