//! Tests of wrong uses of GradScaler, of saving and restoring it, and of the limits of its range.

use amp_core::{
    Result,
    optim::{BuildOptimizer, Optimizer, Sgd},
    precision::{
        GradScaler, GradScalerConfig, Gradients, ScaledLoss, ScalerState, StepOutcome, Unscaled,
    },
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    message,
    oracle::{integer, list, number, oracle, text},
    parameter, set_gradients,
};

/// Builds SGD for the parameters `p0`, `p1`, …, one for each of these dtypes. The elements of the
/// parameters are ones.
fn optimizer(kinds: &[Kind]) -> Result<Box<dyn Optimizer>> {
    let ones = |kind: &Kind| Tensor::ones([2], (*kind, Device::Cpu));
    let parameters =
        kinds.iter().enumerate().map(|(at, kind)| parameter(&format!("p{at}"), &ones(kind)));
    Sgd { lr: 0.5, ..Default::default() }.build(parameters.collect())
}

fn scaler() -> Result<GradScaler> {
    GradScaler::new(Device::Cpu, GradScalerConfig::default())
}

/// Sets every element of every parameter's gradient to this value.
fn backward(optimizer: &mut dyn Optimizer, value: f64) {
    let grads: Vec<_> =
        optimizer.parameters().iter().map(|p| Some(p.tensor.full_like(value).detach())).collect();
    set_gradients(optimizer, &grads);
}

fn unscaled(scaler: &mut GradScaler, optimizer: &dyn Optimizer) -> Result<Gradients<Unscaled>> {
    let gradients = scaler.gradients(optimizer)?;
    scaler.unscale(gradients)
}

/// Rules 2 and 9 of docs/SEMANTICS.md: if torch refuses a wrong use of GradScaler, this crate
/// refuses it too, at the same call or at an earlier one. This crate is stricter in one point:
/// torch requires that a loss was scaled only before the first step, and this crate before every
/// step. Misuse that Rust's types exclude is left out, and listed in the next test.
#[rstest]
#[case("unscale_twice", "already unscaled since the last update")]
#[case("unscale_twice_after_an_update", "run backward on scale(loss)")]
#[case("step_twice", "already unscaled since the last update")]
#[case("step_twice_explicit_unscale", "already unscaled since the last update")]
#[case("step_twice_after_a_skip", "already unscaled since the last update")]
#[case("unscale_after_step", "already unscaled since the last update")]
#[case("step_without_gradients", "no parameter has a gradient")]
#[case("step_without_gradients_explicit_unscale", "no parameter has a gradient")]
#[case("update_without_step", "no inf checks were recorded")]
#[case("update_without_gradients", "no parameter has a gradient")]
#[case("update_twice", "no inf checks were recorded")]
#[case("unscale_before_scale", "run backward on scale(loss)")]
#[case("step_before_scale", "run backward on scale(loss)")]
#[case("update_before_scale", "no inf checks were recorded")]
#[case("unscale_f16_gradients", "`p0` has f16 gradients")]
#[case("step_f16_gradients", "`p0` has f16 gradients")]
#[case("load_empty_state", "missing field `scale`")]
#[case("growth_factor_one", "the growth factor is 1, but must be above 1")]
#[case("backoff_factor_one", "the backoff factor is 1, but must be below 1")]
fn misuse_that_torch_refuses_is_refused(#[case] name: &str, #[case] says: &str) -> Result<()> {
    let oracle = oracle!("grad_scaler.json");
    let case = list(&oracle, "misuse").iter().find(|case| text(case, "name") == name);
    let calls: Vec<&str> = list(case.expect("recorded"), "calls")
        .iter()
        .map(|call| call.as_str().expect("a name"))
        .collect();
    let half = calls.contains(&"half");
    let mut optimizer = optimizer(&[if half { Kind::Half } else { Kind::Float }])?;
    let (mut scaler, mut held) = (scaler()?, None);
    let mut outcome = Ok(());
    for call in &calls {
        outcome = outcome.and_then(|()| perform(call, &mut scaler, optimizer.as_mut(), &mut held));
    }
    let said = message(outcome);
    assert!(said.contains(says), "{said}");
    Ok(())
}

/// Rule 9 of docs/SEMANTICS.md: the other wrong uses that torch refuses cannot be written in Rust.
/// A step accepts no closure, so LBFGS does not exist. A loss is always a tensor. An update accepts
/// no scale. Checks that this test and the previous one together cover every recorded case.
#[test]
fn the_types_exclude_all_other_misuse() {
    const REFUSED: usize = 19;
    let _step: fn(&mut dyn Optimizer) -> Result<()> = |optimizer| optimizer.step();
    let _scale: fn(&GradScaler, &Tensor) -> Result<ScaledLoss> = GradScaler::scale;
    let _update: fn(&mut GradScaler) -> Result<()> = GradScaler::update;
    let ruled_out = ["step_with_closure", "lbfgs", "scale_of_a_number", "f64_new_scale_of_two"];
    let oracle = oracle!("grad_scaler.json");
    let misuse = list(&oracle, "misuse");
    let names: Vec<&str> = misuse.iter().map(|case| text(case, "name")).collect();
    assert!(ruled_out.iter().all(|name| names.contains(name)));
    assert_eq!(names.len(), REFUSED + ruled_out.len());
}

fn perform(
    call: &str,
    scaler: &mut GradScaler,
    optimizer: &mut dyn Optimizer,
    held: &mut Option<Gradients<Unscaled>>,
) -> Result<()> {
    let constants = GradScalerConfig::default();
    match call {
        "half" => Ok(()),
        "scale" => scaler.scale(&Tensor::from(1.0_f32)).map(drop),
        "backward" => {
            backward(optimizer, 1.0);
            Ok(())
        }
        "backward_inf" => {
            backward(optimizer, f64::INFINITY);
            Ok(())
        }
        "unscale_" => unscaled(scaler, optimizer).map(|gradients| *held = Some(gradients)),
        "step" => {
            let gradients = match held.take() {
                Some(gradients) => gradients,
                None => unscaled(scaler, optimizer)?,
            };
            scaler.step(gradients, optimizer).map(drop)
        }
        "update" => scaler.update(),
        "load_empty" => serde_json::from_str::<ScalerState>("{}")
            .map(drop)
            .map_err(|error| amp_core::Error::config(error.to_string())),
        "new_growth_1.0" => {
            let config = GradScalerConfig { growth_factor: 1.0, ..constants };
            GradScaler::new(Device::Cpu, config).map(drop)
        }
        "new_backoff_1.0" => {
            let config = GradScalerConfig { backoff_factor: 1.0, ..constants };
            GradScaler::new(Device::Cpu, config).map(drop)
        }
        other => panic!("no call is named {other}"),
    }
}

/// If the scaled gradients of an optimizer are taken twice, only the first ones can be unscaled.
/// Unscaling the second ones is refused, so that gradients are divided by the loss scale only once.
#[test]
fn gradients_taken_twice_are_unscaled_once() -> Result<()> {
    let (mut scaler, mut optimizer) = (scaler()?, optimizer(&[Kind::Float])?);
    let _loss = scaler.scale(&Tensor::from(1.0_f32))?;
    backward(optimizer.as_mut(), 65536.0);
    let (first, second) =
        (scaler.gradients(optimizer.as_ref())?, scaler.gradients(optimizer.as_ref())?);
    let _kept = scaler.unscale(first)?;
    assert!(message(scaler.unscale(second)).contains("already unscaled"));
    assert_eq!(optimizer.parameters()[0].tensor.grad().double_value(&[0]), 1.0);
    Ok(())
}

/// A step with gradients that were unscaled before the last update of the scaler is refused,
/// because they belong to an earlier iteration.
#[test]
fn gradients_kept_beyond_an_update_are_refused() -> Result<()> {
    let (mut scaler, mut optimizer) = (scaler()?, optimizer(&[Kind::Float])?);
    let _loss = scaler.scale(&Tensor::from(1.0_f32))?;
    backward(optimizer.as_mut(), 1.0);
    let kept = unscaled(&mut scaler, optimizer.as_ref())?;
    scaler.update()?;
    let said = message(scaler.step(kept, optimizer.as_mut()));
    assert!(said.contains("unscaled before the last `update`"), "{said}");
    Ok(())
}

#[test]
fn gradients_of_another_optimizer_are_refused() -> Result<()> {
    let mut scaler = scaler()?;
    let (mut one, mut other) = (optimizer(&[Kind::Float])?, optimizer(&[Kind::Float])?);
    let _loss = scaler.scale(&Tensor::from(1.0_f32))?;
    backward(one.as_mut(), 1.0);
    let gradients = unscaled(&mut scaler, one.as_ref())?;
    let said = message(scaler.step(gradients, other.as_mut()));
    assert!(said.contains("belong to another optimizer"), "{said}");
    Ok(())
}

/// Rule 4 of docs/SEMANTICS.md: the outcome of a skipped step names the first parameter with a
/// non-finite gradient, in the order of declaration.
#[test]
fn a_skip_names_the_first_non_finite_parameter() -> Result<()> {
    let (mut scaler, mut optimizer) = (scaler()?, optimizer(&[Kind::Float; 4])?);
    let _loss = scaler.scale(&Tensor::from(1.0_f32))?;
    let grads = [1.0, f32::INFINITY, f32::NAN, 1.0].map(|x| Some(Tensor::from_slice(&[1.0, x])));
    set_gradients(optimizer.as_mut(), &grads);
    let gradients = unscaled(&mut scaler, optimizer.as_ref())?;
    let outcome = scaler.step(gradients, optimizer.as_mut())?;
    assert_eq!(outcome, StepOutcome::Skipped { culprit: Some("p1".into()) });
    assert_eq!(optimizer.parameters()[0].tensor.double_value(&[0]), 1.0, "the weight is unchanged");
    Ok(())
}

/// Gradients have the names of their parameters. Parameters without a gradient are omitted.
#[test]
fn gradients_have_their_parameters_names() -> Result<()> {
    let (mut scaler, mut optimizer) = (scaler()?, optimizer(&[Kind::Float; 5])?);
    let _loss = scaler.scale(&Tensor::from(1.0_f32))?;
    let given = |x: f32| Some(Tensor::from_slice(&[x, 65536.0]));
    let grads = [None, given(131_072.0), None, given(f32::NAN), given(65536.0)];
    set_gradients(optimizer.as_mut(), &grads);
    let gradients = unscaled(&mut scaler, optimizer.as_ref())?;
    let named = gradients.named().map(|(name, grad)| (name, grad.double_value(&[0])));
    let named: Vec<_> = named.filter(|(_, first)| first.is_finite()).collect();
    assert_eq!(named, [("p1", 2.0), ("p4", 1.0)]);
    let outcome = scaler.step(gradients, optimizer.as_mut())?;
    assert_eq!(outcome, StepOutcome::Skipped { culprit: Some("p3".into()) });
    Ok(())
}

/// `Gradients` remain valid after the optimizer has cleared the parameters' gradients.
#[test]
fn gradients_outlive_those_of_their_parameters() -> Result<()> {
    let (mut scaler, mut optimizer) = (scaler()?, optimizer(&[Kind::Float; 2])?);
    let _loss = scaler.scale(&Tensor::from(1.0_f32))?;
    backward(optimizer.as_mut(), 65536.0);
    let gradients = unscaled(&mut scaler, optimizer.as_ref())?;
    optimizer.zero_grad()?;
    drop(optimizer);
    let named: Vec<_> =
        gradients.named().map(|(name, grad)| (name, grad.double_value(&[0]))).collect();
    assert_eq!(named, [("p0", 1.0), ("p1", 1.0)]);
    Ok(())
}

/// Rule 7 of docs/SEMANTICS.md: f16 gradients are refused, and the error names the parameter. bf16
/// and f64 gradients are unscaled.
#[test]
fn f16_gradients_are_refused_and_bf16_gradients_accepted() -> Result<()> {
    let (mut scaler, mut mixed) = (scaler()?, optimizer(&[Kind::Float, Kind::Half])?);
    let _loss = scaler.scale(&Tensor::from(1.0_f32))?;
    backward(mixed.as_mut(), 1.0);
    assert!(message(unscaled(&mut scaler, mixed.as_ref())).contains("`p1` has f16 gradients"));

    let mut wide = optimizer(&[Kind::BFloat16, Kind::Double])?;
    backward(wide.as_mut(), 65536.0);
    let _kept = unscaled(&mut scaler, wide.as_ref())?;
    for parameter in wide.parameters().iter() {
        assert_eq!(parameter.tensor.grad().double_value(&[1]), 1.0);
    }
    Ok(())
}

/// Rule 8 of docs/SEMANTICS.md: the saved state has the same keys as in PyTorch. A scaler that
/// loads this state behaves like the scaler that saved it.
#[test]
fn a_restored_scaler_continues_like_the_saved_one() -> Result<()> {
    let oracle = &oracle!("grad_scaler.json")["state_dict"];
    let arguments = &oracle["arguments"];
    let mut first = GradScaler::new(
        Device::Cpu,
        GradScalerConfig {
            init_scale: number(arguments, "init_scale"),
            growth_factor: number(arguments, "growth_factor"),
            backoff_factor: number(arguments, "backoff_factor"),
            growth_interval: integer(arguments, "growth_interval"),
        },
    )?;
    iterate(&mut first, oracle, "before")?;
    let saved = serde_json::to_string(&first.state()).expect("a state is JSON");
    let keys: serde_json::Map<_, _> = serde_json::from_str(&saved).expect("an object");
    let torchs = oracle["saved"].as_object().expect("an object");
    assert!(keys.len() == torchs.len() && torchs.keys().all(|key| keys.contains_key(key)));

    let mut second = scaler()?;
    second.load_state(serde_json::from_str(&saved).expect("what was written"))?;
    iterate(&mut first, oracle, "after")?;
    iterate(&mut second, oracle, "after")
}

/// Runs one iteration for each recorded flag. If the flag is 1, the gradients are infinite. Asserts
/// that the state after each iteration equals torch's.
fn iterate(scaler: &mut GradScaler, oracle: &serde_json::Value, part: &str) -> Result<()> {
    let mut optimizer = optimizer(&[Kind::Float])?;
    let states = list(oracle, &format!("states_{part}"));
    for (flag, state) in list(oracle, &format!("infs_{part}")).iter().zip(states) {
        let _loss = scaler.scale(&Tensor::from(1.0_f32))?;
        backward(optimizer.as_mut(), if flag == 1 { f64::INFINITY } else { 1.0 });
        let gradients = unscaled(scaler, optimizer.as_ref())?;
        let _outcome = scaler.step(gradients, optimizer.as_mut())?;
        scaler.update()?;
        let expected = ScalerState {
            scale: number(state, "scale"),
            growth_factor: number(state, "growth_factor"),
            backoff_factor: number(state, "backoff_factor"),
            growth_interval: integer(state, "growth_interval"),
            growth_tracker: integer(state, "_growth_tracker") as i32,
        };
        assert_eq!(scaler.state(), expected);
    }
    Ok(())
}

/// Rule 1 of docs/SEMANTICS.md: a new scaler has PyTorch's constants.
#[test]
fn the_defaults_are_torchs() -> Result<()> {
    let fresh = &oracle!("grad_scaler.json")["state_dict"]["fresh"];
    let state = scaler()?.state();
    assert_eq!(state.scale, number(fresh, "scale"));
    assert_eq!(state.growth_factor, number(fresh, "growth_factor"));
    assert_eq!(state.backoff_factor, number(fresh, "backoff_factor"));
    assert_eq!(state.growth_interval, integer(fresh, "growth_interval"));
    assert_eq!(i64::from(state.growth_tracker), integer(fresh, "_growth_tracker"));
    Ok(())
}

/// A loss scale by which gradients cannot be divided is refused by every function that accepts a
/// loss scale.
#[rstest]
#[case(0.0)]
#[case(-1.0)]
#[case(f64::NAN)]
#[case(f64::INFINITY)]
#[case(1e39)]
#[case(1e-46)]
fn a_scale_that_is_not_a_positive_f32_is_refused(#[case] scale: f64) -> Result<()> {
    let config = GradScalerConfig { init_scale: scale, ..Default::default() };
    let refusal = "but must be positive and finite in float32";
    assert!(message(GradScaler::new(Device::Cpu, config)).contains(refusal));
    let mut scaler = scaler()?;
    assert!(message(scaler.set_scale(scale)).contains(refusal));
    let state = ScalerState { scale, ..scaler.state() };
    assert!(message(scaler.load_state(state)).contains(refusal));
    assert_eq!(scaler.read_device()?, (65536.0, 0), "the state on the device did not change");
    Ok(())
}

#[rstest]
#[case(GradScalerConfig { growth_factor: f64::NAN, ..Default::default() }, "growth factor")]
#[case(GradScalerConfig { growth_factor: f64::INFINITY, ..Default::default() }, "growth factor")]
#[case(GradScalerConfig { backoff_factor: 0.0, ..Default::default() }, "backoff factor")]
#[case(GradScalerConfig { backoff_factor: f64::NAN, ..Default::default() }, "backoff factor")]
#[case(GradScalerConfig { growth_interval: 0, ..Default::default() }, "growth interval")]
fn constants_out_of_range_are_refused(#[case] config: GradScalerConfig, #[case] names: &str) {
    assert!(message(GradScaler::new(Device::Cpu, config)).contains(names));
}

/// A disabled scaler has the same methods as an enabled one. It does not scale the loss and never
/// skips a step, whatever the gradients are.
#[test]
fn a_disabled_scaler_only_steps() -> Result<()> {
    let (mut scaler, mut optimizer) =
        (GradScaler::disabled(Device::Cpu)?, optimizer(&[Kind::Half])?);
    for _ in 0..2 {
        backward(optimizer.as_mut(), 1.0);
        let gradients = unscaled(&mut scaler, optimizer.as_ref())?;
        assert_eq!(scaler.step(gradients, optimizer.as_mut())?, StepOutcome::Applied);
        scaler.update()?;
    }
    assert_eq!(
        optimizer.parameters()[0].tensor.double_value(&[0]),
        0.0,
        "each of the two steps subtracts 1/2"
    );
    assert_eq!((scaler.scale_value(), scaler.is_enabled()), (1.0, false));
    Ok(())
}

/// Rule 5 of docs/SEMANTICS.md: the gradient of an f16 loss is the loss scale itself, and 65536 is
/// infinite in f16. The first step is therefore skipped. Steps with a loss scale of 32768 or less
/// are applied.
#[test]
fn an_f16_loss_costs_one_skipped_step() -> Result<()> {
    let (mut scaler, mut optimizer) = (scaler()?, optimizer(&[Kind::Float])?);
    for expected in [StepOutcome::Skipped { culprit: Some("p0".into()) }, StepOutcome::Applied] {
        optimizer.zero_grad()?;
        let loss = optimizer.parameters()[0].tensor.to_kind(Kind::Half).sum(Kind::Half);
        scaler.scale(&loss)?.backward()?;
        let gradients = unscaled(&mut scaler, optimizer.as_ref())?;
        assert_eq!(scaler.step(gradients, optimizer.as_mut())?, expected);
        scaler.update()?;
    }
    assert_eq!(scaler.scale_value(), 32768.0);
    Ok(())
}
