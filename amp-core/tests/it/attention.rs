//! Attention of one position to itself is its value.

use amp_core::{
    Module, Result,
    nn::{Context, MultiheadAttention, MultiheadAttentionConfig, named_tensors},
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::seeded;

const WIDTH: i64 = 32;

/// What libtorch's attention makes of the same weights, with the input's gradient of its sum and
/// those of the weights.
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
    // The same elements are dropped.
    tch::manual_seed(11);
    let own = with_gradients(attention.forward(&input, &context)?, &input, &tensors)?;
    tch::manual_seed(11);
    let theirs = by_libtorch(&input, &tensors, dropout)?;
    for (at, (own, theirs)) in own.iter().zip(&theirs).enumerate() {
        let error = own.f_sub(theirs)?.f_abs()?.f_max()?.f_double_value(&[])?;
        assert!(error < 1e-5, "{at}: {error}");
        assert!(own.f_abs()?.f_max()?.f_double_value(&[])? > 0.1, "{at}");
    }
    // Of queries and keys.
    let nothing = own[1].f_narrow(0, 0, 2 * WIDTH)?;
    assert_eq!(nothing.f_count_nonzero(0)?.f_sum(Kind::Int64)?.f_int64_value(&[])?, 0);
    Ok(())
}
