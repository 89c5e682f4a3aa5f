//! Tests which operation runs in which dtype under autocast, on the CPU and on CUDA.

use amp_core::{
    Result,
    precision::AutocastGuard,
    tch::{Kind, Reduction, Tensor},
};

use crate::{
    autocast,
    support::{
        bits::{kind_of, name_of},
        device, needs_cuda,
        oracle::{oracle, text},
    },
};

type Operation = fn(Kind) -> Result<Tensor, amp_core::tch::TchError>;

/// Returns the operation that has this name in the recordings of PyTorch. The returned function
/// takes the low-precision dtype as its argument.
fn operation(name: &str) -> Operation {
    const NONE: Option<&Tensor> = None;
    fn x(shape: &[i64]) -> Tensor {
        autocast::x(shape).to_device(device())
    }
    fn low(shape: &[i64], kind: Kind) -> Tensor {
        x(shape).to_kind(kind)
    }
    fn classes() -> Tensor {
        Tensor::from_slice(&[0_i64, 1, 2, 1]).to_device(device())
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
        "layer_norm_low" => {
            |kind| low(&[4, 8], kind).f_layer_norm([8], Some(&x(&[8])), Some(&x(&[8])), 1e-5, true)
        }
        "batch_norm_low" => |kind| {
            let (ones, zeros) = (x(&[3]) * 0.0 + 1.0, x(&[3]) * 0.0);
            let (weight, bias) = (Some(&ones), Some(&zeros));
            let (mean, var) = (zeros.copy(), ones.copy());
            low(&[4, 3], kind).f_batch_norm(
                weight,
                bias,
                Some(&mean),
                Some(&var),
                true,
                0.1,
                1e-5,
                true,
            )
        },
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
        "pow_low" => |kind| low(&[4, 3], kind).f_pow_tensor_scalar(2),
        "logsumexp_low" => |kind| low(&[4, 3], kind).f_logsumexp([1].as_slice(), false),
        "cumsum_low" => |kind| low(&[4, 3], kind).f_cumsum(0, None::<Kind>),
        "sum_low" => |kind| low(&[4, 3], kind).f_sum(None::<Kind>),
        "mean_low" => |kind| low(&[4, 3], kind).f_mean(None::<Kind>),
        "prod_low" => |kind| low(&[4, 3], kind).f_prod(None::<Kind>),
        "norm_low" => |kind| low(&[4, 3], kind).f_norm(),
        "cdist_low" => |kind| Tensor::f_cdist(&low(&[4, 3], kind), &low(&[2, 3], kind), 2.0, None),
        "argmax_low" => |kind| low(&[4, 3], kind).f_argmax(1, false),
        "add_mixed" => |kind| x(&[4, 3]).f_add(&low(&[4, 3], kind)),
        "cat_mixed" => |kind| Tensor::f_cat(&[x(&[4, 3]), low(&[4, 3], kind)], 0),
        "stack_mixed" => |kind| Tensor::f_stack(&[x(&[4, 3]), low(&[4, 3], kind)], 0),
        "addcmul_mixed" => |kind| x(&[4, 3]).f_addcmul(&low(&[4, 3], kind), &x(&[4, 3])),
        "addcdiv_mixed" => |kind| x(&[4, 3]).f_addcdiv(&low(&[4, 3], kind), &x(&[4, 3])),
        "index_put_mixed" => {
            |kind| x(&[4, 3]).f_index_put(&[Some(classes())], &low(&[4, 3], kind), false)
        }
        "scatter_add_mixed" => |kind| {
            let rows = x(&[4, 3]).zeros_like().to_kind(Kind::Int64);
            x(&[4, 3]).f_scatter_add(0, &rows, &low(&[4, 3], kind))
        },
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
    matmul_f64_with_f32 prelu_low layer_norm_low batch_norm_low pow_low logsumexp_low cumsum_low
    addcmul_mixed addcdiv_mixed index_put_mixed scatter_add_mixed";

/// ATen's autocast lists for CUDA (ATen/autocast_mode.h), grouped by the dtype of the output.
const CUDA: [(&str, &str); 3] = [
    (
        "low",
        "linear matmul mm mv addmm addmv addbmm bmm baddbmm einsum conv1d conv2d conv3d
        scaled_dot_product_attention matmul_mixed prelu_low relu_low gelu_low mean_low
        batch_norm_low",
    ),
    (
        "f32",
        "layer_norm layer_norm_low group_norm_low softmax softmax_low log_softmax log_softmax_low
        cross_entropy_low nll_loss_low mse_loss_low mse_loss_mixed l1_loss_low exp_low log_low
        pow_low logsumexp_low sum_low prod_low cumsum_low norm_low cdist_low dot dot_mixed
        addcmul_mixed addcdiv_mixed index_put_mixed scatter_add_mixed add_mixed cat_mixed
        stack_mixed",
    ),
    ("error", "binary_cross_entropy binary_cross_entropy_low"),
];

/// Rules 11 and 12 of docs/SEMANTICS.md: some operations have another dtype on CUDA than on the
/// CPU. On CUDA, softmax and sums give f32, and `binary_cross_entropy` is refused.
#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn cuda_has_its_own_list_of_operations() -> Result<()> {
    let oracle = &oracle!("autocast_cpu.json")["ops"];
    let on_cpu = |name: &str| oracle[name]["bf16"].as_str().unwrap_or("error").to_owned();
    assert_eq!([on_cpu("softmax_low"), on_cpu("sum_low")], ["bf16", "bf16"]);
    assert_eq!(on_cpu("binary_cross_entropy"), "f32");
    needs_cuda();
    for low in ["f16", "bf16"] {
        let _guard = AutocastGuard::enter(device(), kind_of(low))?;
        for (dtype, names) in CUDA {
            let dtype = if dtype == "low" { low } else { dtype };
            for name in names.split_whitespace() {
                let outcome = operation(name)(kind_of(low));
                let seen = outcome.map_or("error", |output| name_of(output.kind()));
                assert_eq!(seen, dtype, "{name} under {low}");
            }
        }
    }
    Ok(())
}

/// Rules 10 to 12 of docs/SEMANTICS.md: each operation has torch's dtype or error under f16
/// autocast, bf16 autocast and no autocast. The dtypes and errors were recorded from torch on a
/// CPU.
#[test]
fn outputs_have_torchs_dtypes() -> Result<()> {
    if device().is_cuda() {
        return Ok(());
    }
    let oracle = &oracle!("autocast_cpu.json")["ops"];
    for (name, low) in
        OPERATIONS.split_whitespace().flat_map(|name| [(name, "f16"), (name, "bf16")])
    {
        for (key, on) in [(low.to_owned(), true), (format!("{low}_off"), false)] {
            let _guard = on.then(|| AutocastGuard::enter(device(), kind_of(low))).transpose()?;
            let expected = &oracle[name][&key];
            match (operation(name)(kind_of(low)), expected.as_str()) {
                (Ok(output), Some(dtype)) => {
                    assert_eq!(name_of(output.kind()), dtype, "{name} {key}");
                }
                (Err(error), None) => {
                    let said = amp_core::Error::from(error).to_string();
                    let torchs = text(expected, "message");
                    assert!(said.contains(torchs), "{name} {key}: {said}, expected {torchs}");
                }
                (outcome, expected) => panic!("{name} {key}: {outcome:?}, expected {expected:?}"),
            }
        }
    }
    Ok(())
}
