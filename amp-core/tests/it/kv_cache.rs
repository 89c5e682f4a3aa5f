//! Tests that forward passes over parts of a sequence with a KV cache give the same outputs as one
//! forward pass over the whole sequence.

use std::collections::BTreeMap;

use amp_core::{
    nn::{
        AttentionMask, Context, Forward, KvCache, Lstm, LstmConfig, MultiheadAttentionConfig,
        RotaryPairing, TransformerEncoder, causal_attention, place, split_heads,
    },
    precision::Policy,
    prelude::*,
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device, message, needs_cuda, seeded,
};

const WIDTH: i64 = 24;
const HEADS: i64 = 6;
const LENGTH: i64 = 9;
const ROWS: i64 = 3;

/// Attention that the user has written with `split_heads` and `causal_attention`. These functions
/// use the KV cache too.
#[derive(Module)]
#[forward(|x| {
    let [q, k, v] = split_heads(&qkv(x)?, HEADS)?;
    out(&causal_attention(&q, &k, &v, cx)?.f_transpose(1, 2)?.f_flatten(2, 3)?)
})]
struct Own {
    #[layer(linear(WIDTH, 3 * WIDTH))]
    qkv: Linear,
    #[layer(linear(WIDTH, WIDTH))]
    out: Linear,
}

/// The model of these tests. It consists of an embedding of tokens, an embedding of positions, two
/// kinds of attention and a transformer block.
#[derive(Module)]
#[forward(|ids| {
    let x = words(ids)?.f_add(&places(&cx.places(ids)?)?)?;
    let x = x.f_add(&attention(&x)?)?;
    head(&body(&x.f_add(&own(&x)?)?)?)
})]
struct Writer {
    #[hparam]
    config: MultiheadAttentionConfig,
    #[layer(embedding(40, WIDTH))]
    words: Embedding,
    #[layer(embedding(64, WIDTH))]
    places: Embedding,
    #[layer(MultiheadAttention::new(config)?)]
    attention: MultiheadAttention,
    #[layer(Own::builder().build()?)]
    own: Own,
    #[layer(transformer_encoder(
        WIDTH,
        HEADS,
        2,
        dim_feedforward = 32,
        norm_first = true,
        causal = true,
        norm = true,
        dropout = 0.0,
    ))]
    body: TransformerEncoder,
    #[layer(linear(WIDTH, 40))]
    head: Linear,
}

fn config(num_kv_heads: i64, rotary: Option<RotaryPairing>) -> MultiheadAttentionConfig {
    MultiheadAttentionConfig {
        num_kv_heads,
        rotary,
        causal: true,
        ..MultiheadAttentionConfig::new(WIDTH, HEADS)
    }
}

fn writer(config: MultiheadAttentionConfig, policy: Policy) -> Result<Writer> {
    let model = Writer::builder(config).build()?;
    place(&model, policy, &BTreeMap::new())?;
    Ok(model)
}

fn ids(policy: Policy) -> Tensor {
    Tensor::randint(40, [ROWS, LENGTH], (Kind::Int64, Device::Cpu)).to_device(policy.device)
}

/// Returns two outputs for the same sequence: the output of one forward pass over the whole
/// sequence, and the joined outputs of several forward passes. `parts` contains the number of
/// tokens of each of these passes.
fn both<M>(model: &M, policy: Policy, parts: &[i64], room: i64) -> Result<[Tensor; 2]>
where
    M: Forward<Input = (&'static Tensor,), Output = Tensor>,
{
    let ids = ids(policy);
    let whole = {
        let _autocast = policy.autocast()?;
        amp_core::tch::no_grad(|| model.forward_with((&ids,), &Context::new(policy, false)))?
    };
    let (mut cache, mut logits) = (KvCache::with_room(room), Vec::new());
    for length in parts {
        let new = ids.narrow(1, cache.tokens(), *length);
        logits.push(cache.extend(model, &new, Context::new(policy, false))?);
    }
    assert_eq!(cache.tokens(), LENGTH);
    Ok([whole, Tensor::cat(&logits, 1)])
}

const ONES: [i64; 9] = [1; 9];

#[rstest]
#[case::heads(HEADS, None)]
#[case::groups(2, None)]
#[case::one_group(1, None)]
#[case::rotary(HEADS, Some(RotaryPairing::Interleaved))]
#[case::rotary_groups(3, Some(RotaryPairing::HalfRotated))]
fn cached_logits_are_the_uncached_ones(
    #[case] num_kv_heads: i64,
    #[case] rotary: Option<RotaryPairing>,
    #[values(&ONES, &[5, 1, 1, 1, 1], &[3, 4, 1, 1], &[1, 6, 2], &[9])] parts: &[i64],
    #[values(0, 64)] room: i64,
) -> Result<()> {
    let _generator = seeded(4);
    let policy = Policy::new(Precision::F64True, device());
    let model = writer(config(num_kv_heads, rotary), policy)?;
    let [whole, cached] = both(&model, policy, parts, room)?;
    assert!(relative(&cached, &whole) < 1e-13, "{}", relative(&cached, &whole));
    Ok(())
}

/// Asserts that the output of one forward pass and the joined outputs of several forward passes are
/// equal up to a few roundings in the dtype of the matrix products. They need not have the same
/// bits, because the two computations round at different points.
fn is_within_a_few_roundings(precision: Precision, device: Device) -> Result<()> {
    let _generator = seeded(5);
    let policy = Policy::new(precision, device);
    let model = writer(config(2, Some(RotaryPairing::HalfRotated)), policy)?;
    let rounding = match precision.compute() {
        Kind::Half => 2_f64.powi(-11),
        Kind::BFloat16 => 2_f64.powi(-8),
        Kind::Float => 2_f64.powi(-24),
        _ => 2_f64.powi(-53),
    };
    for parts in [&ONES[..], &[4, 1, 3, 1]] {
        let [whole, cached] = both(&model, policy, parts, 0)?;
        assert_eq!(cached.kind(), whole.kind());
        let error = relative(&wide(&cached), &wide(&whole));
        assert!(
            error < 16.0 * rounding,
            "{precision}: {error:e}, {:.1} roundings",
            error / rounding
        );
    }
    Ok(())
}

#[rstest]
fn lower_precisions_differ_by_roundings(
    #[values(
        Precision::F32True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
) -> Result<()> {
    is_within_a_few_roundings(precision, device())
}

#[test]
#[ignore = "needs a CUDA device"]
fn lower_precisions_differ_by_roundings_on_cuda() -> Result<()> {
    needs_cuda();
    Precision::ALL
        .into_iter()
        .try_for_each(|precision| is_within_a_few_roundings(precision, device()))
}

/// If a mask marks padding before a sequence, the outputs of the sequence are the same as without
/// the padding.
#[rstest]
fn padding_before_a_prompt_changes_nothing(#[values(false, true)] floating: bool) -> Result<()> {
    let _generator = seeded(6);
    let policy = Policy::new(Precision::F64True, device());
    let attention = MultiheadAttention::new(config(3, None))?;
    place(&attention, policy, &BTreeMap::new())?;
    let x = Tensor::randn([1, LENGTH, WIDTH], (Kind::Double, Device::Cpu)).to_device(policy.device);
    let padding = Tensor::arange(LENGTH, (Kind::Int64, policy.device)).lt(3).unsqueeze(0);
    let mask = |keys: i64| {
        let mask = padding.narrow(1, 0, keys);
        let zeros = mask.zeros_like().to_kind(Kind::Double);
        AttentionMask::padding(&match floating {
            true => zeros.masked_fill(&mask, f64::NEG_INFINITY),
            false => mask,
        })
    };
    let (mut cache, mut parts) = (KvCache::new(), Vec::new());
    for length in [5, 2, 1, 1] {
        let new = x.narrow(1, cache.tokens(), length);
        let mask = mask(cache.tokens() + length);
        parts.push(cache.extend_with(length, Context::new(policy, false), |cx| {
            let _ = cx.past();
            attention.attend(&new, &new, &new, &mask, cx)
        })?);
    }
    let alone = x.narrow(1, 3, LENGTH - 3);
    let expected = attention.forward(&alone, &Context::new(policy, false))?;
    let found = Tensor::cat(&parts, 1).narrow(1, 3, LENGTH - 3);
    assert!(relative(&found, &expected.detach()) < 1e-13);
    Ok(())
}

/// If a forward pass fails, it does not change the KV cache, so the next forward pass gives the
/// correct output.
#[test]
fn a_failed_pass_changes_nothing() -> Result<()> {
    let _generator = seeded(7);
    let policy = Policy::new(Precision::F64True, device());
    let model = writer(config(2, None), policy)?;
    let ids = ids(policy);
    let cx = || Context::new(policy, false);
    let whole = amp_core::tch::no_grad(|| model.forward(&ids, &cx()))?;
    let mut cache = KvCache::new();
    let _ = cache.extend(&model, &ids.narrow(1, 0, 4), cx())?;
    let other = ids.narrow(1, 0, 2);
    let failed = cache.extend_with(2, cx(), |cx| -> Result<Tensor> {
        let _ = model.forward(&other, cx)?;
        Err(Error::config("no room"))
    });
    assert_eq!(message(failed), "no room");
    assert_eq!(cache.tokens(), 4);
    let rest = cache.extend(&model, &ids.narrow(1, 4, 5), cx())?;
    assert!(relative(&rest, &whole.narrow(1, 4, 5)) < 1e-13);
    cache.clear();
    let again = cache.extend(&model, &ids, cx())?;
    assert!(relative(&again, &whole) < 1e-13);
    Ok(())
}

/// If the first pass of a cache fails, the cache stays empty. The next pass may have another batch
/// size and dtype than the failed one, and run other layers.
#[test]
fn a_failed_first_pass_leaves_the_cache_empty() -> Result<()> {
    let _generator = seeded(9);
    let policies =
        [Precision::F32True, Precision::F64True].map(|precision| Policy::new(precision, device()));
    let ids = ids(policies[1]);
    let mut cache = KvCache::new();
    let first = writer(config(2, None), policies[0])?;
    let cx = Context::new(policies[0], false);
    let failed = cache.extend_with(4, cx, |cx| -> Result<Tensor> {
        let _ = first.forward(&ids.narrow(0, 0, 1).narrow(1, 0, 4), cx)?;
        Err(Error::config("no room"))
    });
    assert_eq!(message(failed), "no room");
    // The attention called `one` adds its keys and values to the cache. After that, the attention
    // called `other` fails.
    let failed = cache.extend_with(1, Context::new(policies[0], false), |cx| {
        let x = Tensor::ones([1, 1, WIDTH], (Kind::Float, device()));
        let x = cx.call("one", None, &first.attention, &x)?;
        cx.call("other", None, &first.attention, &Tensor::cat(&[&x, &x], 1))
    });
    assert!(message(failed).contains("in a pass of 1 tokens"));
    assert_eq!(cache.tokens(), 0);
    let model = writer(config(2, None), policies[1])?;
    let cx = || Context::new(policies[1], false);
    let whole = amp_core::tch::no_grad(|| model.forward(&ids, &cx()))?;
    let found = cache.extend(&model, &ids, cx())?;
    assert!(relative(&found, &whole) < 1e-13);
    Ok(())
}

/// An input that would silently give wrong results with a KV cache is refused.
#[test]
fn what_a_cache_cannot_hold_is_refused() -> Result<()> {
    let _generator = seeded(8);
    let policy = Policy::new(Precision::F64True, Device::Cpu);
    let cx = || Context::new(policy, false);
    let attention = |config| -> Result<MultiheadAttention> {
        let attention = MultiheadAttention::new(config)?;
        place(&attention, policy, &BTreeMap::new())?;
        Ok(attention)
    };
    let causal = attention(config(HEADS, None))?;
    let open = attention(MultiheadAttentionConfig::new(WIDTH, HEADS))?;
    let x =
        |rows: i64, length: i64| Tensor::ones([rows, length, WIDTH], (Kind::Double, Device::Cpu));
    let run = |cache: &mut KvCache, module: &dyn Module, x: &Tensor, declared: i64| {
        cache.extend_with(declared, cx(), |cx| {
            let _ = cx.past();
            module.forward(x, cx)
        })
    };
    let says = |result: Result<Tensor>, expected: &str| {
        let text = message(result);
        assert!(text.contains(expected), "{text}");
    };
    let filled = || -> Result<KvCache> {
        let mut cache = KvCache::new();
        let _ = run(&mut cache, &causal, &x(2, 3), 3)?;
        Ok(cache)
    };

    says(
        run(&mut KvCache::new(), &open, &x(1, 2), 2),
        "only causal attention runs with a KV cache",
    );
    says(run(&mut KvCache::new(), &causal, &x(1, 2), 3), "in a pass of 3 tokens: they must be");
    says(run(&mut KvCache::new(), &causal, &x(1, 2), 0), "length is 0, but a pass must");
    says(run(&mut filled()?, &causal, &x(1, 1), 1), "a cache is for one batch of sequences");
    let other = cx();
    says(
        KvCache::new().extend_with(2, other, |_| Ok(x(1, 2))),
        "no attention layer of the model used the cache: call `causal_attention`",
    );
    says(
        filled()?.extend_with(1, cx(), |_| Ok(x(1, 2))),
        "ran in an earlier pass, but not in this",
    );
    says(
        filled()?.extend_with(1, cx(), |cx| causal.forward(&x(2, 1), cx)),
        "the model did not ask for the positions of its tokens, although 3 tokens came before",
    );
    says(
        filled()?.extend_with(1, cx(), |cx| cx.call("other", None, &causal, &x(2, 1))),
        "the attention `other` did not run in an earlier pass",
    );
    says(
        KvCache::new().extend_with(1, cx(), |cx| {
            let once = causal.forward(&x(2, 1), cx)?;
            causal.forward(&once, cx)
        }),
        "ran twice in one pass",
    );
    says(
        KvCache::new()
            .extend_with(1, Context::new(policy, true), |cx| causal.forward(&x(2, 1), cx)),
        "a training pass cannot use a cache",
    );
    let lstm = Lstm::new(LstmConfig::new(WIDTH, 4))?;
    place(&lstm, policy, &BTreeMap::new())?;
    says(
        KvCache::new()
            .extend_with(1, cx(), |cx| Ok(lstm.forward_with((&x(2, 1), None, None), cx)?.0)),
        "recurrent layer: a KV cache does not store the layer's state",
    );
    says(
        KvCache::new().extend(&causal, &x(1, 2), cx()),
        "the ids are [1, 2, 24], but must be [N, L]",
    );
    Ok(())
}
