//! Tests that an error about the dtype of a layer's input names the layer, the dtype and the fix.

use amp_core::{
    nn::{Context, place},
    precision::Policy,
    prelude::*,
};
use rstest::rstest;

use crate::support::{message, seeded};

/// Defines a module with the single layer `layer`, and a function that runs the module on ones of
/// the given shape and dtype, and returns the error.
macro_rules! refused {
    ($name:ident, $shape:expr, $layer:ty, $declared:meta) => {
        fn $name(kind: Kind, precision: Precision) -> Result<String> {
            #[derive(Module)]
            struct Net {
                #[layer($declared)]
                layer: $layer,
            }
            let _generator = seeded(0);
            let (net, policy) = (Net::builder().build()?, Policy::new(precision, Device::Cpu));
            place(&net, policy, &Default::default())?;
            let _autocast = policy.autocast()?;
            let input = Tensor::f_ones($shape, (kind, Device::Cpu))?;
            Ok(message(net.forward(&input, &Context::new(policy, true))))
        }
    };
}

refused!(of_linear, [4, 6], Linear, linear(6, 3));
refused!(of_conv, [4, 2, 8, 8], Conv2d, conv2d(2, 3, 3));
refused!(of_transposed, [4, 2, 8, 8], ConvTranspose2d, conv_transpose2d(2, 3, 3));
refused!(of_layer_norm, [4, 6], LayerNorm, layer_norm(6));
refused!(of_batch_norm, [4, 6], BatchNorm, batch_norm1d(6));
refused!(of_group_norm, [4, 2, 8], GroupNorm, group_norm(2, 2));
refused!(of_rms_norm, [4, 6], RmsNorm, rms_norm(6));
refused!(of_dropout, [4, 6], Dropout, dropout(0.5));
refused!(of_gelu, [4, 6], Gelu, gelu);
refused!(of_embedding, [4, 6], Embedding, embedding(6, 3));
refused!(of_encoder, [4, 5, 6], TransformerEncoderLayer, transformer_encoder_layer(6, 2));

type Refused = fn(Kind, Precision) -> Result<String>;

/// libtorch's own messages name only dtypes, under its names for them, or no dtype at all.
#[rstest]
#[case::linear(of_linear, "layer")]
#[case::conv(of_conv, "layer")]
#[case::transposed(of_transposed, "layer")]
#[case::layer_norm(of_layer_norm, "layer")]
#[case::batch_norm(of_batch_norm, "layer")]
#[case::group_norm(of_group_norm, "layer")]
#[case::rms_norm(of_rms_norm, "layer")]
#[case::dropout(of_dropout, "layer")]
#[case::gelu(of_gelu, "layer")]
#[case::encoder(of_encoder, "layer.self_attn")]
fn whole_numbers_in_a_layer_of_floats_are_explained(
    #[case] refused: Refused,
    #[case] path: &str,
    #[values((Kind::Int64, "int64"), (Kind::Uint8, "uint8"))] (kind, name): (Kind, &str),
    #[values(Precision::F32True, Precision::Bf16Mixed, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    let said = refused(kind, precision)?;
    let hint = format!(
        "; the input is {name}, but this layer computes with floating-point numbers: convert it in \
         the data set, as with `f_to_kind(Kind::Float)?`, or, if the model makes it, to the dtype of \
         its weights"
    );
    assert!(
        said.starts_with(&format!("in `{path}`: libtorch: ")) && said.ends_with(&hint),
        "{said}"
    );
    Ok(())
}

#[rstest]
#[case(Kind::Float, "float32")]
#[case(Kind::Uint8, "uint8")]
fn an_embedding_of_other_numbers_than_ids_is_explained(
    #[case] kind: Kind,
    #[case] name: &str,
) -> Result<()> {
    let said = of_embedding(kind, Precision::F32True)?;
    let hint = format!(
        "; ids must be int64, but the input is {name}: convert it in the data set, as with \
         `f_to_kind(Kind::Int64)?`"
    );
    assert!(said.starts_with("in `layer`: ") && said.ends_with(&hint), "{said}");
    Ok(())
}
