//! Compiles and runs the structs of `tests/expand`. A test of amp-derive compares the code that is
//! generated for them with recorded code.

#[path = "../expand/block.rs"]
mod block;
#[path = "../expand/generic.rs"]
mod generic;
#[path = "../expand/mixed_precision_demo.rs"]
mod mixed_precision_demo;
#[path = "../expand/regions.rs"]
mod regions;

use amp_core::{
    Hyperparameters,
    nn::named_tensors,
    precision::Policy,
    prelude::*,
    tch::{Device, Kind},
};
use serde_json::json;

fn cpu(precision: Precision) -> Context {
    Context::new(Policy::new(precision, Device::Cpu), true)
}

fn values(value: serde_json::Value) -> Hyperparameters {
    serde_json::from_value(value).expect("an object")
}

#[test]
fn parameters_have_pytorch_names_in_order() {
    let model = mixed_precision_demo::MixedPrecisionDemo::builder();
    let model = model.input_size(8).hidden_size(4).build().expect("a model");
    let names: Vec<String> = named_tensors(&model).into_iter().map(|(name, ..)| name).collect();
    let start = ["weight", "bias"].map(|name| format!("model.0.{name}"));
    assert_eq!(names[..2], start);
    assert_eq!(names.last().map(String::as_str), Some("model.12.bias"));
}

#[test]
fn hyperparameters_are_set_and_read_by_name() {
    let given = values(json!({ "num_classes": 7, "weight": 2.0 }));
    let builder = regions::Regions::builder(10).hyperparameters(&given).expect("known names");
    assert_eq!(builder.build().expect("a model").hyperparameters(), given);

    let refused = |value| {
        let builder = regions::Regions::builder(10).hyperparameters(&values(value));
        builder.err().expect("an error").to_string()
    };
    assert_eq!(
        refused(json!({ "wieght": 2.0 })),
        "unknown hyperparameter `wieght`: expected one of num_classes, weight"
    );
    assert_eq!(
        refused(json!({ "num_classes": "ten" })),
        "hyperparameter `num_classes` = \"ten\": invalid type: string \"ten\", expected i64"
    );
}

#[test]
fn regions_apply_in_an_own_forward() {
    let model = regions::Regions::builder(10).build().expect("a model");
    let _section = amp_core::random::seeded(0).expect("libtorch takes a seed");
    let input = Tensor::randn([3, 64], (Kind::Float, Device::Cpu));
    let output = model.forward(&input, &cpu(Precision::F16Mixed)).expect("an output");
    assert_eq!((output.size(), output.kind()), (vec![3, 10], Kind::Float), "the head runs in f32");
}

#[test]
fn given_optional_and_repeated_layers_are_built() {
    let builder = generic::Generic::<_, u8>::builder(Relu);
    let model = builder.depth(2).norm(false).build().expect("a model");
    assert_eq!((model.many.len(), model.maybe.is_some(), model.losses), (2, false, vec![0.0; 2]));
}

#[test]
fn blocks_can_be_nested() {
    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Net {
        #[layer(block::Residual::builder(4).dropout(0.5).build()?)]
        first: block::Residual,
        #[layer(repeat(2, |_| block::Residual::builder(4).build()?))]
        r#loop: Vec<block::Residual>,
    }
    let model = Net::builder().build().expect("a model");
    let names: Vec<String> = named_tensors(&model).into_iter().map(|(name, ..)| name).collect();
    let expected = ["first.inner.0", "loop.0.inner.0", "loop.1.inner.0"];
    let expected = expected.iter().flat_map(|at| ["weight", "bias"].map(|n| format!("{at}.{n}")));
    assert_eq!(names, expected.collect::<Vec<_>>());
}

#[test]
#[deny(deprecated)]
fn an_allow_attribute_silences_the_advice() {
    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[optimizer(adamw, lr = 1e-3, eps = 1e-8)]
    #[allow(deprecated)]
    struct Net {
        #[layer(linear(4, 2))]
        model: Linear,
    }
    assert!(Net::builder().build().is_ok());
}

/// A module that uses usual names, such as `Option`, `name` and `loss`, for its own structs and
/// fields, and in which no trait is in scope.
#[no_implicit_prelude]
mod hostile {
    use ::amp_core::{LightningModule, Module, nn};

    #[derive(Module)]
    #[forward(|input| output(&loss(input)?))]
    pub(crate) struct Option {
        #[hparam]
        name: i64,
        #[layer(linear(name, name))]
        output: nn::Linear,
        #[layer(relu)]
        loss: nn::Relu,
    }

    #[derive(LightningModule)]
    #[loss(with = |batch, step| loss(batch, step))]
    #[metric(f1, num_classes = self.values)]
    #[optimizer(sgd, lr = lr(self))]
    pub(crate) struct Result {
        #[hparam(default = 4)]
        values: i64,
        #[hparam(default)]
        builder: i64,
        #[layer(sequential(linear(values, values), identity))]
        visitor: nn::Sequential,
        #[layer(repeat(1, |name| Option::builder(values + name).build()?))]
        layers: ::std::vec::Vec<Option>,
        #[layer(optional(builder > 0, relu))]
        config: ::core::option::Option<nn::Relu>,
    }

    fn loss(a: &::amp_core::tch::Tensor, b: &::amp_core::tch::Tensor) -> Loss {
        ::amp_core::loss::mse_loss(a, b)
    }

    type Loss = ::amp_core::Result<::amp_core::tch::Tensor>;

    fn lr(of: &Result) -> f64 {
        of.values as f64
    }
}

#[test]
fn names_of_the_user_do_not_clash_with_generated_names() {
    let model = hostile::Result::builder().values(2).builder(3).build().expect("a model");
    let names: Vec<String> = named_tensors(&model).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names[2..], ["layers.0.output.weight", "layers.0.output.bias"]);
}
