//! The autocast guard and what runs in which dtype under it, on the CPU.

use std::{panic, thread};

use amp_core::{
    Result,
    precision::{AutocastGuard, AutocastState, autocast_state},
    tch::{Device, IndexOp, Kind, Reduction, Tensor, no_grad},
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::{kind_of, name_of},
    message,
    oracle::{oracle, text},
};

const CPU: Device = Device::Cpu;

/// Positive values below 1, as the recorder has them.
fn x(shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f64> = (1..=count).map(|n| n as f64 / (count + 2) as f64).collect();
    Tensor::from_slice(&values).reshape(shape).to_kind(Kind::Float)
}

fn state() -> AutocastState {
    autocast_state(CPU).expect("the state can be read")
}

/// The dtype that a linear layer on f32 puts out here and now.
fn linear() -> &'static str {
    name_of(x(&[4, 8]).linear(&x(&[3, 8]), None::<&Tensor>).kind())
}

/// [10]: what holds outside of any region.
#[test]
fn the_defaults_are_torchs() {
    let defaults = &oracle!("autocast_cpu.json")["defaults"];
    let dtype = Some(kind_of(text(defaults, "dtype")));
    assert_eq!(state(), AutocastState { enabled: defaults["enabled"] == 1, dtype });
}

/// [13], [14]: inside, outside, around and after nested regions, also when one is left by a panic;
/// gradients of f32 weights and inputs are f32.
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

/// Three deep: f16 in bf16 in off, and each ends where it began.
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

/// Guards in a Vec are dropped first to last: what was around them all still comes back.
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
    assert_eq!(state(), innermost, "the innermost region goes on");
    drop(guards);
    assert_eq!(state(), outside);
    Ok(())
}

/// A panic three regions deep leaves none of them.
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

/// [13]: the state is a thread's own.
#[test]
fn another_thread_is_outside() -> Result<()> {
    let _guard = AutocastGuard::enter(CPU, Kind::Half)?;
    let elsewhere =
        thread::spawn(|| (state().enabled, linear())).join().expect("a thread that reads");
    assert_eq!(elsewhere, (false, "f32"));
    assert_eq!(linear(), "f16");
    Ok(())
}

/// [13]: cast weights are kept while a region lasts and no longer: a step between two regions is
/// seen by the second. Gradients reach the weight through the cast in both.
#[test]
fn a_weight_changed_between_regions_is_seen() -> Result<()> {
    let (weight, input) = (x(&[3, 8]).set_requires_grad(true), x(&[4, 8]));
    let run = || -> Result<Tensor> {
        let _outer = AutocastGuard::enter(CPU, Kind::BFloat16)?;
        let _inner = AutocastGuard::enter(CPU, Kind::BFloat16)?;
        Ok(input.linear(&weight, None::<&Tensor>).to_kind(Kind::Float))
    };
    let before = run()?;
    before.sum(Kind::Float).backward();
    assert!(weight.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
    no_grad(|| weight.shallow_clone().copy_(&(&weight * 2.0)));
    assert_eq!(run()?, before * 2.0);
    Ok(())
}

/// torch warns and computes in f32 when asked for a dtype that autocast does not have; a run that
/// is not what it was called would come of it, so it is an error here, and changes nothing.
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

type Operation = fn(Kind) -> Result<Tensor, amp_core::tch::TchError>;

/// An operation as the recorder calls it; the argument is the low dtype.
fn operation(name: &str) -> Operation {
    const NONE: Option<&Tensor> = None;
    fn low(shape: &[i64], kind: Kind) -> Tensor {
        x(shape).to_kind(kind)
    }
    fn classes() -> Tensor {
        Tensor::from_slice(&[0_i64, 1, 2, 1])
    }
    match name {
        "linear" => |_| x(&[4, 8]).f_linear(&x(&[3, 8]), Some(&x(&[3]))),
        "matmul" => |_| x(&[4, 8]).f_matmul(&x(&[8, 3])),
        "mm" => |_| x(&[4, 8]).f_mm(&x(&[8, 3])),
        "mv" => |_| x(&[4, 8]).f_mv(&x(&[8])),
        "dot" => |_| x(&[8]).f_dot(&x(&[8])),
        "addmm" => |_| x(&[4, 3]).f_addmm(&x(&[4, 8]), &x(&[8, 3])),
        "addmv" => |_| x(&[4]).f_addmv(&x(&[4, 8]), &x(&[8])),
        "addbmm" => |_| x(&[4, 3]).f_addbmm(&x(&[2, 4, 8]), &x(&[2, 8, 3])),
        "bmm" => |_| x(&[2, 4, 8]).f_bmm(&x(&[2, 8, 3])),
        "baddbmm" => |_| x(&[2, 4, 3]).f_baddbmm(&x(&[2, 4, 8]), &x(&[2, 8, 3]), 1.0, 1.0),
        "einsum" => |_| Tensor::f_einsum("ij,jk->ik", &[x(&[4, 8]), x(&[8, 3])], None::<i64>),
        "outer" => |_| x(&[4]).f_outer(&x(&[3])),
        "conv1d" => |_| x(&[2, 3, 8]).f_conv1d(&x(&[4, 3, 3]), NONE, [1], [0], [1], 1),
        "conv2d" => {
            |_| x(&[2, 3, 8, 8]).f_conv2d(&x(&[4, 3, 3, 3]), NONE, [1, 1], [0, 0], [1, 1], 1)
        }
        "conv3d" => {
            |_| x(&[1, 2, 4, 4, 4]).f_conv3d(&x(&[3, 2, 2, 2, 2]), NONE, [1; 3], [0; 3], [1; 3], 1)
        }
        "scaled_dot_product_attention" => |_| {
            let x = x(&[1, 2, 4, 8]);
            Tensor::f_scaled_dot_product_attention(&x, &x, &x, NONE, 0.0, false, None, false)
        },
        "embedding" => |_| Tensor::f_embedding(&x(&[5, 3]), &classes(), -1, false, false),
        "layer_norm" => {
            |_| x(&[4, 8]).f_layer_norm([8], Some(&x(&[8])), Some(&x(&[8])), 1e-5, true)
        }
        "group_norm_low" => {
            |low_| low(&[2, 4, 3], low_).f_group_norm(2, Some(&x(&[4])), Some(&x(&[4])), 1e-5, true)
        }
        "softmax" => |_| x(&[4, 3]).f_softmax(1, None::<Kind>),
        "softmax_low" => |kind| low(&[4, 3], kind).f_softmax(1, None::<Kind>),
        "softmax_with_dtype" => |_| x(&[4, 3]).f_softmax(1, Kind::Double),
        "log_softmax" => |_| x(&[4, 3]).f_log_softmax(1, None::<Kind>),
        "log_softmax_low" => |kind| low(&[4, 3], kind).f_log_softmax(1, None::<Kind>),
        "relu_low" => |kind| low(&[4, 3], kind).f_relu(),
        "gelu_low" => |kind| low(&[4, 3], kind).f_gelu("none"),
        "cross_entropy_low" => |kind| {
            low(&[4, 3], kind).f_cross_entropy_loss(&classes(), NONE, Reduction::Mean, -100, 0.0)
        },
        "nll_loss_low" => {
            |kind| low(&[4, 3], kind).f_nll_loss(&classes(), NONE, Reduction::Mean, -100)
        }
        "mse_loss_low" => {
            |kind| low(&[4, 3], kind).f_mse_loss(&low(&[4, 3], kind), Reduction::Mean)
        }
        "mse_loss_mixed" => |kind| low(&[4, 3], kind).f_mse_loss(&x(&[4, 3]), Reduction::Mean),
        "l1_loss_low" => |kind| low(&[4, 3], kind).f_l1_loss(&low(&[4, 3], kind), Reduction::Mean),
        "binary_cross_entropy" => {
            |_| x(&[4, 3]).f_binary_cross_entropy(&x(&[4, 3]), NONE, Reduction::Mean)
        }
        "binary_cross_entropy_low" => |kind| {
            let x = low(&[4, 3], kind);
            x.f_binary_cross_entropy(&x, NONE, Reduction::Mean)
        },
        "exp_low" => |kind| low(&[4, 3], kind).f_exp(),
        "log_low" => |kind| low(&[4, 3], kind).f_log(),
        "sum_low" => |kind| low(&[4, 3], kind).f_sum(None::<Kind>),
        "mean_low" => |kind| low(&[4, 3], kind).f_mean(None::<Kind>),
        "prod_low" => |kind| low(&[4, 3], kind).f_prod(None::<Kind>),
        "norm_low" => |kind| low(&[4, 3], kind).f_norm(),
        "cdist_low" => |kind| Tensor::f_cdist(&low(&[4, 3], kind), &low(&[2, 3], kind), 2.0, None),
        "argmax_low" => |kind| low(&[4, 3], kind).f_argmax(1, false),
        "add_mixed" => |kind| x(&[4, 3]).f_add(&low(&[4, 3], kind)),
        "cat_mixed" => |kind| Tensor::f_cat(&[x(&[4, 3]), low(&[4, 3], kind)], 0),
        "stack_mixed" => |kind| Tensor::f_stack(&[x(&[4, 3]), low(&[4, 3], kind)], 0),
        "dot_mixed" => |kind| x(&[8]).f_dot(&low(&[8], kind)),
        "matmul_mixed" => |kind| x(&[4, 8]).f_matmul(&low(&[8, 3], kind)),
        "linear_f64" => |_| low(&[4, 8], Kind::Double).f_linear(&low(&[3, 8], Kind::Double), NONE),
        "matmul_f64_with_f32" => |_| low(&[4, 8], Kind::Double).f_matmul(&x(&[8, 3])),
        "prelu_low" => |kind| low(&[4, 3], kind).f_prelu(&(x(&[1]) * 0.0 + 0.25)),
        other => panic!("no operation is named {other}"),
    }
}

const OPERATIONS: &str = "
    linear matmul mm mv dot addmm addmv addbmm bmm baddbmm einsum outer conv1d conv2d conv3d
    scaled_dot_product_attention embedding layer_norm group_norm_low softmax softmax_low
    softmax_with_dtype log_softmax log_softmax_low relu_low gelu_low cross_entropy_low
    nll_loss_low mse_loss_low mse_loss_mixed l1_loss_low binary_cross_entropy
    binary_cross_entropy_low exp_low log_low sum_low mean_low prod_low norm_low cdist_low
    argmax_low add_mixed cat_mixed stack_mixed dot_mixed matmul_mixed linear_f64
    matmul_f64_with_f32 prelu_low";

/// [10] to [12]: each operation's output under f16 and bf16 autocast and without: dtype or error.
#[test]
fn operations_put_out_torchs_dtypes() -> Result<()> {
    let oracle = &oracle!("autocast_cpu.json")["ops"];
    for (name, low) in
        OPERATIONS.split_whitespace().flat_map(|name| [(name, "f16"), (name, "bf16")])
    {
        for (key, on) in [(low.to_owned(), true), (format!("{low}_off"), false)] {
            let _guard = on.then(|| AutocastGuard::enter(CPU, kind_of(low))).transpose()?;
            let expected = &oracle[name][&key];
            match (operation(name)(kind_of(low)), expected.as_str()) {
                (Ok(output), Some(dtype)) => {
                    assert_eq!(name_of(output.kind()), dtype, "{name} {key}");
                }
                (Err(error), None) => {
                    let said = amp_core::Error::from(error).to_string();
                    let torchs = text(expected, "message");
                    assert!(said.contains(torchs), "{name} {key}: {said} for {torchs}");
                }
                (outcome, expected) => panic!("{name} {key}: {outcome:?} for {expected:?}"),
            }
        }
    }
    Ok(())
}

/// The guard is what makes the difference in numbers, too: a sum that bf16 cannot hold.
#[test]
fn products_are_rounded_to_the_low_dtype() -> Result<()> {
    let (one, small) = (Tensor::ones([1, 1], (Kind::Float, CPU)), 1.0 + 2.0_f64.powi(-9));
    let product = || (&one * small).matmul(&one).to_kind(Kind::Double).i((0, 0)).double_value(&[]);
    assert_eq!(product(), small);
    let _guard = AutocastGuard::enter(CPU, Kind::BFloat16)?;
    assert_eq!(product(), 1.0);
    Ok(())
}
