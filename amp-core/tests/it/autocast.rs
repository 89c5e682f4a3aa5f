//! Tests of autocast regions, which a guard object begins and ends: nested regions, and the cache
//! of cast weights.

use std::{panic, thread};

use amp_core::{
    Result,
    memory::MemoryMeter,
    precision::{AutocastGuard, AutocastState, autocast_state},
    tch::{Device, IndexOp, Kind, Tensor, no_grad},
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::{kind_of, name_of},
    device, message,
    oracle::{oracle, text},
};

const CPU: Device = Device::Cpu;

/// Returns a tensor of positive values below 1. The script that recorded PyTorch's dtypes uses the
/// same values.
pub(crate) fn x(shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f64> = (1..=count).map(|n| n as f64 / (count + 2) as f64).collect();
    Tensor::from_slice(&values).reshape(shape).to_kind(Kind::Float)
}

fn state() -> AutocastState {
    autocast_state(CPU).expect("the state can be read")
}

/// Returns the output dtype of a linear layer with f32 input, in the current autocast state.
fn linear() -> &'static str {
    name_of(x(&[4, 8]).linear(&x(&[3, 8]), None::<&Tensor>).kind())
}

/// Rule 10 of docs/SEMANTICS.md: outside of any autocast region, the autocast state has torch's
/// default values.
#[test]
fn the_defaults_are_torchs() {
    let defaults = &oracle!("autocast_cpu.json")["defaults"];
    let dtype = Some(kind_of(text(defaults, "dtype")));
    assert_eq!(state(), AutocastState { enabled: defaults["enabled"] == 1, dtype });
}

/// Rules 13 and 14 of docs/SEMANTICS.md: before, inside and after nested autocast regions, a linear
/// layer has the output dtype that was recorded from PyTorch, even if a panic ends a region.
/// Gradients of f32 weights and inputs are f32.
#[rstest]
#[case("f16")]
#[case("bf16")]
fn regions_nest_as_torchs(#[case] low: &str) -> Result<()> {
    let expected = &oracle!("autocast_cpu.json")["regions"][low];
    let (kind, outside) = (kind_of(low), state());
    let other = if kind == Kind::Half { Kind::BFloat16 } else { Kind::Half };
    let mut seen = serde_json::Map::new();
    let mut note = |place: &str| seen.insert(place.into(), linear().into());
    note("outside");
    {
        let _low = AutocastGuard::enter(CPU, kind)?;
        note("inside");
        {
            let _off = AutocastGuard::off(CPU)?;
            note("disabled_inside");
        }
        note("after_disabled");
        {
            let _other = AutocastGuard::enter(CPU, other)?;
            note("other_dtype_inside");
        }
        note("after_other_dtype");
        let left = panic::catch_unwind(|| {
            let _off = AutocastGuard::off(CPU);
            panic::resume_unwind(Box::new("a panic that prints nothing"));
        });
        assert!(left.is_err());
        note("after_error_inside");
    }
    note("after");
    let (weight, input) = (x(&[3, 8]).set_requires_grad(true), x(&[4, 8]).set_requires_grad(true));
    let loss = {
        let _low = AutocastGuard::enter(CPU, kind)?;
        input.linear(&weight, None::<&Tensor>).to_kind(Kind::Float).sum(Kind::Float)
    };
    loss.backward();
    seen.insert("weight_gradient".into(), name_of(weight.grad().kind()).into());
    seen.insert("input_gradient".into(), name_of(input.grad().kind()).into());
    assert_eq!(Value::from(seen), *expected);
    assert_eq!(state(), outside);
    Ok(())
}

/// When one of three nested autocast regions (f16 in bf16 in a region without autocast) ends, the
/// autocast state of the region around it is restored.
#[test]
fn every_region_restores_the_one_around_it() -> Result<()> {
    let outside = state();
    let off = AutocastGuard::off(CPU)?;
    let in_off = state();
    let bf16 = AutocastGuard::enter(CPU, Kind::BFloat16)?;
    let in_bf16 = state();
    let f16 = AutocastGuard::enter(CPU, Kind::Half)?;
    assert_eq!(state(), AutocastState { enabled: true, dtype: Some(Kind::Half) });
    drop(f16);
    assert_eq!(state(), in_bf16);
    drop(bf16);
    assert_eq!(state(), in_off);
    assert!(!in_off.enabled);
    drop(off);
    assert_eq!(state(), outside);
    Ok(())
}

/// If the outermost of several autocast regions ends first, as when a `Vec` drops its guards, the
/// original state is restored when all guards have been dropped.
#[test]
fn guards_dropped_in_the_wrong_order_leave_nothing_behind() -> Result<()> {
    let outside = state();
    let mut guards = vec![
        AutocastGuard::enter(CPU, Kind::Half)?,
        AutocastGuard::off(CPU)?,
        AutocastGuard::enter(CPU, Kind::BFloat16)?,
    ];
    let innermost = state();
    drop(guards.remove(0));
    assert_eq!(state(), innermost, "the innermost region continues");
    drop(guards);
    assert_eq!(state(), outside);
    Ok(())
}

/// A panic inside three nested autocast regions ends all of them.
#[test]
fn a_panic_leaves_every_region() {
    let outside = state();
    let left = panic::catch_unwind(|| {
        let _regions = (
            AutocastGuard::enter(CPU, Kind::Half),
            AutocastGuard::enter(CPU, Kind::BFloat16),
            AutocastGuard::off(CPU),
        );
        panic::resume_unwind(Box::new("a panic that prints nothing"));
    });
    assert!(left.is_err());
    assert_eq!(state(), outside);
}

/// Rule 13 of docs/SEMANTICS.md: the autocast state belongs to one thread. While one thread is in
/// an autocast region, another thread computes in f32.
#[test]
fn the_state_belongs_to_one_thread() -> Result<()> {
    let _guard = AutocastGuard::enter(CPU, Kind::Half)?;
    let elsewhere =
        thread::spawn(|| (state().enabled, linear())).join().expect("a thread that reads");
    assert_eq!(elsewhere, (false, "f32"));
    assert_eq!(linear(), "f16");
    Ok(())
}

/// Rule 13 of docs/SEMANTICS.md: cast weights are cached until the autocast region ends, so a
/// weight that changes between two regions is cast again. The f32 weight gets a gradient, although
/// the product reads its cast copy.
#[test]
fn a_weight_changed_between_regions_is_cast_again() -> Result<()> {
    let on = |tensor: Tensor| tensor.to_device(device());
    let (weight, input) = (on(x(&[3, 8])).set_requires_grad(true), on(x(&[4, 8])));
    let run = || -> Result<Tensor> {
        let _outer = AutocastGuard::enter(device(), Kind::BFloat16)?;
        let _inner = AutocastGuard::enter(device(), Kind::BFloat16)?;
        Ok(input.linear(&weight, None::<&Tensor>).to_kind(Kind::Float))
    };
    let before = run()?;
    before.sum(Kind::Float).backward();
    assert!(weight.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
    no_grad(|| weight.shallow_clone().copy_(&(&weight * 2.0)));
    assert_eq!(run()?, before * 2.0);
    Ok(())
}

/// Rule 13 of docs/SEMANTICS.md, pytorch#48049, #65766: a forward pass under `no_grad` leaves no
/// cast weight in the cache. If a later forward pass in the same region reused that copy, the
/// weight would get no gradient, because autograd did not record the cast.
#[test]
fn a_pass_without_gradients_does_not_block_later_gradients() -> Result<()> {
    let on = |tensor: Tensor| tensor.to_device(device());
    let (weight, input) = (on(x(&[3, 8])).set_requires_grad(true), on(x(&[4, 8])));
    let forward = || input.linear(&weight, None::<&Tensor>).to_kind(Kind::Float);
    let loss = {
        let _region = AutocastGuard::enter(device(), Kind::BFloat16)?;
        drop(no_grad(forward));
        forward().sum(Kind::Float)
    };
    loss.backward();
    // Each row of the gradient d/dW Σ (x Wᵀ) consists of the column sums of x, up to the rounding
    // of bf16 (8 binary digits).
    let exact = input.sum_dim_intlist([0].as_slice(), false, Kind::Float).expand_as(&weight);
    assert!(weight.grad().allclose(&exact, 2e-2, 0.0, false), "{}", weight.grad());
    Ok(())
}

/// Rule 13 of docs/SEMANTICS.md, pytorch#105211: cast weights are freed when their autocast region
/// ends. Four regions in sequence therefore need as much memory as one region: the bf16 copy of one
/// weight, 128 KiB, and little else.
#[test]
fn cast_weights_are_freed_with_their_region() -> Result<()> {
    let options = (Kind::Float, device());
    let weights: Vec<Tensor> =
        (0..4).map(|_| Tensor::ones([256, 256], options).set_requires_grad(true)).collect();
    let input = Tensor::ones([1, 256], options);
    let pass = |weight: &Tensor| -> Result<()> {
        let _region = AutocastGuard::enter(device(), Kind::BFloat16)?;
        drop(input.linear(weight, None::<&Tensor>));
        Ok(())
    };
    // Libraries allocate memory in the first forward and backward pass and never free it. This pass
    // runs before the measurement, so that this memory is not counted.
    pass(&weights[0])?;
    let peak = |count: usize| -> Result<i64> {
        let meter = MemoryMeter::start(device())?;
        weights.iter().take(count).try_for_each(pass)?;
        Ok(meter.read()?.peak_allocated as i64)
    };
    // All threads share libtorch's cache of cast weights. When an autocast region on another thread
    // ends, this thread's cast weights may be freed by that thread. The meter does not see this and
    // reports too high a peak. Therefore the lowest of eight measurements counts.
    let least = |count: usize| -> Result<i64> {
        (0..8).try_fold(i64::MAX, |least, _| Ok(least.min(peak(count)?)))
    };
    let (one, four) = (least(1)?, least(4)?);
    assert!(one >= 128 << 10, "the measured peak does not include the bf16 copy: {one} bytes");
    assert!(four - one < 64 << 10, "{four} bytes for four regions, {one} bytes for one");
    Ok(())
}

/// A dtype that autocast does not support is an error, and the autocast state does not change.
/// (torch prints a warning and computes in f32.)
#[rstest]
#[case(Kind::Float, "float32")]
#[case(Kind::Double, "float64")]
#[case(Kind::Int64, "int64")]
fn a_dtype_autocast_does_not_have_is_refused(#[case] kind: Kind, #[case] name: &str) {
    let outside = state();
    let said = message(AutocastGuard::enter(CPU, kind));
    assert_eq!(said, format!("autocast runs in float16 or bfloat16, not {name}"));
    assert_eq!(state(), outside);
}

/// Autocast changes values, not only dtypes: in bf16, the input 1 + 2⁻⁹ is rounded to 1, so the
/// product is 1.
#[test]
fn products_are_rounded_to_the_low_dtype() -> Result<()> {
    let (one, small) = (Tensor::ones([1, 1], (Kind::Float, CPU)), 1.0 + 2.0_f64.powi(-9));
    let product = || (&one * small).matmul(&one).to_kind(Kind::Double).i((0, 0)).double_value(&[]);
    assert_eq!(product(), small);
    let _guard = AutocastGuard::enter(CPU, Kind::BFloat16)?;
    assert_eq!(product(), 1.0);
    Ok(())
}
