//! Tests of attention with masks, with positional encodings, and in precision regions.

use amp_core::{
    Module, Result,
    nn::{
        AttentionMask, AttentionOptions, Checkpoint, Context, MultiheadAttention,
        MultiheadAttentionConfig, RotaryEmbedding, RotaryEmbeddingConfig, RotaryPairing,
        TransformerDecoder, TransformerEncoder, TransformerEncoderLayer,
        TransformerEncoderLayerConfig, alibi_bias, alibi_slopes, parameters, place,
        scaled_dot_product_attention,
    },
    precision::{Policy, Precision},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::{
    children::{ones, products},
    support::{
        bits::{relative, wide},
        device, message, seeded,
    },
};

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, device())).to_kind(kind).set_requires_grad(true)
}

fn booleans(values: &[bool], shape: &[i64]) -> Tensor {
    Tensor::from_slice(values).view(shape).to_device(device())
}

fn is_zero(tensor: &Tensor) -> bool {
    wide(tensor).abs().max().double_value(&[]) == 0.0
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}

/// If all keys of a query are masked, the query's output and its gradient are zero, in every
/// precision and with every kind of mask. No other gradient is NaN.
#[rstest]
fn a_query_without_keys_attends_to_zeros(
    #[values(
        Precision::F64True,
        Precision::F32True,
        Precision::Bf16Mixed,
        Precision::F16Mixed,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values(true, false)] boolean: bool,
    #[values(true, false)] causal: bool,
    #[values(1, 4)] kv_heads: i64,
) -> Result<()> {
    let _generator = seeded(3);
    let policy = Policy::new(precision, device());
    let kind = precision.storage();
    let query = random(&[2, 4, 8, 16], kind);
    let [key, value] = [0; 2].map(|_| random(&[2, kv_heads, 8, 16], kind));
    // In the second example, the query at position 2 has no unmasked key.
    let allowed = Tensor::ones([2, 1, 8, 8], (Kind::Bool, device()));
    let _ = allowed.get(1).get(0).get(2).fill_(0);
    let mask = match boolean {
        true => allowed,
        false => Tensor::zeros([2, 1, 8, 8], (Kind::Float, device()))
            .masked_fill(&allowed.logical_not(), f64::NEG_INFINITY),
    };
    let options =
        AttentionOptions { attn_mask: Some(&mask), is_causal: causal, ..Default::default() };
    let output = {
        let _autocast = policy.autocast()?;
        scaled_dot_product_attention(&query, &key, &value, &options)?
    };
    assert!(is_zero(&output.get(1).narrow(1, 2, 1)), "the output without keys is zero");
    assert!(!is_zero(&output.get(0).narrow(1, 2, 1)) && !is_zero(&output.get(1).narrow(1, 3, 1)));
    output.square().sum(Kind::Float).backward();
    let grads = [query.grad(), key.grad(), value.grad()];
    assert!(is_finite(&output) && grads.iter().all(is_finite));
    assert!(is_zero(&query.grad().get(1).narrow(1, 2, 1)), "its gradient is zero");
    assert!(grads.iter().all(|grad| !is_zero(grad)));
    Ok(())
}

/// The input at padded positions changes no bit of other outputs. One sequence is only padding.
#[rstest]
fn padding_has_no_effect(
    #[values(Precision::F32True, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(4);
    let policy = Policy::new(precision, device());
    let config = TransformerEncoderLayerConfig {
        dropout: 0.0,
        dim_feedforward: 16,
        ..TransformerEncoderLayerConfig::new(16, 4)
    };
    let layer = TransformerEncoderLayer::new(config)?;
    place(&layer, policy, &Default::default())?;
    let padding = booleans(&[false, false, true, false, true, true, true, true, true], &[3, 3]);
    let x = random(&[3, 3, 16], Kind::Float);
    let run = |x: &Tensor| -> Result<Tensor> {
        let _autocast = policy.autocast()?;
        layer.forward_masked(x, &AttentionMask::padding(&padding), &Context::new(policy, true))
    };
    let output = run(&x)?;
    let other = x.detach().masked_fill(&padding.unsqueeze(-1), 7.0);
    let kept = |output: &Tensor| wide(&output.masked_fill(&padding.unsqueeze(-1), 0.0));
    assert!(kept(&output).equal(&kept(&run(&other)?)));
    output.masked_fill(&padding.unsqueeze(-1), 0.0).sum(Kind::Float).backward();
    assert!(is_finite(&output) && is_finite(&x.grad()));
    for parameter in parameters(&layer) {
        assert!(is_finite(&parameter.tensor.grad()), "{}", parameter.name);
    }
    // The padded input affects neither the loss nor other queries, so its gradient is zero.
    assert!(is_zero(&x.grad().masked_select(&padding.unsqueeze(-1))));
    Ok(())
}

/// The causal option gives the same result as an explicit causal mask, also with a padding mask.
#[test]
fn the_causal_option_equals_a_mask() -> Result<()> {
    let _generator = seeded(5);
    let policy = Policy::new(Precision::F64True, device());
    let cx = Context::new(policy, true);
    let config = MultiheadAttentionConfig::new(8, 2);
    let plain = MultiheadAttention::new(config)?;
    let causal = MultiheadAttention::new(MultiheadAttentionConfig { causal: true, ..config })?;
    for layer in [&plain, &causal] {
        place(layer, policy, &Default::default())?;
    }
    for (from, to) in parameters(&plain).iter().zip(parameters(&causal)) {
        amp_core::tch::no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
    }
    let x = random(&[2, 4, 8], Kind::Double);
    let later = Tensor::ones([4, 4], (Kind::Bool, device())).triu(1);
    let padding = booleans(&[false, false, false, true, false, true, false, true], &[2, 4]);
    for padding in [None, Some(padding)] {
        let padding = padding.as_ref();
        let mask = || padding.map_or_else(AttentionMask::none, AttentionMask::padding);
        let mut masked = mask();
        masked.attn_mask = Some(later.shallow_clone());
        let expected = plain.attend(&x, &x, &x, &masked, &cx)?;
        let seen = causal.attend(&x, &x, &x, &mask(), &cx)?;
        assert!(relative(&seen, &expected) < 1e-12);
    }
    Ok(())
}

/// Attention gives the same output whether or not it also returns its weights. The weights of each
/// query add up to 1, or to 0 if all its keys are masked.
#[rstest]
fn returned_weights_do_not_change_the_output(
    #[values(2, 4)] num_kv_heads: i64,
    #[values(false, true)] causal: bool,
    #[values(false, true)] masked: bool,
) -> Result<()> {
    let _generator = seeded(9);
    let policy = Policy::new(Precision::F64True, device());
    let cx = Context::new(policy, true);
    let attention = MultiheadAttention::new(MultiheadAttentionConfig {
        num_kv_heads,
        causal,
        rotary: Some(RotaryPairing::HalfRotated),
        ..MultiheadAttentionConfig::new(16, 4)
    })?;
    place(&attention, policy, &Default::default())?;
    let x = random(&[2, 3, 16], Kind::Double);
    let padding = booleans(&[true, true, false, false, false, true], &[2, 3]);
    let mask = if masked { AttentionMask::padding(&padding) } else { AttentionMask::none() };
    let expected = attention.attend(&x, &x, &x, &mask, &cx)?;
    let (output, weights) = attention.attend_with_weights(&x, &x, &x, &mask, &cx)?;
    assert!(relative(&output, &expected) < 1e-12);
    assert_eq!(weights.size(), [2, 4, 3, 3]);
    let sums = weights.sum_dim_intlist([-1].as_slice(), false, Kind::Double).select(1, 3);
    let without_keys = [masked && causal, masked && causal, false, false, false, false];
    let wanted = Tensor::from_slice(&without_keys.map(|none| f64::from(!none))).view([2, 3]);
    assert!(relative(&sums, &wanted.to_device(device())) < 1e-12);
    (output.square().sum(Kind::Double) + weights.square().sum(Kind::Double)).backward();
    assert!(is_finite(&x.grad()) && !is_zero(&x.grad()));
    Ok(())
}

/// The ALiBi slopes equal those of the paper (8 heads) and of its authors' code (12 heads).
#[test]
fn alibi_slopes_equal_the_papers() -> Result<()> {
    let eight: Vec<f64> = (1..=8).map(|i| 0.5_f64.powi(i)).collect();
    assert_eq!(alibi_slopes(8), eight);
    let rest = [1, 3, 5, 7].map(|i| 0.5_f64.powf(f64::from(i) / 2.0));
    let (twelve, expected) = (alibi_slopes(12), [&eight[..], &rest].concat());
    assert!(twelve.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-15), "{twelve:?}");
    assert_eq!(twelve.len(), 12);
    let bias = alibi_bias(2, 3)?;
    let values = Vec::<f32>::try_from(bias.reshape([-1])).expect("numbers");
    let head = |slope: f32| [0, 1, 2, 1, 0, 1, 2, 1, 0].map(|apart| -slope * apart as f32);
    assert_eq!(values, [head(1.0 / 16.0), head(1.0 / 256.0)].concat());
    assert_eq!(bias.size(), [1, 2, 3, 3]);
    Ok(())
}

/// The product of a rotated query and a rotated key depends only on the distance of their
/// positions. The rotation does not change the length of a vector.
#[rstest]
fn rotated_products_depend_on_the_distance_alone(
    #[values(RotaryPairing::Interleaved, RotaryPairing::HalfRotated)] pairing: RotaryPairing,
    #[values(Kind::Double, Kind::BFloat16)] kind: Kind,
) -> Result<()> {
    let _generator = seeded(6);
    let rope = RotaryEmbedding::new(RotaryEmbeddingConfig::new(8, pairing))?;
    let bound = if kind == Kind::Double { 1e-11 } else { 0.02 };
    let (q, k) = (random(&[1, 8], kind), random(&[1, 8], kind));
    let product = |query_at: i64, key_at: i64| -> Result<f64> {
        let (q, k) = (rope.rotate(&q, query_at)?, rope.rotate(&k, key_at)?);
        assert_eq!(q.kind(), kind);
        Ok((wide(&q) * wide(&k)).sum(Kind::Double).double_value(&[]))
    };
    assert!((product(7, 3)? - product(1004, 1000)?).abs() < bound * 8.0);
    assert!((product(7, 3)? - product(7, 4)?).abs() > 0.01, "other distances give other products");
    let length = |x: &Tensor| wide(x).square().sum(Kind::Double).double_value(&[]);
    assert!((length(&rope.rotate(&q, 100)?) / length(&q) - 1.0).abs() < bound);
    assert!(relative(&rope.rotate(&q, 0)?, &q) == 0.0, "position 0 is not rotated");
    Ok(())
}

#[test]
fn invalid_masks_are_refused() -> Result<()> {
    let refused = |result: Result<()>, says: &str| {
        let text = message(result);
        assert!(text.contains(says), "{text}");
    };
    let config = MultiheadAttentionConfig::new(8, 2);
    let new = |config| MultiheadAttention::new(config).map(drop);
    refused(new(MultiheadAttentionConfig { num_heads: 3, ..config }), "heads must divide");
    refused(
        new(MultiheadAttentionConfig { num_kv_heads: 3, ..config }),
        "num_kv_heads is 3, but must divide",
    );
    refused(
        new(MultiheadAttentionConfig { causal: true, add_zero_attn: true, ..config }),
        "add keys without a position, but `causal` needs the position of each key",
    );
    refused(new(MultiheadAttentionConfig { dropout: 1.5, ..config }), "must be a probability");
    refused(
        new(MultiheadAttentionConfig {
            rotary: Some(RotaryPairing::Interleaved),
            ..MultiheadAttentionConfig::new(9, 3)
        }),
        "the width of a head is 3",
    );
    let attention = MultiheadAttention::new(config)?;
    let causal = MultiheadAttention::new(MultiheadAttentionConfig { causal: true, ..config })?;
    let policy = Policy::new(Precision::F32True, device());
    place(&attention, policy, &Default::default())?;
    place(&causal, policy, &Default::default())?;
    let cx = Context::new(policy, true);
    let x = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device()));
    let (q, k) = (x(&[2, 4, 8]), x(&[2, 3, 8]));
    let attend = |mask: &AttentionMask| attention.attend(&q, &k, &k, mask, &cx).map(drop);
    attend(&AttentionMask::none())?;
    let integers = Tensor::ones([2, 3], (Kind::Int64, device()));
    refused(attend(&AttentionMask::padding(&integers)), "key_padding_mask is int64, but must be");
    refused(attend(&AttentionMask::padding(&x(&[3, 2]))), "must be [batch, keys], which is [2, 3]");
    refused(attend(&AttentionMask::of(&x(&[3, 4]))), "must be [4, 3], [4, 4, 3] or 4-D");
    refused(attend(&AttentionMask::of(&x(&[2, 3, 4, 3]))), "does not broadcast to the scores");
    refused(
        attention.attend(&q, &k, &q, &AttentionMask::none(), &cx).map(drop),
        "must be [N, L, 8], [N, S, 8] and [N, S, 8]",
    );
    refused(
        causal.attend(&q, &k, &k, &AttentionMask::none(), &cx).map(drop),
        "there are 4 queries and 3 keys, but `causal` needs equal numbers",
    );
    refused(
        RotaryEmbedding::new(RotaryEmbeddingConfig::new(6, RotaryPairing::HalfRotated))?
            .rotate(&q, 0)
            .map(drop),
        "[2, 4, 8]",
    );
    let negative = RotaryEmbeddingConfig {
        base: -1.0,
        ..RotaryEmbeddingConfig::new(6, RotaryPairing::HalfRotated)
    };
    refused(RotaryEmbedding::new(negative).map(drop), "base -1 is not above 0");
    refused(alibi_bias(0, 3).map(drop), "there must be at least one head");
    Ok(())
}

/// A transformer encoder layer with a padding mask and optional activation checkpointing.
#[derive(Module)]
#[forward(|x, padding: &Tensor| self.layer.forward_masked(x, &AttentionMask::padding(padding), cx))]
struct Checkpointed {
    #[hparam]
    enabled: bool,
    #[layer(checkpoint(transformer_encoder_layer(8, 2, dim_feedforward = 8), enabled = enabled))]
    layer: Checkpoint<TransformerEncoderLayer>,
}

/// Activation checkpointing does not change the gradients of a masked layer. The recomputation
/// reads the mask again: if the mask changes before the backward pass, the gradients change.
#[test]
fn masked_layers_can_be_checkpointed() -> Result<()> {
    let run = |enabled, changes_mask| -> Result<Vec<Tensor>> {
        let _generator = seeded(8);
        let policy = Policy::new(Precision::F32True, device());
        let net = Checkpointed::builder(enabled).build()?;
        place(&net, policy, &Default::default())?;
        let x = random(&[2, 4, 8], Kind::Float);
        let padding = booleans(&[false, false, true, true, false, false, false, true], &[2, 4]);
        let output = net.forward(&x, &padding, &Context::new(policy, true))?;
        if changes_mask {
            let _ = padding.shallow_clone().fill_(0);
        }
        output.square().sum(Kind::Float).backward();
        let mut grads = vec![x.grad()];
        grads.extend(parameters(&net).into_iter().map(|own| own.tensor.grad()));
        Ok(grads)
    };
    let off = |one: &[Tensor], other: &[Tensor]| -> f64 {
        one.iter().zip(other).map(|(one, other)| relative(one, other)).fold(0.0, f64::max)
    };
    let plain = run(false, false)?;
    assert!(off(&run(true, false)?, &plain) < 1e-6);
    assert!(off(&run(false, true)?, &plain) < 1e-6, "without checkpointing, nothing is recomputed");
    assert!(off(&run(true, true)?, &plain) > 0.01, "the recomputation reads the mask");
    Ok(())
}

/// A model whose `#[forward]` closure calls an attention layer, an encoder and a decoder.
#[derive(Module)]
#[forward(|words, image: &Tensor, padding: &Tensor| {
    let mask = AttentionMask::padding(padding);
    let seen = self.look.attend(words, image, image, &mask, cx)?;
    let mut x = self.encoder.forward_masked(&seen, &AttentionMask::none(), cx)?;
    for layer in &self.layers {
        x = layer.forward_masked(&x, &AttentionMask::none(), cx)?;
    }
    let target = own(&turn(&x)?)?;
    decoder(&target, &x, &AttentionMask::none(), &AttentionMask::none())
})]
struct Net {
    #[layer(multihead_attention(8, 2, kdim = 4, vdim = 4, bias = false, dropout = 0.0))]
    #[precision(fp32)]
    look: MultiheadAttention,
    #[layer(transformer_encoder(8, 2, 2, dim_feedforward = 8, activation = swiglu, norm = true))]
    encoder: TransformerEncoder,
    #[layer(repeat(1, |_| transformer_encoder_layer(8, 2, dim_feedforward = 8, dropout = 0.0)))]
    layers: Vec<TransformerEncoderLayer>,
    #[layer(multihead_attention(8, 4, num_kv_heads = 2, rotary = half_rotated, rotary_base = 100.0))]
    own: MultiheadAttention,
    #[layer(rotary_embedding(8, interleaved, base = 500.0))]
    turn: RotaryEmbedding,
    #[layer(transformer_decoder(
        8,
        2,
        1,
        causal = true,
        norm_first = true,
        layer_norm_eps = 1e-4
    ))]
    #[precision(fp32)]
    decoder: TransformerDecoder,
}

/// The dtype probe reports each matrix product with its layer's path and its region's dtype.
#[test]
fn several_inputs_keep_path_and_region() -> Result<()> {
    let _generator = seeded(0);
    let net = Net::builder().build()?;
    let padding = Tensor::from_slice(&[false, false, true]).view([1, 3]);
    let found = products(Precision::Bf16Mixed, &net, |net, cx| {
        let output = net.forward(&ones(&[1, 5, 8]), &ones(&[1, 3, 4]), &padding, cx)?;
        assert_eq!(output.kind(), Kind::Float);
        Ok(())
    })?;
    let (low, high) = (Kind::BFloat16, Kind::Float);
    let layer = |path: &str| {
        ["self_attn.out_proj", "self_attn", "linear1", "linear2"]
            .map(|name| (format!("{path}.{name}"), low))
    };
    let one = |path: &str, kind| [(path.to_owned(), kind)];
    let decoder = |name: &str| one(&format!("decoder.layers.0.{name}"), high);
    let expected = [
        &one("look.out_proj", high)[..],
        &one("look", high),
        &layer("encoder.layers.0"),
        &layer("encoder.layers.1"),
        &layer("layers.0"),
        &one("own.out_proj", low),
        &one("own", low),
        &decoder("self_attn.out_proj"),
        &decoder("self_attn"),
        &decoder("multihead_attn.out_proj"),
        &decoder("multihead_attn"),
        &decoder("linear1"),
        &decoder("linear2"),
    ]
    .concat();
    assert_eq!(found, expected);
    Ok(())
}
