//! Tests of user-defined modules that have several tensors as inputs and outputs.

use amp_core::{
    Module, Result,
    nn::{AttentionMask, Context, Forward, Linear, MultiheadAttention, Visit, Visitor},
    precision::Precision,
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::{
    children::{ones, products},
    support::seeded,
};

/// A user-defined module whose output is a tuple.
struct Moments;

impl Visit for Moments {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Forward for Moments {
    type Input = (&'static [Tensor], i64);
    type Output = (Tensor, Option<Tensor>);

    fn forward_with(
        &self,
        (tensors, dim): (&[Tensor], i64),
        cx: &Context,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let all = Tensor::f_stack(tensors, 0)?;
        assert_eq!((&*cx.path(), all.kind()), ("moments", Kind::Double));
        let mean = all.f_mean_dim([dim].as_slice(), false, all.kind())?;
        Ok((mean, Some(all.f_var_dim([dim].as_slice(), false, false)?)))
    }
}

#[derive(Module)]
#[forward(|x| {
    let (mean, variance) = moments(&[x.shallow_clone(), fc(x)?], 0)?;
    Ok(mean.f_add(&variance.expect("a variance"))?)
})]
struct Statistics {
    #[layer(linear(4, 4))]
    fc: Linear,
    #[layer(Moments)]
    #[precision(fp64)]
    moments: Moments,
}

#[rstest]
#[case::mixed(Precision::Bf16Mixed)]
#[case::plain(Precision::F32True)]
fn own_modules_with_several_outputs_have_regions(#[case] precision: Precision) -> Result<()> {
    let _generator = seeded(0);
    let module = Statistics::builder().build()?;
    products(precision, &module, |module, cx| {
        let output = module.forward(&ones(&[1, 4]), cx)?;
        assert_eq!(output.kind(), Kind::Float);
        Ok(())
    })?;
    Ok(())
}

#[derive(Module)]
#[forward(|x| {
    let mask = AttentionMask::none();
    match self.weights {
        true => Ok(self.attention.attend_with_weights(x, x, x, &mask, cx)?.0),
        false => self.attention.attend(x, x, x, &mask, cx),
    }
})]
struct Attends {
    #[hparam]
    weights: bool,
    #[layer(multihead_attention(4, 2))]
    attention: MultiheadAttention,
}

/// Attention reports its matrix products to an observer, whether it returns only its output or also
/// the attention weights.
#[rstest]
#[case::output(false, 1)]
#[case::output_and_weights(true, 2)]
fn attention_reports_its_products(#[case] weights: bool, #[case] outputs: usize) -> Result<()> {
    let _generator = seeded(0);
    let module = Attends::builder(weights).build()?;
    let seen = products(Precision::Bf16Mixed, &module, |module, cx| {
        module.forward(&ones(&[1, 3, 4]), cx)
    })?;
    let mut expected = vec![("attention.out_proj".to_owned(), Kind::BFloat16)];
    expected.extend(vec![("attention".to_owned(), Kind::BFloat16); outputs]);
    assert_eq!(seen, expected);
    Ok(())
}
