//! Tests that mistakes in a hand-written `visit`, and invalid precision overrides, are refused.

use std::collections::BTreeMap;

use amp_core::{
    Error, Module, Result, Trainer, TrainerConfig,
    nn::{self, Context, Linear, Relu, Role, Sequential, Visit, Visitor, visit_child},
    optim::{OptimizerConfig, Sgd},
    precision::{Policy, Precision, Region},
    tch::{Device, Kind, Tensor},
    weights,
};
use rstest::rstest;

use crate::support::{
    message,
    model::{Model, constant, linear, same},
    seeded,
};

/// A layer whose `visit` passes the given tensors to the visitor, each with its name and role.
struct Tensors(Vec<(&'static str, Tensor, Role)>);

impl Visit for Tensors {
    fn visit(&self, visitor: &mut dyn Visitor) {
        for (name, tensor, role) in &self.0 {
            visitor.tensor(name, tensor, *role);
        }
    }
}

impl Module for Tensors {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_mul(&self.0[0].1)?)
    }
}

fn weight() -> Tensor {
    Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true)
}

fn place(module: &impl Visit, islands: &BTreeMap<String, Region>) -> Result<()> {
    nn::place(module, Policy::new(Precision::Bf16Mixed, Device::Cpu), islands)
}

#[test]
fn two_tensors_of_one_name_are_refused() -> Result<()> {
    let layer =
        Tensors(vec![("weight", weight(), Role::Parameter), ("weight", weight(), Role::Parameter)]);
    let refused = "two tensors are called `weight`: give each a name of its own in `visit`";
    assert_eq!(message(place(&layer, &BTreeMap::new())), refused);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let saved = weights::save(&layer, &folder.path().join("weights"), BTreeMap::new());
    assert_eq!(message(saved), refused);
    let one = weight();
    let twice = Tensors(vec![
        ("weight", one.shallow_clone(), Role::Parameter),
        ("weight", one, Role::Parameter),
    ]);
    place(&twice, &BTreeMap::new())
}

#[test]
fn an_integer_parameter_is_refused() {
    let counts = Tensor::from_slice(&[1_i64, 2, 3]);
    let layer = Tensors(vec![("counts", counts.shallow_clone(), Role::Parameter)]);
    assert_eq!(
        message(place(&layer, &BTreeMap::new())),
        "the parameter `counts` is int64: only floating-point numbers can be trained, visit it as \
         a `Role::Buffer` or convert it"
    );
    let layer = Tensors(vec![("counts", counts, Role::Buffer)]);
    assert!(place(&layer, &BTreeMap::new()).is_ok());
}

fn fit(layer: impl Module + 'static, config: TrainerConfig) -> Result<()> {
    let sgd = |_: &_| OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() });
    let mut model = Model::regression(layer, sgd);
    Trainer::new(config).fit(&mut model, &same(constant(4, 3, 0.0)?, 2)?).map(drop)
}

/// If a parameter requires no gradient, training it is refused, because the optimizer would never
/// change it.
#[test]
fn a_parameter_without_a_gradient_is_refused_when_it_is_trained() {
    let _generator = seeded(0);
    let config =
        || TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, Device::Cpu) };
    let frozen = weight().detach();
    let layer = Tensors(vec![("weight", frozen.shallow_clone(), Role::Parameter)]);
    assert_eq!(
        message(fit(layer, config())),
        "the parameter `model.weight` requires no gradient and would never be trained: make it \
         with `f_set_requires_grad(true)`, or visit it as a `Role::Buffer`"
    );
    let layer =
        Tensors(vec![("weight", weight(), Role::Parameter), ("scale", frozen, Role::Buffer)]);
    assert!(fit(layer, config()).is_ok());
}

/// A model with a body of two layers, and a head.
struct Net {
    body: Sequential,
    head: Linear,
}

impl Visit for Net {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "body", None, &self.body);
        visit_child(visitor, "head", None, &self.head);
    }
}

#[rstest]
#[case::misspelt("haed", "did you mean `head`?")]
#[case::another_place("body.4", "did you mean `body.0`?")]
#[case::too_short("net.head", "did you mean `head`?")]
#[case::far("decoder.attention", "a precision override must name a module, for example `body.0`")]
#[case::a_tensor("head.weight", "a precision override must name a module, for example `body.0`")]
fn an_override_that_names_no_module_is_refused(
    #[case] path: &str,
    #[case] instead: &str,
) -> Result<()> {
    let _generator = seeded(0);
    let layers: Vec<Box<dyn Module>> = vec![Box::new(linear(3, 3)?), Box::new(Relu)];
    let net = Net { body: Sequential::new(layers), head: linear(3, 1)? };
    let islands = |path: &str| BTreeMap::from([(path.to_owned(), Region::Fp32)]);
    let refused = place(&net, &islands(path));
    assert!(
        matches!(refused, Err(Error::Config(_))),
        "a configuration error, for which commands exit with status 2"
    );
    assert_eq!(message(refused), format!("the model has no module `{path}`: {instead}"));
    for path in ["body", "body.1", "head"] {
        place(&net, &islands(path))?;
    }
    Ok(())
}

#[test]
fn the_trainer_refuses_a_misspelt_override() -> Result<()> {
    let islands = BTreeMap::from([("modle".to_owned(), Region::Fp32)]);
    let config = TrainerConfig::new(Precision::Bf16Mixed, Device::Cpu)
        .with(|config| config.numerics.overrides = islands.into());
    let _generator = seeded(0);
    assert_eq!(
        message(fit(linear(3, 3)?, config)),
        "the model has no module `modle`: did you mean `model`?"
    );
    Ok(())
}
