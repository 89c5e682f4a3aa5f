//! Tests that a probe can run a module again, and can run forward passes without dropout or
//! activation checkpointing.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Module, Result,
    nn::{
        BatchNorm, BatchNormConfig, Call, Checkpoint, Context, Dropout, LayerNorm, LayerNormConfig,
        MultiheadAttention, MultiheadAttentionConfig, Probe, Relu, Sequential, Substitute,
        named_tensors, place,
    },
    precision::{Policy, Precision},
    tch::{Kind, Tensor},
};

use rstest::rstest;

use crate::support::{
    device,
    model::{digits, linear},
    seeded,
};

/// A probe that runs each module a second time on the same input, and a third time on the input
/// multiplied by 0.5.
#[derive(Default)]
struct Again(RefCell<Vec<(String, Tensor, Tensor, Tensor)>>);

impl Probe for Again {
    fn ran(&self, call: &Call<'_>) {
        let rerun = |input: &Tensor| (call.rerun)(input).expect("it ran before");
        let half = call.input.f_mul_scalar(0.5).expect("a half");
        let output = call.output.shallow_clone();
        let again = (call.path.to_owned(), output, rerun(call.input), rerun(&half));
        self.0.borrow_mut().push(again);
    }
}

fn stack(checkpointed: bool) -> Result<Sequential> {
    let inner: Vec<Box<dyn Module>> = vec![
        Box::new(linear(64, 8)?),
        Box::new(BatchNorm::new(BatchNormConfig::new(8))?),
        Box::new(Relu),
        Box::new(Dropout::new(0.5)?),
    ];
    let block = Checkpoint::new(Sequential::new(inner), checkpointed);
    Ok(Sequential::new(vec![Box::new(block), Box::new(linear(8, 2)?)]))
}

fn run(module: &Sequential, context: &Context, policy: Policy) -> Result<()> {
    place(module, policy, &Default::default())?;
    let input = digits(32)?.place(policy)?.input;
    let _autocast = policy.autocast()?;
    module.forward(&input, context).map(drop)
}

/// If a module runs again under the same autocast state, it gives the same output for the same
/// input, and another output for another input. In training, the batch changes the running
/// statistics only once. In evaluation, the second run uses the running statistics, too.
#[rstest]
fn a_module_can_run_again_with_the_same_output(
    #[values(true, false)] training: bool,
) -> Result<()> {
    let _generator = seeded(0);
    let policy = Policy::new(Precision::Bf16Mixed, device());
    let module = stack(false)?;
    let again = Rc::new(Again::default());
    let context = Context::new(policy, training).without_dropout().with_probe(again.clone());
    run(&module, &context, policy)?;
    let seen = again.0.take();
    let paths: Vec<&str> = seen.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(paths, ["0.0", "0.1", "0.2", "0.3", "0", "1"]);
    for (path, output, same, _) in &seen {
        assert_eq!((output.kind(), output), (same.kind(), same), "{path}");
    }
    assert_ne!(seen[0].1, seen[0].3, "another input has another output");
    let counted = named_tensors(&module).into_iter().find(|(name, ..)| name.ends_with("tracked"));
    let (_, counted, _) = counted.expect("batch norm counts");
    assert_eq!(counted.int64_value(&[]), i64::from(training));
    Ok(())
}

/// Dropout can be switched off in a forward pass in training mode. Then no element is set to zero,
/// and batch norm still uses the statistics of the batch.
#[test]
fn dropout_can_be_left_out_of_a_training_pass() -> Result<()> {
    let _generator = seeded(0);
    let policy = Policy::new(Precision::F32True, device());
    let dropped = |context: Context| -> Result<bool> {
        assert!(context.is_training());
        let again = Rc::new(Again::default());
        run(&stack(false)?, &context.with_probe(again.clone()), policy)?;
        let seen = again.0.take();
        Ok(seen[2].1 != seen[3].1)
    };
    assert!(dropped(Context::new(policy, true))?);
    assert!(!dropped(Context::new(policy, true).without_dropout())?);
    Ok(())
}

/// Activation checkpointing can be switched off in a forward pass in training mode, so that a probe
/// gets activations that have an autograd graph.
#[test]
fn checkpoints_can_be_left_out_of_a_training_pass() -> Result<()> {
    let _generator = seeded(0);
    let policy = Policy::new(Precision::F32True, device());
    let traced = |context: Context| -> Result<bool> {
        let again = Rc::new(Again::default());
        run(&stack(true)?, &context.with_probe(again.clone()), policy)?;
        let seen = again.0.take();
        Ok(seen[0].1.requires_grad())
    };
    assert!(!traced(Context::new(policy, true))?);
    assert!(traced(Context::new(policy, true).without_checkpointing())?);
    Ok(())
}

/// A probe that doubles the input of the first layer and negates the output of the ReLU. It also
/// records in which order its functions are called.
#[derive(Default)]
struct Other(RefCell<Vec<String>>);

impl Substitute for Other {
    fn given(&self, path: &str, input: &Tensor) -> Result<Tensor> {
        self.0.borrow_mut().push(format!("{path} in"));
        Ok(if path == "0" { input.f_mul_scalar(2.0)? } else { input.shallow_clone() })
    }

    fn returned(&self, path: &str, output: &Tensor) -> Result<Tensor> {
        self.0.borrow_mut().push(format!("{path} out"));
        Ok(if path == "1" { output.f_neg()? } else { output.shallow_clone() })
    }
}

/// Modules compute with the tensors that a probe substitutes for their inputs and outputs, and
/// gradients flow through the substitution.
#[test]
fn tensors_between_modules_are_substituted() -> Result<()> {
    let _generator = seeded(0);
    let policy = Policy::new(Precision::F32True, device());
    let (first, last) = (linear(64, 8)?, linear(8, 2)?);
    let module = Sequential::new(vec![Box::new(first), Box::new(Relu), Box::new(last)]);
    place(&module, policy, &Default::default())?;
    let input = digits(32)?.place(policy)?.input;
    let plain = || Context::new(policy, true);
    let other = Rc::new(Other::default());
    let found = module.forward(&input, &plain().with_substitute(other.clone()))?;
    let order = ["0 in", "0 out", "1 in", "1 out", "2 in", "2 out"];
    assert_eq!(other.0.take(), order);
    let tensors = named_tensors(&module);
    let tensor = |name: &str| {
        let found = tensors.iter().find(|(own, ..)| own == name);
        found.map(|(_, tensor, _)| tensor.shallow_clone()).expect("a parameter")
    };
    let layer = |x: &Tensor, at: usize| {
        x.linear(&tensor(&format!("{at}.weight")), Some(tensor(&format!("{at}.bias"))))
    };
    let expected = layer(&-layer(&(&input * 2.0), 0).relu(), 2);
    assert!(found.allclose(&expected, 1e-6, 1e-6, false));
    let gradient = |output: &Tensor| {
        let weight = [tensor("0.weight")];
        Tensor::run_backward(&[output.sum(output.kind())], &weight, true, false).remove(0)
    };
    assert!(gradient(&found).allclose(&gradient(&expected), 1e-5, 1e-6, false));
    Ok(())
}

/// A probe that records the tensors inside modules, and halves the values of attention.
#[derive(Default)]
struct Within(RefCell<Vec<(String, String, Vec<i64>)>>);

impl Substitute for Within {
    fn given(&self, _: &str, input: &Tensor) -> Result<Tensor> {
        Ok(input.shallow_clone())
    }

    fn returned(&self, _: &str, output: &Tensor) -> Result<Tensor> {
        Ok(output.shallow_clone())
    }

    fn within(&self, path: &str, name: &str, inner: &Tensor) -> Result<Tensor> {
        self.0.borrow_mut().push((path.to_owned(), name.to_owned(), inner.size()));
        Ok(if name == "values" { inner.f_mul_scalar(0.5)? } else { inner.shallow_clone() })
    }
}

/// A probe can substitute the queries, keys, values, scores, weights and output of attention.
/// Without a substitution, the fused kernel computes the output.
#[test]
fn tensors_inside_attention_are_substituted() -> Result<()> {
    let _generator = seeded(0);
    let policy = Policy::new(Precision::F64True, device());
    let config = MultiheadAttentionConfig {
        causal: true,
        bias: false,
        ..MultiheadAttentionConfig::new(8, 2)
    };
    let module = Sequential::new(vec![Box::new(MultiheadAttention::new(config)?)]);
    place(&module, policy, &Default::default())?;
    let input = Tensor::randn([3, 5, 8], (Kind::Double, device()));
    let plain = module.forward(&input, &Context::new(policy, true))?;
    let within = Rc::new(Within::default());
    let halved =
        module.forward(&input, &Context::new(policy, true).with_substitute(within.clone()))?;
    let (heads, pairs) = (vec![3, 2, 5, 4], vec![3, 2, 5, 5]);
    let names = ["queries", "keys", "values", "scores", "weights", "attended"];
    let sizes = [&heads, &heads, &heads, &pairs, &pairs, &heads];
    let expected: Vec<_> = std::iter::zip(names, sizes)
        .map(|(name, size)| ("0".to_owned(), name.to_owned(), size.clone()))
        .collect();
    assert_eq!(within.0.take(), expected);
    assert!((halved * 2.0).allclose(&plain, 1e-12, 1e-12, false));
    Ok(())
}

/// A probe that keeps the output of each module.
#[derive(Default)]
struct Outputs(RefCell<Vec<Tensor>>);

impl Probe for Outputs {
    fn ran(&self, call: &Call<'_>) {
        self.0.borrow_mut().push(call.output.shallow_clone());
    }
}

/// On CUDA, a norm in an autocast region also writes a 16-bit copy of its output, which the next
/// matrix product reads. The gradient of the output that a probe receives must include the gradient
/// of this copy. The probe must not change any result.
#[rstest]
fn the_gradient_of_a_shown_output_is_whole(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(0);
    let policy = Policy::new(precision, device());
    let module = Sequential::new(vec![
        Box::new(linear(64, 32)?),
        Box::new(LayerNorm::new(LayerNormConfig::new(32))?),
        Box::new(linear(32, 4)?),
    ]);
    place(&module, policy, &Default::default())?;
    let input = digits(16)?.place(policy)?.input;
    let weights: Vec<Tensor> = named_tensors(&module).into_iter().map(|(_, t, _)| t).collect();
    let run = |context: &Context| -> Result<Tensor> {
        let _autocast = policy.autocast()?;
        Ok(module.forward(&input, context)?.f_to_kind(Kind::Float)?.f_square()?.f_sum(None)?)
    };
    let plain = run(&Context::new(policy, true))?;
    let expected = Tensor::f_run_backward(&[&plain], &weights, false, false)?;
    let outputs = Rc::new(Outputs::default());
    let shown = run(&Context::new(policy, true).with_probe(outputs.clone()))?;
    let wanted: Vec<Tensor> = outputs.0.take().into_iter().chain(weights).collect();
    let found = Tensor::f_run_backward(&[&shown], &wanted, false, false)?;
    assert_eq!(shown, plain);
    let (of_outputs, of_weights) = found.split_at(3);
    assert!(of_outputs.iter().all(Tensor::defined), "each output has a gradient");
    assert_eq!(of_weights, expected, "the probe changes no gradient");
    // The gradient of the norm's bias is the sum over rows of the gradient of the norm's output.
    // This holds only if the gradient of the output includes the gradient of the 16-bit copy.
    let bias = of_outputs[1].f_to_kind(Kind::Double)?.f_sum_dim_intlist(0, false, Kind::Double)?;
    let found = expected[3].f_to_kind(Kind::Double)?;
    assert!(bias.allclose(&found, 1e-2, 2e-2, false), "{bias} is not {found}");
    Ok(())
}
