//! Tests of matrix products and convolutions of f16 and bf16 tensors on CPUs. On a CPU for which
//! libtorch has no fast kernels, they are computed in f32, and their results are rounded once.

use amp_core::{
    hardware::Fingerprint,
    precision::{Policy, Precision},
    prelude::*,
};
use rstest::rstest;

use crate::support::{layers::rounding, seeded};

type Product = fn(&[Tensor]) -> Result<Tensor>;

/// The products to test. Some read a transposed tensor or a part of a larger tensor. Some use the
/// factors beta and alpha, write to a given output tensor, or run in place.
const PRODUCTS: [(&str, Product); 12] = [
    ("mm", |t| Ok(t[0].f_mm(&t[1])?)),
    ("mm, transposed", |t| Ok(t[1].f_transpose(0, 1)?.f_mm(&t[0].f_transpose(0, 1)?)?)),
    ("mm.out", |t| {
        let out = Tensor::f_zeros([5, 7], (t[0].kind(), Device::Cpu))?;
        Ok(t[0].f_mm_out(&out, &t[1])?)
    }),
    ("addmm", |t| Ok(t[2].f_addmm(&t[0], &t[1])?)),
    ("addmm_", |t| Ok(t[3].copy().f_addmm_(&t[0], &t[1])?)),
    ("linear", |t| Ok(t[0].f_linear(&t[1].f_transpose(0, 1)?, Some(&t[2]))?)),
    ("addmm with GELU", |t| Ok(t[2].f_internal_addmm_activation(&t[0], &t[1], true)?)),
    ("mv", |t| Ok(t[0].f_mv(&t[1].f_select(1, 2)?)?)),
    ("addmv", |t| Ok(t[3].f_select(1, 0)?.f_addmv(&t[0], &t[1].f_select(1, 2)?)?)),
    ("bmm", |t| Ok(t[4].f_bmm(&t[5])?)),
    ("baddbmm", |t| Ok(t[6].f_baddbmm(&t[4], &t[5], 0.5, 2.0)?)),
    ("baddbmm_", |t| Ok(t[6].copy().f_baddbmm_(&t[4], &t[5])?)),
];

/// Returns the factors and addends of the products: matrices `[5, 300]` and `[300, 7]`, a bias, a
/// matrix to add, and batches of three matrices of the same sizes.
fn operands(kind: Kind) -> Vec<Tensor> {
    let draw = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind);
    vec![
        draw(&[5, 300]),
        draw(&[300, 9]).narrow(1, 1, 7),
        draw(&[7]),
        draw(&[5, 7]),
        draw(&[3, 5, 300]),
        draw(&[3, 7, 300]).transpose(1, 2),
        draw(&[3, 5, 7]),
    ]
}

fn in_kind(tensors: &[Tensor], kind: Kind) -> Vec<Tensor> {
    tensors.iter().map(|tensor| tensor.to_kind(kind)).collect()
}

/// Checks a 16-bit result against the result in f64. The tolerance is the sum of two errors: the
/// error of one rounding to 16 bits, and the error of adding `terms` products of normally
/// distributed numbers in f32.
fn assert_rounded_once(name: &str, found: &Tensor, exact: &Tensor, terms: i64) {
    assert_eq!(found.size(), exact.size(), "{name}");
    let kind = found.kind();
    let of_sums = 2f64.powi(-24) * terms as f64 * 10.0;
    let bound = exact.abs() * rounding(kind) * (1.0 + 2f64.powi(-6)) + of_sums;
    let error = (found.to_kind(Kind::Double) - exact).abs();
    let worst = (error / bound).max().double_value(&[]);
    assert!(worst <= 1.0, "{name} in {kind:?}: {worst} times the bound");
}

/// Each 16-bit product equals the product in f64, rounded once.
#[rstest]
fn products_are_rounded_once(#[values(Kind::Half, Kind::BFloat16)] kind: Kind) -> Result<()> {
    let _generator = seeded(3);
    let narrow = operands(kind);
    for (name, product) in PRODUCTS {
        let exact = product(&in_kind(&narrow, Kind::Double))?;
        let found = product(&in_kind(&narrow, kind))?;
        assert_eq!(found.kind(), kind, "{name}");
        assert_rounded_once(name, &found, &exact, 300);
    }
    Ok(())
}

/// Returns the output of a convolution, and the gradients of its input, weight and bias.
fn convolve(
    [x, weight, bias, gradient]: &[Tensor; 4],
    transposed: bool,
    groups: i64,
) -> Result<Vec<Tensor>> {
    let spatial = vec![1; x.dim() - 2];
    let leaf = |tensor: &Tensor| tensor.copy().set_requires_grad(true);
    let (x, weight, bias) = (leaf(x), leaf(weight), leaf(bias));
    let (strides, padding) = (vec![2; spatial.len()], &spatial);
    let (dilation, output_padding) = (&spatial, vec![0; spatial.len()]);
    let output = x.f_convolution(
        &weight,
        Some(&bias),
        strides,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
    )?;
    // The backward pass of `wide` casts the gradient of the output from f64 to 16 bits. This rounds
    // nothing, because `gradient` contains 16-bit numbers.
    let wide = |tensor: &Tensor| tensor.to_kind(Kind::Double);
    let loss = wide(&output).f_mul(&wide(&gradient.f_expand_as(&output)?))?.sum(None);
    let gradients = Tensor::f_run_backward(&[loss], &[&x, &weight, &bias], false, false)?;
    Ok([output.detach()].into_iter().chain(gradients).collect())
}

/// The output and the gradients of a convolution equal those in f64, rounded once. The cases have
/// one to three dimensions, one or two groups, and are transposed or not.
#[rstest]
fn convolutions_are_rounded_once(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values(1, 2, 3)] dimensions: usize,
    #[values(false, true)] transposed: bool,
    #[values(1, 2)] groups: i64,
) -> Result<()> {
    let _generator = seeded(4);
    let draw = |leading: &[i64], side: i64| {
        let size = [leading, &vec![side; dimensions]].concat();
        Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind)
    };
    let weight = if transposed { [4, 6 / groups] } else { [6, 4 / groups] };
    let narrow =
        [draw(&[2, 4], 7), draw(&weight, 3), draw(&[6], 1).flatten(0, -1), draw(&[2, 6], 1)];
    let exact = convolve(&narrow.each_ref().map(|t| t.to_kind(Kind::Double)), transposed, groups)?;
    let found = convolve(&narrow, transposed, groups)?;
    for (at, (found, exact)) in found.iter().zip(&exact).enumerate() {
        assert_eq!(found.kind(), kind);
        let name = ["output", "input's gradient", "weight's gradient", "bias's gradient"][at];
        assert_rounded_once(name, found, exact, 4 * 13i64.pow(dimensions as u32));
    }
    Ok(())
}

/// An autocast region does not change the result of a 16-bit convolution: the f32 matrix products
/// inside the convolution are not cast to 16 bits.
#[test]
fn autocast_does_not_round_inside_a_convolution() -> Result<()> {
    let _generator = seeded(5);
    let x = Tensor::randn([2, 4, 9, 9], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    let weight = Tensor::randn([6, 4, 3, 3], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    let outside = x.f_conv2d(&weight, None::<Tensor>, [1, 1], [0, 0], [1, 1], 1)?;
    let policy = Policy::new(Precision::Bf16Mixed, Device::Cpu);
    let _region = policy.autocast()?;
    let inside = x.f_conv2d(&weight, None::<Tensor>, [1, 1], [0, 0], [1, 1], 1)?;
    assert!(inside.equal(&outside));
    Ok(())
}

/// Returns whether products of this dtype are computed in f32 on this CPU.
fn widens(kind: Kind) -> Result<bool> {
    let cpu = Fingerprint::of(Device::Cpu)?;
    let has_avx512 = cpu.capability == "avx512";
    let has_kernels = has_avx512 && (kind == Kind::BFloat16 || cpu.multiplies_f16);
    Ok(cfg!(target_arch = "x86_64") && !has_kernels)
}

/// On a CPU without kernels for a 16-bit dtype, a product equals the product in f32, rounded once.
#[rstest]
fn a_cpu_without_kernels_widens(#[values(Kind::Half, Kind::BFloat16)] kind: Kind) -> Result<()> {
    if !widens(kind)? {
        return Ok(());
    }
    let _generator = seeded(6);
    let narrow = operands(kind);
    for (name, product) in PRODUCTS {
        let widened = product(&in_kind(&narrow, Kind::Float))?.to_kind(kind);
        assert!(product(&narrow)?.equal(&widened), "{name}");
    }
    Ok(())
}

/// On a CPU without kernels for a 16-bit dtype, the output and the gradients of a convolution equal
/// those in f32, rounded once. On every x86 CPU, this also holds for f16 gradients.
#[rstest]
fn gradients_of_a_convolution_are_widened(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values(1, 2)] groups: i64,
) -> Result<()> {
    let _generator = seeded(7);
    let draw = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind);
    let narrow = [&[2, 4, 9, 9], &[6, 4 / groups, 3, 3], &[6][..], &[2, 6, 1, 1]].map(draw);
    let wide = convolve(&narrow.each_ref().map(|t| t.to_kind(Kind::Float)), false, groups)?;
    let found = convolve(&narrow, false, groups)?;
    let of_gradients = kind == Kind::Half && cfg!(target_arch = "x86_64");
    let widened = [widens(kind)?, widens(kind)? || of_gradients];
    for (at, (found, wide)) in found.iter().zip(&wide).enumerate() {
        if widened[at.min(1)] {
            assert!(found.equal(&wide.to_kind(kind)), "{at}");
        }
    }
    Ok(())
}

/// Factors of different dtypes are refused with libtorch's message, as in PyTorch.
#[test]
fn different_dtypes_are_errors() {
    let (a, b) = (
        Tensor::zeros([2, 2], (Kind::Half, Device::Cpu)),
        Tensor::eye(2, (Kind::Float, Device::Cpu)),
    );
    let error = a.f_mm(&b).expect_err("two dtypes");
    assert!(error.to_string().contains("expected m1 and m2 to have the same dtype"), "{error}");
}

/// Returns the output of attention and the gradients of queries, keys and values.
fn attend([q, k, v, gradient]: &[Tensor; 4], mask: Option<&Tensor>) -> Result<Vec<Tensor>> {
    let leaf = |tensor: &Tensor| tensor.copy().set_requires_grad(true);
    let (q, k, v) = (leaf(q), leaf(k), leaf(v));
    let is_causal = mask.is_none();
    let output =
        Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, 0.0, is_causal, None, false)?;
    let loss = output.f_mul(gradient)?.sum(Kind::Float);
    let gradients = Tensor::f_run_backward(&[loss], &[&q, &k, &v], false, false)?;
    Ok([output.detach()].into_iter().chain(gradients).collect())
}

/// On a CPU without kernels for a 16-bit dtype, attention is computed in f32: its output equals the
/// output in f32, rounded once, also with a mask. The gradients differ from those in f64 for two
/// reasons: they are rounded once, and the backward pass reads the rounded output O. The bound for
/// the second error follows from dS = P·(dO·Vᵀ − D) with D = Σ dO·O.
#[rstest]
fn attention_is_computed_in_f32(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values(false, true)] is_masked: bool,
) -> Result<()> {
    if !widens(kind)? {
        return Ok(());
    }
    let _generator = seeded(8);
    let draw = || Tensor::randn([2, 3, 17, 8], (Kind::Float, Device::Cpu)).to_kind(kind);
    let narrow = [draw(), draw(), draw(), draw()];
    let mask = is_masked.then(|| Tensor::randn([17, 17], (Kind::Float, Device::Cpu)).to_kind(kind));
    let all_in = |kind: Kind| {
        let mask = mask.as_ref().map(|mask| mask.to_kind(kind));
        attend(&narrow.each_ref().map(|tensor| tensor.to_kind(kind)), mask.as_ref())
    };
    let (found, wide, exact) = (all_in(kind)?, all_in(Kind::Float)?, all_in(Kind::Double)?);
    assert!(found[0].equal(&wide[0].to_kind(kind)), "the output");

    let [q, k, v, gradient] = narrow.each_ref().map(|tensor| tensor.to_kind(Kind::Double));
    let scale = 8f64.sqrt().recip();
    let added = mask.as_ref().map_or_else(
        || Tensor::full([17, 17], f64::NEG_INFINITY, (Kind::Double, Device::Cpu)).triu(1),
        |mask| mask.to_kind(Kind::Double),
    );
    let p = (scale * q.matmul(&k.transpose(2, 3)) + added).softmax(-1, Kind::Double);
    let moved = (gradient.abs() * p.matmul(&v).abs() * rounding(kind)).sum_dim_intlist(
        -1,
        true,
        Kind::Double,
    );
    let of_query = scale * &moved * p.matmul(&k.abs());
    let of_key = scale * p.transpose(2, 3).matmul(&(moved * q.abs()));
    let bounds = [of_query.shallow_clone(), of_key, of_query.zeros_like()];
    for (at, bound) in bounds.into_iter().enumerate() {
        let exact = &exact[at + 1];
        let bound = bound + exact.abs() * rounding(kind) * (1.0 + 2f64.powi(-6)) + 1e-5;
        let error = (found[at + 1].to_kind(Kind::Double) - exact).abs();
        let worst = (error / bound).max().double_value(&[]);
        assert!(worst <= 1.0, "{} in {kind:?}: {worst} times the bound", ["q", "k", "v"][at]);
    }
    Ok(())
}
