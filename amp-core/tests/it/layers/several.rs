//! Tests of modules with several inputs or outputs against torch.nn: outputs, gradients, initial
//! weights, and dtypes under autocast.

use amp_core::{
    Result,
    nn::{Context, Visit, parameters, place},
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use serde_json::Value;

use super::{near, several_cases::build, shape, tch_copy};
use crate::support::{
    bits::{assert_bits, from_bits},
    device,
    oracle::{Lcg, integer, list, oracle, text},
    seeded,
};

/// A module that can run on the inputs of a case.
pub(super) trait Runs: Visit {
    fn run(&self, inputs: &[Tensor], cx: &Context) -> Result<Vec<Tensor>>;
}

struct Run<M, F> {
    module: M,
    run: F,
}

impl<M: Visit, F> Visit for Run<M, F> {
    fn visit(&self, visitor: &mut dyn amp_core::nn::Visitor) {
        self.module.visit(visitor);
    }
}

impl<M, F> Runs for Run<M, F>
where
    M: Visit,
    F: Fn(&M, &[Tensor], &Context) -> Result<Vec<Tensor>>,
{
    fn run(&self, inputs: &[Tensor], cx: &Context) -> Result<Vec<Tensor>> {
        (self.run)(&self.module, inputs, cx)
    }
}

/// Builds a test case from a module and a function that runs this module on the inputs of the case.
pub(super) fn case<M: Visit + 'static>(
    module: Result<M>,
    run: impl Fn(&M, &[Tensor], &Context) -> Result<Vec<Tensor>> + 'static,
) -> Result<Box<dyn Runs>> {
    Ok(Box::new(Run { module: module?, run }))
}

/// Builds one input of a test case.
fn input(value: &Value, lcg: &mut Lcg, kind: Kind) -> Tensor {
    let size = shape(&value["shape"]);
    let integers = |key: &str| -> Option<Tensor> {
        let numbers: Vec<i64> = serde_json::from_value(value.get(key)?.clone()).expect("integers");
        Some(Tensor::from_slice(&numbers).reshape(&size).to_device(device()))
    };
    match (integers("booleans"), integers("integers")) {
        (Some(booleans), _) => booleans.to_kind(Kind::Bool),
        (_, Some(integers)) => integers,
        _ => {
            let values = lcg.tensor(&size, 64.0).to_kind(kind).to_device(device());
            values.set_requires_grad(true)
        }
    }
}

/// Builds the module and its inputs. Fills parameters and inputs with the same numbers as the
/// script that recorded PyTorch's results. Also returns the generator of these numbers, because its
/// next numbers are the gradients of the outputs.
fn filled(
    name: &str,
    case: &Value,
    seed: u64,
    precision: Precision,
) -> Result<(Box<dyn Runs>, Vec<Tensor>, Lcg)> {
    let mut lcg = Lcg(seed);
    let module = build(name)?;
    place(&*module, Policy::new(precision, device()), &Default::default())?;
    let inputs = list(case, "inputs");
    let inputs = inputs.iter().map(|one| input(one, &mut lcg, precision.storage())).collect();
    let recorded = case["parameters"].as_object().expect("parameters");
    let own = parameters(&*module);
    assert_eq!(own.len(), recorded.len(), "{name}: parameters");
    for parameter in own {
        let expected =
            recorded.get(&parameter.name).unwrap_or_else(|| panic!("{name}: {}", parameter.name));
        assert_eq!(parameter.tensor.size(), shape(expected), "{name}: {}", parameter.name);
        tch_copy(&parameter.tensor, &lcg.tensor(&parameter.tensor.size(), 256.0));
    }
    Ok((module, inputs, lcg))
}

/// Returns the gradient of the tensor, or zeros if the loss does not depend on the tensor.
fn gradient(tensor: &Tensor) -> Tensor {
    let grad = tensor.grad();
    if grad.defined() { grad } else { tensor.zeros_like() }
}

/// The parameters have torch's names and shapes. In f64, outputs and gradients equal torch's.
#[test]
fn modules_with_several_inputs_equal_torchs() -> Result<()> {
    let oracle = oracle!("several.json");
    let seed = integer(&oracle, "seed").cast_unsigned();
    for (name, case) in oracle["cases"].as_object().expect("cases") {
        let (module, inputs, mut lcg) = filled(name, case, seed, Precision::F64True)?;
        let cx = Context::new(Policy::new(Precision::F64True, device()), true);
        let outputs = module.run(&inputs, &cx)?;
        for (parameter, bits) in case["changed"].as_object().expect("changed parameters") {
            let own = parameters(&*module).into_iter().find(|own| own.name == *parameter);
            let expected = from_bits(Kind::Double, bits.as_str().expect("bits"));
            let what = format!("{name}: {parameter} after the forward pass");
            near(&own.expect("the parameter").tensor, &expected, 1e-12, &what);
        }
        let recorded = list(case, "outputs");
        assert_eq!(outputs.len(), recorded.len(), "{name}: outputs");
        let mut loss = Tensor::zeros([], (Kind::Double, device()));
        for (at, (output, recorded)) in outputs.iter().zip(recorded).enumerate() {
            let what = format!("{name}: output {at}");
            assert_eq!(output.size(), shape(&recorded["shape"]), "{what}");
            near(output, &from_bits(Kind::Double, text(recorded, "bits")), 1e-12, &what);
            let factor = lcg.tensor(&output.size(), 64.0).to_kind(Kind::Double).to_device(device());
            loss += (output * factor).sum(Kind::Double);
        }
        loss.f_backward()?;
        let floating = inputs.iter().filter(|input| input.kind() == Kind::Double);
        for (at, (input, recorded)) in floating.zip(list(case, "input_grads")).enumerate() {
            let expected = from_bits(Kind::Double, recorded.as_str().expect("bits"));
            near(&gradient(input), &expected, 1e-11, &format!("{name}: input {at}"));
        }
        for parameter in parameters(&*module) {
            let expected = from_bits(Kind::Double, text(&case["grads"], &parameter.name));
            let what = format!("{name}: {}", parameter.name);
            near(&gradient(&parameter.tensor), &expected, 1e-11, &what);
        }
    }
    Ok(())
}

/// Under autocast, each output has the same dtype as in torch, and the same values up to the
/// rounding of bf16.
#[test]
fn modules_with_several_inputs_under_autocast_equal_torchs() -> Result<()> {
    let oracle = oracle!("several.json");
    let seed = integer(&oracle, "seed").cast_unsigned();
    for (name, case) in oracle["cases"].as_object().expect("cases") {
        let (module, inputs, _) = filled(name, case, seed, Precision::Bf16Mixed)?;
        let policy = Policy::new(Precision::Bf16Mixed, device());
        let outputs = {
            let _autocast = policy.autocast()?;
            module.run(&inputs, &Context::new(policy, true))?
        };
        for (at, (output, recorded)) in outputs.iter().zip(list(case, "autocast")).enumerate() {
            let what = format!("{name}: output {at}");
            // The dtypes were recorded on the CPU. torch's autocast uses other lists of operations
            // on CUDA.
            if !device().is_cuda() {
                let dtype = if output.kind() == Kind::BFloat16 { "bf16" } else { "f32" };
                // On the CPU, torch's autocast has no rule for recurrent layers, so only some of
                // their outputs are bf16 in torch. Here all outputs are bf16.
                let is_recurrent = ["lstm", "gru", "rnn"].iter().any(|kind| name.starts_with(kind));
                let expected = if is_recurrent { "bf16" } else { text(recorded, "dtype") };
                assert_eq!(dtype, expected, "{what}");
            }
            near(output, &from_bits(Kind::Float, text(recorded, "bits")), 2f64.powi(-6), &what);
        }
    }
    Ok(())
}

/// With the same seed, the initial weights equal torch's.
#[test]
fn initial_weights_of_modules_with_several_inputs_equal_torchs() -> Result<()> {
    let oracle = oracle!("several.json");
    for (name, recorded) in oracle["initial"].as_object().expect("modules") {
        let _section = seeded(0);
        let own = parameters(&*build(name)?);
        assert_eq!(own.len(), recorded.as_object().expect("parameters").len(), "{name}");
        for parameter in own {
            assert_eq!(parameter.tensor.device(), Device::Cpu);
            let expected = text(recorded, &parameter.name);
            assert_bits(&parameter.tensor, expected, &format!("{name}: {}", parameter.name));
        }
    }
    Ok(())
}
