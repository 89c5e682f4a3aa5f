//! Compares initial values with those of torch.nn.init.

use amp_core::{
    Module, Result,
    nn::{
        Conv2d, Init, Linear, Role,
        init::{self, FanMode, Nonlinearity},
        parameters,
    },
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{assert_bits, from_bits, relative},
    device, message,
    oracle::{oracle, text},
    seeded,
};

/// Returns the initializer that has this name in the recordings of torch.nn.init.
fn named(name: &str) -> Init {
    let kaiming = |a, mode, nonlinearity| Init::KaimingUniform { a, mode, nonlinearity };
    let normal = |mode, nonlinearity| Init::KaimingNormal { a: 0.0, mode, nonlinearity };
    match name {
        "uniform" => Init::Uniform { low: -0.3, high: 0.7 },
        "normal" => Init::Normal { mean: 0.5, std: 0.02 },
        "trunc_normal" => Init::TruncNormal { mean: 0.1, std: 0.5, a: -0.4, b: 0.8 },
        "trunc_normal default" => Init::TruncNormal { mean: 0.0, std: 0.02, a: -2.0, b: 2.0 },
        "xavier_uniform" => Init::XavierUniform { gain: 1.0 },
        "xavier_normal" => {
            Init::XavierNormal { gain: init::calculate_gain(Nonlinearity::Tanh, 0.0) }
        }
        "kaiming_uniform" => kaiming(0.0, FanMode::FanIn, Nonlinearity::LeakyRelu),
        "kaiming_uniform fan_out" => kaiming(0.2, FanMode::FanOut, Nonlinearity::LeakyRelu),
        "kaiming_normal" => normal(FanMode::FanIn, Nonlinearity::Relu),
        "kaiming_normal selu" => normal(FanMode::FanOut, Nonlinearity::Selu),
        "orthogonal" => Init::Orthogonal { gain: 2.0 },
        "constant" => Init::Full { value: 0.3 },
        "ones" => Init::Ones,
        "zeros" => Init::Zeros,
        "eye" => Init::Eye,
        other => panic!("the oracle has a case `{other}` that has no initializer here"),
    }
}

/// Returns whether the last digits of the initial values depend on the CPU. This is so for
/// initializers that use LAPACK or MKL's erfinv.
fn is_of_the_cpu(init: &str) -> bool {
    init == "orthogonal" || init.starts_with("trunc_normal")
}

/// With the same seed, the initial values equal those of torch.nn.init, both if a new tensor is
/// created and if an existing tensor is filled.
#[test]
fn values_equal_torchs() -> Result<()> {
    let oracle = oracle!("init.json");
    for (name, shapes) in oracle["cases"].as_object().expect("cases") {
        for shape in shapes.as_object().expect("shapes").keys() {
            let size: Vec<i64> =
                serde_json::from_value(oracle["shapes"][shape].clone()).expect("sizes");
            let own = Tensor::full(&size, 7.0, (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let made = {
                let _section = seeded(0);
                named(name).tensor(&size, Role::Parameter)?
            };
            {
                let _section = seeded(0);
                named(name).fill(&own)?;
            }
            assert!(made.requires_grad() && own.requires_grad() && own.is_leaf());
            for tensor in [&made, &own] {
                let what = format!("{name}, {shape}");
                if is_of_the_cpu(name) {
                    let expected = from_bits(Kind::Float, text(shapes, shape)).reshape(&size);
                    assert!(relative(tensor, &expected) < 1e-5, "{what}");
                } else {
                    assert_bits(tensor, text(shapes, shape), &what);
                }
            }
        }
    }
    Ok(())
}

/// The initial values of a tensor of any dtype and device are f32 random numbers that are generated
/// on the CPU and then rounded to the dtype of the tensor.
#[rstest]
fn values_do_not_depend_on_dtype_and_device(
    #[values(Kind::Half, Kind::BFloat16, Kind::Double)] kind: Kind,
) -> Result<()> {
    let expected = {
        let _section = seeded(1);
        named("trunc_normal").tensor(&[5, 6], Role::Buffer)?
    };
    let tensor = Tensor::zeros([5, 6], (kind, device()));
    let _section = seeded(1);
    init::trunc_normal_(&tensor, 0.1, 0.5, -0.4, 0.8)?;
    assert!(tensor.to_device(Device::Cpu).equal(&expected.to_kind(kind)));
    Ok(())
}

/// The rows of a wide matrix are orthogonal, and so are the columns of a tall matrix.
#[rstest]
fn orthogonal_matrices_are_orthogonal(#[values(3, 7)] rows: i64) -> Result<()> {
    let _section = seeded(2);
    let tensor = Tensor::zeros([rows, 5], (Kind::Double, Device::Cpu));
    init::orthogonal_(&tensor, 3.0)?;
    let product = if rows < 5 { tensor.matmul(&tensor.tr()) } else { tensor.tr().matmul(&tensor) };
    let identity = Tensor::eye(rows.min(5), (Kind::Double, Device::Cpu)) * 9.0;
    assert!(relative(&product, &identity) < 1e-6);
    Ok(())
}

#[test]
fn invalid_initializers_are_refused() {
    let refused = |init: Init, shape: &[i64], says: &str| {
        let text = message(init.tensor(shape, Role::Buffer));
        assert!(text.contains(says), "{text}");
    };
    refused(
        named("xavier_uniform"),
        &[4],
        "xavier_uniform: fan_in and fan_out cannot be computed for the shape [4]",
    );
    refused(
        named("kaiming_normal"),
        &[4, 0],
        "kaiming_normal: fan_in and fan_out cannot be computed for the shape [4, 0]",
    );
    refused(named("orthogonal"), &[4], "orthogonal: the shape is [4], but must have at least two");
    refused(Init::Eye, &[2, 2, 2], "eye: the shape is [2, 2, 2], but must have two dimensions");
    let truncated = |mean, std, a, b| Init::TruncNormal { mean, std, a, b };
    refused(truncated(0.0, -1.0, -2.0, 2.0), &[4], "std must be above 0");
    refused(truncated(0.0, 1.0, 2.0, -2.0), &[4], "a below b");
    refused(truncated(9.0, 1.0, -2.0, 2.0), &[4], "more than 2 standard deviations outside [a, b]");
}

/// A model whose layers have initializers other than the default.
#[derive(Module)]
struct Net {
    #[hparam(default = 0.02)]
    std: f64,
    #[layer(linear(5, 3, weight_init = trunc_normal(0.0, std), bias_init = zeros))]
    first: Linear,
    #[layer(conv2d(3, 4, 3, bias = false, weight_init = kaiming_normal(mode = fan_out, nonlinearity = relu)))]
    second: Conv2d,
    #[layer(linear(4, 2))]
    third: Linear,
}

/// Initializers in attributes give the values that torch gives if nn.init is called on each
/// parameter after the layers were built.
#[test]
fn attributes_set_initializers_of_layers() -> Result<()> {
    let oracle = oracle!("init.json");
    let _section = seeded(0);
    let net = Net::builder().build()?;
    let own = parameters(&net);
    assert_eq!(own.len(), oracle["layers"].as_object().expect("parameters").len());
    for parameter in own {
        assert!(parameter.tensor.requires_grad());
        let (name, tensor) = (&parameter.name, &parameter.tensor);
        let expected = text(&oracle["layers"], name);
        if name == "first.weight" {
            // `trunc_normal` uses MKL's erfinv, whose last digits depend on the CPU.
            let expected = from_bits(Kind::Float, expected).view_as(tensor);
            assert!(relative(tensor, &expected) < 1e-5, "{name}");
        } else {
            assert_bits(tensor, expected, name);
        }
    }
    Ok(())
}

/// A model that gives an initializer for `bias`, a parameter that its layer does not have.
#[derive(Module)]
struct WithoutBias {
    #[layer(linear(5, 3, bias = false, bias_init = zeros))]
    fc: Linear,
}

#[test]
fn initializers_of_missing_parameters_are_refused() {
    assert_eq!(
        message(WithoutBias::builder().build()),
        "`bias_init`: this linear has no parameter `bias`; it has `weight`"
    );
}
