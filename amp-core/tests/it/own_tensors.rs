//! Tests of parameters and buffers that are fields of a derived module.

use amp_core::{
    Module, Result,
    nn::{self, Context, Init, Linear, Role, named_tensors},
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{message, seeded};

/// A module with its own parameters (`position` and `given`) and buffers (`scale` and `order`).
#[derive(Module)]
#[forward(|x| {
    let x = x.f_add(&self.position)?.f_mul(&self.scale)?;
    head(&x.f_sub(&self.given)?)
})]
struct Positions {
    #[hparam]
    width: i64,
    #[parameter(shape = [3, width], init = normal(0.5, 0.02))]
    position: Tensor,
    #[layer(linear(width, 2))]
    head: Linear,
    #[buffer(shape = [1], init = full(2.0))]
    scale: Tensor,
    #[parameter(init = Tensor::f_from_slice(&[1.0_f32; 4])?)]
    given: Tensor,
    #[buffer(init = Tensor::f_arange(3, (Kind::Int64, Device::Cpu))?)]
    order: Tensor,
}

#[test]
fn own_tensors_are_visited_in_order_of_declaration() -> Result<()> {
    let _generator = seeded(3);
    let module = Positions::builder(4).build()?;
    let found: Vec<(String, Role, bool)> = named_tensors(&module)
        .into_iter()
        .map(|(name, tensor, role)| (name, role, tensor.requires_grad()))
        .collect();
    let row = |name: &str, role| (name.to_owned(), role, role == Role::Parameter);
    let expected = [
        row("position", Role::Parameter),
        row("head.weight", Role::Parameter),
        row("head.bias", Role::Parameter),
        row("scale", Role::Buffer),
        row("given", Role::Parameter),
        row("order", Role::Buffer),
    ];
    assert_eq!(found, expected);
    assert_eq!(module.order.size(), [3]);
    Ok(())
}

/// The initial values equal those of libtorch's functions if these are called in the order in which
/// the fields are declared.
#[test]
fn own_tensors_are_drawn_in_order() -> Result<()> {
    let module = {
        let _generator = seeded(3);
        Positions::builder(4).build()?
    };
    let _generator = seeded(3);
    let options = (Kind::Float, Device::Cpu);
    let position = Tensor::f_empty([3, 4], options)?.f_normal_(0.5, 0.02)?;
    let weight = Tensor::f_empty([2, 4], options)?.f_uniform_(-0.5, 0.5)?;
    assert_eq!(module.position, position);
    assert_eq!(*module.head.weight(), weight);
    assert_eq!(module.scale, Tensor::from_slice(&[2.0_f32]));
    Ok(())
}

/// A module's own parameters get gradients. The sum y of all outputs is the sum over j of (x +
/// p)·2·wⱼ plus terms without p, where x is the input, p is `position`, 2 is the value of `scale`,
/// and wⱼ is row j of the head's weight. The gradient dy/dp is therefore 2·Σⱼ wⱼ for every row of
/// p.
#[test]
fn own_parameters_are_trained() -> Result<()> {
    let _generator = seeded(3);
    let module = Positions::builder(4).build()?;
    let cx = Context::new(Policy::new(Precision::F64True, Device::Cpu), true);
    nn::place(&module, cx.policy(), &Default::default())?;
    let x = Tensor::f_ones([3, 4], (Kind::Double, Device::Cpu))?;
    module.forward(&x, &cx)?.f_sum(Kind::Double)?.f_backward()?;
    let expected = (module.head.weight().sum_dim_intlist(0, false, Kind::Double) * 2.0).detach();
    let grad = module.position.grad();
    for row in 0..3 {
        assert!(grad.get(row).allclose(&expected, 1e-12, 0.0, false));
    }
    assert_eq!(grad.kind(), Kind::Double, "the parameter was cast with the model");
    assert!(!module.scale.requires_grad() && module.scale.kind() == Kind::Double);
    Ok(())
}

#[derive(Module)]
#[forward(|x| Ok(x.f_add(&self.shift)?))]
struct Shift {
    #[parameter(init = Tensor::f_from_slice(&[1_i64])?)]
    shift: Tensor,
}

#[test]
fn tensors_that_cannot_be_trained_are_refused() {
    let error = message(Shift::builder().build());
    assert_eq!(
        error,
        "the parameter `shift` is int64: only floating-point numbers can be trained, make it a \
         `#[buffer]` or convert it"
    );
    let flat = Init::XavierUniform { gain: 1.0 }.tensor(&[4], Role::Buffer);
    let text = message(flat);
    assert!(text.starts_with("xavier_uniform: fan_in and fan_out cannot be computed"), "{text}");
}

/// Defines a module with two parameters, of which the second one has the initial value `$second`.
macro_rules! two_parameters {
    ($name:ident, $second:expr) => {
        #[derive(Module)]
        #[forward(|x| Ok(x.f_mul(&self.first)?.f_add(&self.second)?))]
        struct $name {
            #[parameter(init = Tensor::from_slice(&[0.5_f32, -0.5]))]
            first: Tensor,
            #[parameter(init = $second)]
            second: Tensor,
        }
    };
}

two_parameters!(Tied, first.shallow_clone());
two_parameters!(SharedMemory, first.detach());
two_parameters!(SharedPart, first.detach().narrow(0, 1, 1));
two_parameters!(Copied, first.detach().copy());

/// Checks that a parameter with two names is one tensor, as in PyTorch, and keeps its two names
/// after a change of dtype.
#[rstest]
fn a_parameter_with_two_names_is_one_tensor(
    #[values(Precision::F32True, Precision::F64True, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    let module = Tied::builder().build()?;
    nn::place(&module, Policy::new(precision, Device::Cpu), &Default::default())?;
    assert_eq!(nn::parameters(&module).len(), 1);
    let _ = tch::no_grad(|| module.first.shallow_clone().fill_(3.0));
    assert_eq!(module.second.double_value(&[1]), 3.0);
    Ok(())
}

/// Checks that two parameters that share memory are refused: each step would change the memory
/// twice.
#[test]
fn parameters_that_share_memory_are_refused() -> Result<()> {
    let place = |module: &dyn nn::Visit| {
        nn::place(module, Policy::new(Precision::F32True, Device::Cpu), &Default::default())
    };
    for module in
        [&SharedMemory::builder().build()? as &dyn nn::Visit, &SharedPart::builder().build()?]
    {
        let said = message(place(module));
        assert!(
            said.contains("`first` and `second` are different tensors that share memory"),
            "{said}"
        );
    }
    place(&Copied::builder().build()?)
}

/// A module that has only buffers.
#[derive(Module)]
#[forward(|x| Ok(x.f_mul(&self.scale)?))]
struct Scaled {
    #[buffer(init = Tensor::from_slice(&[2.0_f32, 3.0]))]
    scale: Tensor,
}

/// A module without fields.
#[derive(Module)]
#[forward(|x| Ok(x.f_square()?))]
struct Square;

/// Modules without layers and parameters are layers of other modules.
#[derive(Module)]
struct Transformed {
    #[layer(Scaled::builder().build()?)]
    scaled: Scaled,
    #[layer(Square::builder().build()?)]
    square: Square,
}

#[test]
fn modules_need_no_layer_of_their_own() -> Result<()> {
    let module = Transformed::builder().build()?;
    let found: Vec<_> =
        named_tensors(&module).into_iter().map(|(name, _, role)| (name, role)).collect();
    assert_eq!(found, [("scaled.scale".to_owned(), Role::Buffer)]);
    let policy = Policy::new(Precision::F32True, Device::Cpu);
    let output =
        module.forward(&Tensor::from_slice(&[1.0_f32, -1.0]), &Context::new(policy, false))?;
    assert_eq!(output, Tensor::from_slice(&[4.0_f32, 9.0]));
    Ok(())
}
