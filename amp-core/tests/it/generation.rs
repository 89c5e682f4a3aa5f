//! Tests of text generation. The tokens that continue a prompt equal those of transformers'
//! `generate`. Sampled tokens have the probabilities of transformers' samplers.

use std::collections::BTreeMap;

use amp_core::{
    generate::{Generation, Sampling},
    nn::{TransformerEncoder, linear, named_tensors, place},
    precision::Policy,
    prelude::*,
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::from_bits,
    device, message,
    oracle::{Lcg, integer, list, number, oracle, parsed, text},
    seeded,
};

const VOCABULARY: i64 = 40;
const PLACES: i64 = 32;
const WIDTH: i64 = 16;

#[derive(Module)]
#[forward(|ids| {
    let x = wte(ids)?.f_add(&wpe(&cx.places(ids)?)?)?;
    linear(&h(&x)?, self.wte.weight(), None)
})]
struct Gpt2 {
    #[layer(embedding(VOCABULARY, WIDTH))]
    wte: Embedding,
    #[layer(embedding(PLACES, WIDTH))]
    wpe: Embedding,
    #[layer(transformer_encoder(
        WIDTH, 4, 2,
        dim_feedforward = 4 * WIDTH,
        activation = gelu_tanh,
        norm_first = true,
        causal = true,
        norm = true,
    ))]
    h: TransformerEncoder,
}

/// Returns the model whose outputs were recorded from transformers. Its weights are drawn from the
/// same pseudorandom sequence as in the recording. 1 is added to the weights of its norms.
fn gpt2(policy: Policy) -> Result<Gpt2> {
    let (model, mut generator) = (Gpt2::builder().build()?, Lcg(8));
    place(&model, policy, &BTreeMap::new())?;
    for (name, tensor, _) in named_tensors(&model) {
        let values = generator.tensor(&tensor.size(), 160.0);
        let values =
            if name.contains("norm") && name.ends_with("weight") { values + 1 } else { values };
        amp_core::tch::no_grad(|| tensor.shallow_clone().copy_(&values));
    }
    Ok(model)
}

fn ids(value: &Value) -> Tensor {
    let rows: Vec<Vec<i64>> = serde_json::from_value(value.clone()).expect("lists of tokens");
    let length = rows[0].len() as i64;
    Tensor::from_slice(&rows.concat()).view([-1, length])
}

fn policy() -> Policy {
    Policy::new(Precision::F64True, device())
}

/// If the most likely token is always chosen, the tokens equal those of transformers. This holds
/// with and without a KV cache, up to the last position of the context, and with a token that ends
/// a sequence.
#[rstest]
fn the_likeliest_tokens_are_those_of_transformers(
    #[values(true, false)] cache: bool,
) -> Result<()> {
    let _generator = seeded(0);
    let greedy = &oracle!("generation.json")["greedy"];
    let (model, prompts) = (gpt2(policy())?, ids(&greedy["prompts"]));
    let options = Generation { cache, ..Generation::new(27, PLACES) };
    let mut shown = Vec::new();
    let found = options.run_with(&model, &prompts, policy(), |tokens| {
        shown.push(Tensor::from_slice(tokens));
        Ok(())
    })?;
    assert_eq!(found, ids(&greedy["tokens"]));
    assert_eq!(Tensor::stack(&shown, 1), found.narrow(1, 5, 27));
    let ended = Generation { end: Some(integer(greedy, "end")), ..options };
    assert_eq!(ended.run(&model, &prompts, policy())?, ids(&greedy["ended"]));
    let one = found.narrow(0, 0, 1);
    let options = Generation { end: Some(integer(greedy, "end")), ..Generation::new(9, PLACES) };
    // The third new token of the first sequence is the end token, so the generation stops there.
    assert_eq!(options.run(&model, &one.narrow(1, 0, 5), policy())?, one.narrow(1, 0, 8));
    Ok(())
}

#[test]
fn probabilities_are_those_of_transformers() -> Result<()> {
    let logits = Lcg(10).tensor(&[5, 24], 32.0);
    for case in list(&oracle!("generation.json"), "samplers") {
        let sampling = Sampling {
            temperature: number(case, "temperature"),
            top_k: case["top_k"].as_i64(),
            top_p: case["top_p"].as_str().map(|_| parsed(&case["top_p"])),
        };
        let expected = from_bits(Kind::Double, text(case, "probabilities")).view([5, 24]);
        let found = sampling.probabilities(&logits)?;
        assert_eq!(found.eq(0.0), expected.eq(0.0), "{sampling:?}");
        assert!(found.allclose(&expected, 1e-14, 0.0, false), "{sampling:?}");
    }
    Ok(())
}

/// A model that returns the same logits at every position, whatever its input is.
#[derive(Module)]
#[forward(|ids| none(&self.logits.f_expand([ids.size()[0], ids.size()[1], 4], false)?))]
struct Dice {
    #[layer(identity)]
    none: Identity,
    #[buffer(init = Tensor::from_slice(&[0.1_f64, 0.2, 0.3, 0.4]).log())]
    logits: Tensor,
}

/// The relative frequency of each token is within five standard errors of the token's probability.
/// The tokens of a sequence depend only on the seed and on the position of the sequence in the
/// batch.
#[test]
fn tokens_are_chosen_by_their_probabilities() -> Result<()> {
    let policy = Policy::new(Precision::F64True, Device::Cpu);
    let dice = Dice::builder().build()?;
    place(&dice, policy, &BTreeMap::new())?;
    let (rows, new) = (20, 500);
    let run = |sampling, seed, rows: i64| {
        let prompt = Tensor::zeros([rows, 1], (Kind::Int64, Device::Cpu));
        let options = Generation { sampling, seed, cache: false, ..Generation::new(new, 8) };
        options.run(&dice, &prompt, policy)
    };
    let cases = [
        (Sampling::at(1.0), [0.1, 0.2, 0.3, 0.4]),
        (Sampling { top_k: Some(2), ..Sampling::at(1.0) }, [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]),
        (
            Sampling { top_p: Some(0.85), ..Sampling::at(1.0) },
            [0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0],
        ),
        (Sampling::at(0.5), [1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0]),
        (Sampling::default(), [0.0, 0.0, 0.0, 1.0]),
    ];
    for (sampling, probabilities) in cases {
        let tokens = run(sampling, 1, rows)?.narrow(1, 1, new);
        let count = (rows * new) as f64;
        for (token, p) in (0..).zip(probabilities) {
            let share = tokens.eq(token as i64).sum(Kind::Double).double_value(&[]) / count;
            let error = 5.0 * (p * (1.0_f64 - p) / count).sqrt();
            assert!((share - p).abs() <= error, "{sampling:?}: share {share} of {token}, not {p}");
        }
    }
    let sampling = Sampling::at(1.0);
    let all = run(sampling, 1, rows)?;
    assert_eq!(run(sampling, 1, 3)?, all.narrow(0, 0, 3));
    assert_ne!(run(sampling, 2, rows)?, all);
    assert_ne!(all.get(0), all.get(1));
    Ok(())
}

/// If a text is longer than the context, the model reads only the last tokens of the text, with and
/// without a KV cache.
#[test]
fn a_long_text_goes_on_with_its_last_tokens() -> Result<()> {
    let _generator = seeded(0);
    let model = gpt2(policy())?;
    let prompt = Tensor::from_slice(&[3_i64, 1, 4, 1, 5]).view([1, 5]);
    let run = |new, cache, prompt: &Tensor| {
        Generation { cache, ..Generation::new(new, 8) }.run(&model, prompt, policy())
    };
    let found = run(20, true, &prompt)?;
    assert_eq!(found, run(20, false, &prompt)?);
    // Each next token depends only on the eight tokens before it, which fill the context.
    for start in 0..=16 {
        let window = found.narrow(1, start, 8);
        let next = run(1, false, &window)?.narrow(1, 8, 1);
        assert_eq!(next, found.narrow(1, start + 8, 1), "after the window at {start}");
    }
    assert_eq!(run(1, true, &found.narrow(1, 0, 18))?, found.narrow(1, 0, 19));
    Ok(())
}

/// A model with a mistake: it counts positions from 0 in every forward pass and does not use the KV
/// cache.
#[derive(Module)]
#[forward(|ids| {
    let places = Tensor::f_arange(ids.size()[1], (Kind::Int64, ids.device()))?;
    linear(&h(&wte(ids)?.f_add(&wpe(&places)?)?)?, self.wte.weight(), None)
})]
struct Counting {
    #[layer(embedding(VOCABULARY, WIDTH))]
    wte: Embedding,
    #[layer(embedding(PLACES, WIDTH))]
    wpe: Embedding,
    #[layer(transformer_encoder(WIDTH, 4, 1, dim_feedforward = 8, causal = true))]
    h: TransformerEncoder,
}

#[test]
fn what_cannot_be_generated_is_refused() -> Result<()> {
    let _generator = seeded(0);
    let policy = Policy::new(Precision::F64True, Device::Cpu);
    let model = gpt2(policy)?;
    let prompt = Tensor::from_slice(&[3_i64, 1]).view([1, 2]);
    let options = || Generation::new(3, PLACES);
    let says = |result: Result<Tensor>, expected: &str| {
        let text = message(result);
        assert!(text.contains(expected), "{text}");
    };
    let sampled = |sampling| Generation { sampling, ..options() }.run(&model, &prompt, policy);
    says(sampled(Sampling::at(-1.0)), "temperature -1: it must be 0 or above");
    says(sampled(Sampling::at(f64::NAN)), "temperature NaN");
    says(
        sampled(Sampling { top_k: Some(0), ..Sampling::at(1.0) }),
        "top_k 0: it must be at least 1",
    );
    says(
        sampled(Sampling { top_p: Some(0.0), ..Sampling::at(1.0) }),
        "top_p 0: it must be above 0",
    );
    says(sampled(Sampling { top_p: Some(1.5), ..Sampling::at(1.0) }), "top_p 1.5");
    says(sampled(Sampling { top_k: Some(3), ..Sampling::default() }), "set a temperature");
    says(Generation::new(0, 8).run(&model, &prompt, policy), "max_new_tokens 0 and context 8");
    says(options().run(&model, &prompt.get(0), policy), "the prompt is [2] of dtype Int64");
    says(
        options().run(&model, &prompt.to_kind(Kind::Float), policy),
        "of dtype Float, but must be",
    );
    says(options().run(&model, &prompt.narrow(1, 0, 0), policy), "the prompt is [1, 0]");
    let counting = Counting::builder().build()?;
    place(&counting, policy, &BTreeMap::new())?;
    says(options().run(&counting, &prompt, policy), "the model did not ask for the positions");
    assert_eq!(
        Generation { cache: false, ..options() }.run(&counting, &prompt, policy)?.size(),
        [1, 5]
    );
    for (name, tensor, _) in named_tensors(&model) {
        if name == "h.norm.bias" {
            let _ = amp_core::tch::no_grad(|| tensor.get(3).fill_(f64::NAN));
        }
    }
    says(options().run(&model, &prompt, policy), "logits are not finite");
    Ok(())
}
