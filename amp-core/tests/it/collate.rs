//! Tests of how the tensors of examples are stacked or padded to form a batch. If neither is
//! possible, the error contains the name of the field, the indices of the examples and their
//! shapes.

use amp_core::{
    data::{
        AnyBatch, BatchField, Collate, DataLoader, FieldRole, Loading, MapDataset, Pad, Placement,
    },
    precision::Policy,
    prelude::*,
    random::Rng,
};
use rstest::rstest;

use crate::support::{bits::values, message};

#[derive(Batch)]
struct Part {
    #[batch(ids)]
    tokens: Tensor,
}

#[derive(Batch)]
struct Sentence {
    source: Part,
    #[batch(mask)]
    mask: Option<Tensor>,
    score: Tensor,
    #[batch(shared)]
    scale: Tensor,
}

fn sentence(tokens: &[i64], score: f32) -> Sentence {
    Sentence {
        source: Part { tokens: Tensor::from_slice(tokens) },
        mask: None,
        score: Tensor::from(score),
        scale: Tensor::from_slice(&[2.0f32]),
    }
}

fn some() -> Vec<(i64, Sentence)> {
    vec![(4, sentence(&[5, 6, 7], 0.5)), (9, sentence(&[8], 1.5)), (2, sentence(&[], 2.5))]
}

fn tokens() -> Pad {
    Pad::new("source.tokens", 1.0)
}

/// Sequences are padded as by
/// `torch.nn.utils.rnn.pad_sequence(…, batch_first=True, padding_value=1)`, with masks and lengths.
/// The batch can be read as the struct `Sentence`.
#[test]
fn sequences_are_padded_with_their_masks_and_lengths() -> Result<()> {
    let pad = tokens().attention_mask("mask").key_padding_mask("padding").lengths("lengths");
    let batch = Collate::new().pad(pad).batch(&some())?;
    assert_eq!(batch.len(), 3);
    let ids = batch.required("source.tokens")?;
    assert_eq!((ids.size(), ids.kind()), (vec![3, 3], Kind::Int64));
    assert_eq!(values(ids), [5.0, 6.0, 7.0, 8.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(values(batch.required("score")?), [0.5, 1.5, 2.5]);
    assert_eq!(batch.required("scale")?.size(), [1], "a shared tensor is not stacked");
    let mask = batch.required("mask")?;
    assert_eq!(mask.kind(), Kind::Bool);
    assert_eq!(values(mask), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(values(batch.required("padding")?), values(&mask.logical_not()));
    let lengths = batch.required("lengths")?;
    assert_eq!((lengths.kind(), values(lengths)), (Kind::Int64, vec![3.0, 1.0, 0.0]));
    let typed = Sentence::from_any(&batch)?;
    assert!(typed.mask.is_some_and(|taken| taken.equal(mask)));
    assert!(typed.source.tokens.equal(ids));
    Ok(())
}

#[rstest]
#[case(tokens(), 3)]
#[case(tokens().multiple_of(8), 8)]
#[case(tokens().multiple_of(3), 3)]
#[case(tokens().to(5), 5)]
fn the_padded_length_follows_the_option(#[case] pad: Pad, #[case] length: i64) -> Result<()> {
    let batch = Collate::new().pad(pad).batch(&some())?;
    assert_eq!(batch.required("source.tokens")?.size(), [3, length]);
    Ok(())
}

/// Padding changes only the length of a sequence and no other dimension. A padded floating-point
/// sequence keeps its dtype.
#[test]
fn sequences_of_vectors_are_padded() -> Result<()> {
    let example = |length: i64| Batch {
        input: Tensor::ones([length, 2], (Kind::Half, Device::Cpu)),
        target: Tensor::from(length),
    };
    let collate = Collate::new().pad(Pad::new("input", -0.5));
    let batch = collate.batch(&[(0, example(1)), (1, example(2))])?;
    let input = batch.required("input")?;
    assert_eq!((input.size(), input.kind()), (vec![2, 2, 2], Kind::Half));
    assert_eq!(values(input), [1.0, 1.0, -0.5, -0.5, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(batch.required("target")?.size(), [2]);
    Ok(())
}

fn image(side: i64) -> Batch {
    let input = Tensor::zeros([3, side, side], (Kind::Float, Device::Cpu));
    Batch { input, target: Tensor::from(1_i64) }
}

fn refused(collate: &Collate, examples: &[(i64, impl BatchField)]) -> String {
    message(collate.batch(examples))
}

#[test]
fn images_of_one_size_are_stacked() -> Result<()> {
    let batch = Collate::new().batch(&[(0, image(4)), (1, image(4))])?;
    assert_eq!(batch.required("input")?.size(), [2, 3, 4, 4]);
    Ok(())
}

/// Each error names the field, the indices of two examples, and how their tensors differ.
#[test]
fn examples_that_do_not_fit_are_refused() {
    let stacks = Collate::new();
    let shape = refused(&stacks, &[(3, image(4)), (17, image(5))]);
    assert_eq!(
        shape,
        "`input` has shape [3, 4, 4] in example 3, but [3, 5, 5] in example 17: make the shapes equal, or \
         declare padding with Collate::pad"
    );
    let rows = Collate::new().pad(Pad::new("input", 0.0));
    let text = refused(&rows, &[(3, image(4)), (17, image(5))]);
    assert!(text.contains("in example 17: padding changes only the first dimension"), "{text}");
    let double = Batch { target: Tensor::from(1.5), ..image(4) };
    assert_eq!(
        refused(&stacks, &[(3, image(4)), (17, double)]),
        "`target` has dtype Int64 in example 3, but Double in example 17: give both the same dtype"
    );
    let masked = Sentence { mask: Some(Tensor::from(true)), ..sentence(&[1], 0.0) };
    for (examples, with, without) in [
        ([(3, sentence(&[1], 0.0)), (17, masked)], 17, 3),
        (
            [
                (3, Sentence { mask: Some(Tensor::from(true)), ..sentence(&[1], 0.0) }),
                (17, sentence(&[1], 0.0)),
            ],
            3,
            17,
        ),
    ] {
        let text = refused(&stacks, &examples);
        let says = format!(
            "example {with} has `mask`, but example {without} does not: give both the same fields"
        );
        assert_eq!(text, says);
    }
    let other = Sentence { scale: Tensor::from_slice(&[3.0f32]), ..sentence(&[1], 0.0) };
    let text = refused(&stacks, &[(3, sentence(&[1], 0.0)), (17, other)]);
    assert!(
        text.starts_with("`scale` is shared by the batch, but examples 3 and 17 have different"),
        "{text}"
    );
    let none: [(i64, Batch); 0] = [];
    assert_eq!(refused(&stacks, &none), "a batch needs at least one example");
}

#[rstest]
#[case(
    Pad::new("tokens", 0.0),
    "Pad names the field `tokens`, but the examples have the fields source.tokens, score, scale: name one"
)]
#[case(
    Pad::new("score", 0.0),
    "`score` of example 4 is a scalar, which has no length to pad: leave out its Pad"
)]
#[case(
    Pad::new("source.tokens", 0.5),
    "`source.tokens` is Int64, which cannot represent the padding value 0.5: choose another"
)]
#[case(tokens().to(2), "`source.tokens` of example 4 has length 3, but batches are padded to 2: truncate it, or")]
#[case(tokens().multiple_of(0), "`source.tokens` cannot be padded to a length below 1")]
#[case(tokens().lengths("score"), "the batch `Sentence`: two tensors are called `score`")]
fn invalid_padding_is_refused(#[case] pad: Pad, #[case] says: &str) {
    let text = refused(&Collate::new().pad(pad).pad(tokens()), &some());
    assert!(text.starts_with(says), "{text}");
}

/// A data set that uses one random number per batch and stores the number in the batch as `share`.
struct Mixed;

impl MapDataset for Mixed {
    type Example = Batch;

    fn len(&self) -> i64 {
        8
    }

    fn get(&self, index: i64, _: &mut Rng) -> Result<Batch> {
        Ok(Batch { input: Tensor::from(index as f64), target: Tensor::from(index) })
    }

    fn collate(&self, examples: &[(i64, Batch)], rng: &mut Rng) -> Result<AnyBatch> {
        let mut batch = Collate::new().batch(examples)?;
        let share = Tensor::from_slice(&[rng.uniform(0.0, 1.0)]);
        batch.push("share", &share, FieldRole::Shared)?;
        Ok(batch)
    }
}

/// A batch's random numbers depend only on seed, epoch and the batch's examples.
#[test]
fn a_batch_has_its_own_random_numbers() -> Result<()> {
    let shares = |workers, epoch, first| -> Result<Vec<f64>> {
        let loading =
            Loading { num_workers: workers, placement: Placement::Host, ..Loading::default() };
        let policy = Policy::new(Precision::F64True, Device::Cpu);
        let loader = DataLoader::new(&Mixed.shared(), 2, loading, policy)?.drawing(3);
        loader.epoch(epoch, first)?.map(|batch| Ok(values(batch?.required("share")?)[0])).collect()
    };
    let mut all = shares(0, 0, 0)?;
    assert_eq!(shares(3, 0, 0)?, all);
    assert_eq!(shares(2, 0, 2)?, all[2..]);
    all.extend(shares(0, 1, 0)?);
    all.sort_by(f64::total_cmp);
    all.dedup();
    assert_eq!(all.len(), 8, "each batch of each epoch has another number");
    let loading = Loading { placement: Placement::Device, ..Loading::default() };
    let policy = Policy::new(Precision::F64True, Device::Cpu);
    let text = message(DataLoader::new(&Mixed.shared(), 2, loading, policy).map(drop));
    assert!(text.contains("copies the dataset once, but this dataset draws"), "{text}");
    Ok(())
}

/// A set of sequences of `lengths`, padded to the longest of a batch or to `to`.
struct Padded {
    lengths: [i64; 4],
    to: Option<i64>,
}

impl MapDataset for Padded {
    type Example = Batch;

    fn len(&self) -> i64 {
        4
    }

    fn get(&self, index: i64, _: &mut Rng) -> Result<Batch> {
        let input = Tensor::f_ones([self.lengths[index as usize]], (Kind::Float, Device::Cpu))?;
        Ok(Batch { input, target: Tensor::from(index) })
    }

    fn collate(&self, examples: &[(i64, Batch)], _: &mut Rng) -> Result<AnyBatch> {
        let pad = Pad::new("input", 0.0);
        Collate::new().pad(self.to.map_or(pad.clone(), |length| pad.to(length))).batch(examples)
    }
}

/// A set on the device is one batch, from which the batches are selected. If the padding of an
/// example depends on the batch, the batches would be others than on the host.
#[rstest]
#[case::longest_is_last([2, 3, 1, 5], None, Some("example 0 is `input` [1, 2], `target` [1]"))]
#[case::shortest_is_last([4, 4, 4, 1], None, Some("example 3 is `input` [1, 1], `target` [1]"))]
#[case::one_length([3, 3, 3, 3], None, None)]
#[case::padded_to_one_length([2, 3, 1, 5], Some(6), None)]
fn a_set_that_pads_by_the_batch_is_refused_on_the_device(
    #[case] lengths: [i64; 4],
    #[case] to: Option<i64>,
    #[case] refused: Option<&str>,
) -> Result<()> {
    let batches = |placement| -> Result<Vec<Vec<f64>>> {
        let loading = Loading { placement, ..Loading::default() };
        let policy = Policy::new(Precision::F32True, Device::Cpu);
        let loader = DataLoader::new(&Padded { lengths, to }.shared(), 2, loading, policy)?;
        loader.epoch(0, 0)?.map(|batch| Ok(values(batch?.required("input")?))).collect()
    };
    let host = batches(Placement::Host)?;
    assert_eq!(batches(Placement::Auto)?, host);
    match refused {
        None => assert_eq!(batches(Placement::Device)?, host),
        Some(example) => {
            let text = message(batches(Placement::Device));
            let says = "`placement = device` makes each batch from one copy of the dataset, but \
                        this dataset pads its examples: ";
            assert!(text.starts_with(&format!("{says}{example}")), "{text}");
            assert!(text.contains("Choose `auto` or `host`"), "{text}");
        }
    }
    Ok(())
}
