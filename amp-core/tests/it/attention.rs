//! Tests of attention over a sequence with a single position. The softmax over a single key is 1,
//! so the output is the value of this position.

use std::collections::BTreeMap;

use amp_core::{
    Module, Result,
    nn::{Context, MultiheadAttention, MultiheadAttentionConfig, named_tensors, place},
    precision::{Policy, Precision},
    tch::{self, Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device, seeded,
};

const WIDTH: i64 = 32;

/// Computes the expected results with libtorch's attention and the same weights. Returns the
/// output, and the gradients of the sum of the squared output with respect to the input and the
/// weights.
fn by_libtorch(input: &Tensor, tensors: &[Tensor], dropout: f64) -> Result<Vec<Tensor>> {
    let [weight, bias, out_weight, out_bias] = tensors else { panic!("four tensors") };
    let heads = |x: &Tensor| -> Result<Tensor> {
        Ok(x.f_reshape([-1, 1, 4, WIDTH / 4])?.f_transpose(1, 2)?)
    };
    let qkv = input.f_linear(weight, Some(bias))?.f_chunk(3, -1)?;
    let (q, k, v) = (heads(&qkv[0])?, heads(&qkv[1])?, heads(&qkv[2])?);
    let attended = Tensor::f_scaled_dot_product_attention(
        &q,
        &k,
        &v,
        None::<Tensor>,
        dropout,
        false,
        None,
        false,
    )?;
    let joined = attended.f_transpose(1, 2)?.f_reshape(input.size().as_slice())?;
    let output = joined.f_linear(out_weight, Some(out_bias))?;
    with_gradients(output, input, tensors)
}

fn with_gradients(output: Tensor, input: &Tensor, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    let inputs: Vec<&Tensor> = std::iter::once(input).chain(tensors).collect();
    let loss = output.f_square()?.f_sum(Kind::Double)?;
    let mut all = Tensor::f_run_backward(&[loss], &inputs, false, false)?;
    all.push(output);
    Ok(all)
}

#[rstest]
fn one_position_attends_to_itself(#[values(0.0, 0.5)] dropout: f64) -> Result<()> {
    let _generator = seeded(5);
    let config = MultiheadAttentionConfig { dropout, ..MultiheadAttentionConfig::new(WIDTH, 4) };
    let attention = MultiheadAttention::new(config)?;
    let tensors: Vec<Tensor> =
        named_tensors(&attention).into_iter().map(|(_, tensor, _)| tensor).collect();
    let input = Tensor::f_randn([8, 1, WIDTH], (Kind::Float, Device::Cpu))?.set_requires_grad(true);
    let context = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
    // Both passes start from this seed, so dropout sets the same elements to zero in both.
    tch::manual_seed(11);
    let own = with_gradients(attention.forward(&input, &context)?, &input, &tensors)?;
    tch::manual_seed(11);
    let theirs = by_libtorch(&input, &tensors, dropout)?;
    for (at, (own, theirs)) in own.iter().zip(&theirs).enumerate() {
        let error = own.f_sub(theirs)?.f_abs()?.f_max()?.f_double_value(&[])?;
        assert!(error < 1e-5, "{at}: {error}");
        assert!(own.f_abs()?.f_max()?.f_double_value(&[])? > 0.1, "{at}");
    }
    // The projections of queries and keys have zero gradients, because the only attention weight is
    // 1 whatever they are.
    let nothing = own[1].f_narrow(0, 0, 2 * WIDTH)?;
    assert_eq!(nothing.f_count_nonzero(0)?.f_sum(Kind::Int64)?.f_int64_value(&[])?, 0);
    Ok(())
}

/// In attention over a single position, each head has only one attention weight. Dropout therefore
/// drops or scales the head as a whole, in the output and in the gradient. The output projection is
/// the identity, so the output shows which heads were dropped.
#[rstest]
fn dropout_drops_whole_heads(
    #[values(Precision::F32True, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(6);
    let (n, p) = (50, 0.25);
    let policy = Policy::new(precision, device());
    let config = MultiheadAttentionConfig { dropout: p, ..MultiheadAttentionConfig::new(WIDTH, 4) };
    let attention = MultiheadAttention::new(config)?;
    place(&attention, policy, &BTreeMap::new())?;
    let tensors: Vec<Tensor> =
        named_tensors(&attention).into_iter().map(|(_, tensor, _)| tensor).collect();
    let identity = Tensor::eye(WIDTH, (Kind::Float, device()));
    tch::no_grad(|| tensors[2].shallow_clone().copy_(&identity));
    let input = Tensor::randn([n, 1, WIDTH], (Kind::Float, device())).set_requires_grad(true);
    let run = |training: bool| -> Result<Tensor> {
        let _region = policy.autocast()?;
        attention.forward(&input, &Context::new(policy, training))
    };
    let whole = wide(&run(false)?).reshape([n, 4, WIDTH / 4]);
    let output = run(true)?;
    let dropped = wide(&output).reshape([n, 4, WIDTH / 4]);
    let kept = dropped.ne(0.0).to_kind(Kind::Double);
    let of_heads = kept.mean_dim(-1, true, Kind::Double);
    assert!(of_heads.eq(0.0).logical_or(&of_heads.eq(1.0)).all().int64_value(&[]) == 1);
    let share = of_heads.mean(Kind::Double).double_value(&[]);
    // The tolerance is five standard errors of a mean over 200 heads.
    assert!((share - (1.0 - p)).abs() < 5.0 * (p * (1.0 - p) / 200.0).sqrt(), "{share}");
    let factors = of_heads / (1.0 - p);
    let bound = if precision == Precision::F32True { 1e-6 } else { 0.01 };
    assert!(relative(&dropped, &(&whole * &factors)) < bound);

    output.sum(Kind::Float).backward();
    let rows = factors.expand([n, 4, WIDTH / 4], false).reshape([n, WIDTH]);
    let exact = rows.tr().matmul(&wide(&input).reshape([n, WIDTH]));
    let grad = tensors[0].grad();
    assert!(relative(&grad.narrow(0, 2 * WIDTH, WIDTH), &exact) < bound);
    assert_eq!(wide(&grad.narrow(0, 0, 2 * WIDTH)).abs().max().double_value(&[]), 0.0);
    let bias = tensors[1].grad();
    let exact = rows.sum_dim_intlist(0, false, Kind::Double);
    assert!(relative(&bias.narrow(0, 2 * WIDTH, WIDTH), &exact) < bound);
    assert_eq!(wide(&bias.narrow(0, 0, 2 * WIDTH)).abs().max().double_value(&[]), 0.0);
    Ok(())
}
