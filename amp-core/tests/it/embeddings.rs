//! Tests of the padding index of embeddings, and of embedding bags that the derive macro builds.

use amp_core::{
    Module, Result,
    nn::{
        BagMode, Context, Embedding, EmbeddingBag, EmbeddingBagConfig, EmbeddingConfig, Forward,
        RmsNorm, parameters, place,
    },
    precision::{Policy, Precision},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::{bits::wide, device, message, seeded};

fn row(tensor: &Tensor, index: i64) -> f64 {
    wide(&tensor.get(index)).abs().max().double_value(&[])
}

/// The vector of the padding index is zero and its gradient is zero, for a positive and a negative
/// padding index. All other vectors and their gradients are not zero.
#[rstest]
fn padding_is_not_trained(
    #[values(Precision::F32True, Precision::Bf16Mixed, Precision::Bf16True)] precision: Precision,
    #[values(2, -3)] padding_idx: i64,
) -> Result<()> {
    let _generator = seeded(0);
    let policy = Policy::new(precision, device());
    let table = Embedding::new(EmbeddingConfig {
        padding_idx: Some(padding_idx),
        ..EmbeddingConfig::new(5, 4)
    })?;
    place(&table, policy, &Default::default())?;
    let ids = Tensor::from_slice(&[0_i64, 2, 1, 2, 4, 3]).view([2, 3]).to_device(device());
    let output = {
        let _autocast = policy.autocast()?;
        table.forward(&ids, &Context::new(policy, true))?
    };
    (output + 1.0).square().sum(Kind::Float).backward();
    let grad = table.weight().grad();
    for index in 0..5 {
        let is_padding = index == 2;
        assert_eq!(row(table.weight(), index) == 0.0, is_padding, "weight {index}");
        assert_eq!(row(&grad, index) == 0.0, is_padding, "gradient {index}");
    }
    Ok(())
}

#[test]
fn invalid_arguments_are_refused() -> Result<()> {
    let refused = |result: Result<()>, says: &str| {
        let text = message(result);
        assert!(text.contains(says), "{text}");
    };
    for padding_idx in [5, -6] {
        let config =
            EmbeddingConfig { padding_idx: Some(padding_idx), ..EmbeddingConfig::new(5, 4) };
        refused(
            Embedding::new(config).map(drop),
            &format!("padding_idx {padding_idx} is outside the table of 5 vectors"),
        );
    }
    let config = EmbeddingBagConfig::new(5, 4);
    let bag = EmbeddingBag::new(config)?;
    let policy = Policy::new(Precision::F32True, device());
    place(&bag, policy, &Default::default())?;
    let cx = Context::new(policy, true);
    let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, device()));
    let ids = zeros(&[2, 3], Kind::Int64);
    let run = |ids: &Tensor, offsets: Option<&Tensor>, weights: Option<&Tensor>| {
        bag.forward_with((ids, offsets, weights), &cx).map(drop)
    };
    run(&ids, None, None)?;
    let (offsets, weights) = (zeros(&[2], Kind::Int64), zeros(&[2, 3], Kind::Float));
    refused(run(&ids, Some(&offsets), None), "the indices of all bags must be concatenated");
    refused(run(&offsets, None, None), "must be [bags, length], but are [2]");
    refused(run(&ids, None, Some(&weights)), "weights need the mode Sum, but the mode is Mean");
    refused(run(&weights, None, None), "indices are float32");
    let sums = EmbeddingBag::new(EmbeddingBagConfig { mode: BagMode::Sum, ..config })?;
    place(&sums, policy, &Default::default())?;
    refused(
        sums.forward_with((&ids, None, Some(&weights.narrow(1, 0, 2))), &cx).map(drop),
        "the weights are [2, 2], but must have the shape of the indices, [2, 3]",
    );
    Ok(())
}

/// A model whose layers have options of the type `Option`. In an attribute, such an option may be
/// `None`, `Some(…)` or a plain value.
#[derive(Module)]
#[forward(|ids, offsets: &Tensor| {
    let x = words(ids)?.f_add(&other(ids)?)?;
    let x = norm(&own_eps(&x)?)?.f_sum_dim_intlist([0].as_slice(), true, x.kind())?;
    Ok(x.f_add(&bags(ids, Some(offsets), None)?)?)
})]
struct Net {
    #[layer(embedding(10, 4, padding_idx = 0, scale_grad_by_freq = true))]
    words: Embedding,
    #[layer(embedding(10, 4, padding_idx = None))]
    other: Embedding,
    #[layer(embedding_bag(10, 4, mode = max, padding_idx = Some(-1)))]
    bags: EmbeddingBag,
    #[layer(rms_norm(4, eps = 1e-6))]
    norm: RmsNorm,
    #[layer(rms_norm(4, eps = Some(1e-5)))]
    own_eps: RmsNorm,
}

#[test]
fn attributes_build_embeddings() -> Result<()> {
    let _generator = seeded(0);
    let net = Net::builder().build()?;
    let cx = Context::new(Policy::new(Precision::F32True, amp_core::tch::Device::Cpu), true);
    let (ids, offsets) = (Tensor::from_slice(&[1_i64, 2, 9]), Tensor::from_slice(&[0_i64, 1]));
    assert_eq!(net.forward(&ids, &offsets, &cx)?.size(), [2, 4]);
    let own = parameters(&net);
    let table = |name: &str| {
        let found = own.iter().find(|own| own.name == name);
        &found.unwrap_or_else(|| panic!("{name}")).tensor
    };
    assert_eq!(row(table("words.weight"), 0), 0.0);
    assert_ne!(row(table("other.weight"), 0), 0.0);
    assert_eq!(row(table("bags.weight"), 9), 0.0);
    Ok(())
}
