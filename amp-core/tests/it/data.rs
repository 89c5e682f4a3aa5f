//! Tests of the data loader. Each epoch contains every example once, in an order that depends only
//! on the seed and the epoch.

use std::collections::BTreeSet;

use amp_core::{
    Result,
    data::{Batch, BatchType, Bucketed, DataLoader, DataModule, Loading, Placement, SharedDataset},
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{data::numbered, device, message};

fn policy(precision: Precision) -> Policy {
    Policy::new(precision, device())
}

fn loader(count: i64, batch_size: i64, loading: Loading) -> Result<DataLoader> {
    DataLoader::new(&numbered(count)?.into(), batch_size, loading, policy(Precision::F32True))
}

/// Returns a loader without shuffling, with the default placement.
fn plain(count: i64, batch_size: i64) -> Result<DataLoader> {
    loader(count, batch_size, Loading::default())
}

/// Returns the indices of the examples in each batch of an epoch. Asserts that the input and the
/// target of every example equal its index.
fn order(loader: &DataLoader, epoch: u64) -> Result<Vec<Vec<i64>>> {
    order_from(loader, epoch, 0)
}

fn order_from(loader: &DataLoader, epoch: u64, first: i64) -> Result<Vec<Vec<i64>>> {
    loader
        .epoch(epoch, first)?
        .map(|batch| {
            let batch = Batch::from_any(&batch?)?;
            let targets = Vec::<i64>::try_from(&batch.target)?;
            assert_eq!(batch.input.flatten(0, -1).to_kind(Kind::Int64), batch.target);
            assert_eq!(batch.len(), targets.len() as i64);
            Ok(targets)
        })
        .collect()
}

#[test]
fn without_shuffling_the_order_is_the_sets() -> Result<()> {
    let loader = plain(5, 2)?;
    assert_eq!(order(&loader, 0)?, [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(order(&loader, 7)?, order(&loader, 0)?);
    Ok(())
}

/// Every epoch contains every example once. The last batch contains the remaining examples, and may
/// be smaller.
#[rstest]
#[case(103, 10)]
#[case(100, 10)]
#[case(7, 7)]
#[case(3, 1)]
fn an_epoch_is_a_permutation(#[case] count: i64, #[case] size: i64) -> Result<()> {
    let loader = plain(count, size)?.shuffled(42);
    for epoch in 0..3 {
        let batches = order(&loader, epoch)?;
        assert_eq!(batches.len() as i64, loader.batches());
        for (at, batch) in (0..).zip(&batches) {
            assert_eq!(batch.len() as i64, loader.batch_len(at));
            assert!(at == loader.batches() - 1 || batch.len() as i64 == size);
        }
        let seen: BTreeSet<i64> = batches.concat().into_iter().collect();
        assert!(seen.into_iter().eq(0..count));
        assert_eq!(batches.concat().len() as i64, count);
    }
    Ok(())
}

/// The same seed and epoch give the same order in every call and in every precision. Different
/// pairs of seed and epoch give different orders, even if seed + epoch is equal.
#[test]
fn the_order_depends_on_seed_and_epoch_alone() -> Result<()> {
    let data: SharedDataset = numbered(64)?.into();
    let with = |seed, precision| -> Result<DataLoader> {
        let loading = Loading::default();
        Ok(DataLoader::new(&data, 64, loading, policy(precision))?.shuffled(seed))
    };
    let f32s = |seed| with(seed, Precision::F32True);
    assert_eq!(order(&f32s(1)?, 5)?, order(&f32s(1)?, 5)?);
    assert_eq!(order(&with(1, Precision::F64True)?, 5)?, order(&f32s(1)?, 5)?);
    let mut orders = BTreeSet::new();
    for seed in 0..8 {
        for epoch in 0..8 {
            orders.insert(order(&f32s(seed)?, epoch)?);
        }
    }
    assert_eq!(orders.len(), 64, "all orders differ");
    Ok(())
}

/// Shuffling does not use libtorch's random generator, which is reserved for initial weights and
/// dropout.
#[test]
fn shuffling_draws_nothing_from_libtorch() -> Result<()> {
    let draw = || Vec::<f32>::try_from(Tensor::rand([4], (Kind::Float, Device::Cpu)));
    let _generator = crate::support::seeded(3);
    let expected = draw()?;
    amp_core::hardware::seed_everything(3)?;
    order(&plain(64, 8)?.shuffled(3), 0)?;
    assert_eq!(draw()?, expected);
    Ok(())
}

/// Rule 18 of docs/SEMANTICS.md: floating-point inputs and targets get the precision's dtype, and
/// classes stay integers.
#[rstest]
#[case(Precision::F16True, Kind::Half)]
#[case(Precision::Bf16Mixed, Kind::Float)]
#[case(Precision::F64True, Kind::Double)]
fn inputs_take_the_precisions_dtype(
    #[case] precision: Precision,
    #[case] kind: Kind,
) -> Result<()> {
    let placed = numbered(3)?.place(Policy::new(precision, Device::Cpu))?;
    assert_eq!((placed.input.kind(), placed.target.kind()), (kind, Kind::Int64));
    Ok(())
}

#[test]
fn different_numbers_of_inputs_and_targets_are_refused() {
    let two = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
    let three = Tensor::zeros([3], (Kind::Int64, Device::Cpu));
    assert_eq!(message(Batch::new(two, three)), "the batch has 2 inputs, but 3 targets");
}

#[rstest]
#[case(0, 4, "batch size 0: it must be at least 1")]
#[case(9, 4, "batch size 9 is larger than the 8 training examples of `numbers`: choose at most 8")]
#[case(4, 0, "`numbers` has no validation examples")]
fn sets_without_batches_are_refused(
    #[case] batch_size: i64,
    #[case] val: i64,
    #[case] says: &str,
) -> Result<()> {
    let data = DataModule::new("numbers", numbered(8)?, numbered(val)?, batch_size);
    assert_eq!(message(data.check()), says);
    Ok(())
}

#[test]
fn a_batch_as_large_as_the_set_is_accepted() -> Result<()> {
    DataModule::new("numbers", numbered(8)?, numbered(1)?, 8).check()
}

/// The permutation of seed 42 and epoch 3 is the same as in the first release, so that old
/// checkpoints resume with the same batches.
#[test]
fn the_permutation_is_that_of_the_first_release() -> Result<()> {
    assert_eq!(order(&plain(8, 8)?.shuffled(42), 3)?, [[6, 4, 2, 7, 0, 3, 1, 5]]);
    Ok(())
}

#[rstest]
fn an_empty_training_set_is_refused(#[values(false, true)] sampled: bool) -> Result<()> {
    let data = DataModule::new("numbers", numbered(0)?, numbered(4)?, 4);
    let data = if sampled { data.with_order(Bucketed::new(Vec::new())) } else { data };
    assert_eq!(message(data.check()), "`numbers` has no training examples");
    Ok(())
}

/// With `drop_last`, an epoch contains only full batches. Validation still contains every example.
#[rstest]
#[case(103, 10, 10)]
#[case(100, 10, 10)]
#[case(7, 7, 1)]
#[case(7, 4, 1)]
fn drop_last_leaves_full_batches(
    #[case] count: i64,
    #[case] size: i64,
    #[case] batches: i64,
    #[values(Placement::Device, Placement::Host)] placement: Placement,
) -> Result<()> {
    let loading = Loading { drop_last: true, placement, ..Loading::default() };
    let loader = loader(count, size, loading)?.shuffled(42);
    let seen = order(&loader, 1)?;
    assert_eq!((loader.batches(), seen.len() as i64), (batches, batches));
    assert!(seen.iter().all(|batch| batch.len() as i64 == size));
    let all = order(&plain(count, size)?.shuffled(42), 1)?;
    assert_eq!(seen, all[..batches as usize]);
    let mut data = DataModule::new("numbers", numbered(count)?, numbered(count)?, size);
    data.loading = loading;
    let policy = policy(Precision::F32True);
    assert_eq!(data.train_loader(policy, 0)?.batches(), batches);
    assert_eq!(
        order(&data.loader(data.val.first().expect("a set"), policy)?, 0)?.concat().len() as i64,
        count
    );
    Ok(())
}

/// All ways of loading data: a placement, and the number of batches to load ahead.
const WAYS: [(Placement, Option<usize>); 6] = [
    (Placement::Auto, None),
    (Placement::Device, None),
    (Placement::Host, None),
    (Placement::Host, Some(0)),
    (Placement::Host, Some(1)),
    (Placement::Host, Some(5)),
];

/// If an epoch begins at a later batch, its batches equal the rest of the whole epoch, for each way
/// of loading the data.
#[test]
fn an_epoch_can_begin_at_any_batch() -> Result<()> {
    for (placement, prefetch) in WAYS {
        let loading = Loading { placement, prefetch, ..Loading::default() };
        let loader = loader(23, 4, loading)?.shuffled(9);
        let whole = order(&plain(23, 4)?.shuffled(9), 2)?;
        for first in 0..=loader.batches() {
            let rest = order_from(&loader, 2, first)?;
            assert_eq!(rest, whole[first as usize..], "{loading:?} from {first}");
        }
    }
    Ok(())
}

/// In each precision, the batches have the same bits for each way of loading the data, in order and
/// shuffled. The data are multiples of 1/7, so every dtype must round them.
#[rstest]
fn every_way_of_loading_gives_the_same_bits(
    #[values(Precision::F32True, Precision::F16True, Precision::Bf16True, Precision::F64True)]
    precision: Precision,
    #[values(None, Some(3))] seed: Option<u64>,
) -> Result<()> {
    let x = Tensor::arange(37 * 6, (Kind::Float, Device::Cpu)).reshape([37, 2, 3]) / 7.0;
    let y = Tensor::arange(37, (Kind::Int64, Device::Cpu));
    let data: SharedDataset = Batch::new(x, y)?.into();
    let read = |placement, prefetch| -> Result<Vec<Batch>> {
        let loading = Loading { placement, prefetch, ..Loading::default() };
        let mut loader = DataLoader::new(&data, 5, loading, policy(precision))?;
        if let Some(seed) = seed {
            loader = loader.shuffled(seed);
        }
        loader.epoch(4, 0)?.map(|batch| Batch::from_any(&batch?)).collect()
    };
    let expected = read(Placement::Device, None)?;
    assert_eq!(expected.len(), 8);
    for (placement, prefetch) in WAYS {
        let seen = read(placement, prefetch)?;
        assert_eq!(seen.len(), expected.len());
        for (seen, expected) in seen.iter().zip(&expected) {
            assert_eq!(seen.input.device(), device());
            assert_eq!(seen.input.kind(), precision.storage());
            assert!(seen.input.equal(&expected.input), "{placement} {prefetch:?}");
            assert!(seen.target.equal(&expected.target), "{placement} {prefetch:?}");
        }
    }
    Ok(())
}

/// With `Placement::Auto`, a data set in memory is copied to the device if it fits, except on a CPU
/// with prefetching. With `Placement::Host`, it is never copied.
#[test]
fn sets_are_stored_according_to_the_placement() -> Result<()> {
    let resident = |placement, prefetch| -> Result<bool> {
        Ok(loader(8, 2, Loading { placement, prefetch, ..Loading::default() })?.is_resident())
    };
    assert!(resident(Placement::Auto, None)?);
    assert!(resident(Placement::Auto, Some(0))?);
    assert_eq!(resident(Placement::Auto, Some(2))?, device().is_cuda());
    assert!(resident(Placement::Device, None)?);
    assert!(!resident(Placement::Host, None)?);
    for placement in Placement::ALL {
        assert_eq!(placement.to_string().parse::<Placement>()?, placement);
    }
    let text = message("gpu".parse::<Placement>());
    assert_eq!(text, "unknown placement `gpu`: expected auto, device or host");
    Ok(())
}

#[test]
fn invalid_loading_options_are_refused() -> Result<()> {
    let text = message(loader(8, 0, Loading::default()));
    assert_eq!(text, "batch size 0: it must be at least 1");
    let text = message(loader(8, 9, Loading { drop_last: true, ..Loading::default() }));
    let expected = "drop_last leaves no batch, because 8 examples do not fill a batch of 9: choose";
    assert!(text.starts_with(expected), "{text}");
    let (placement, prefetch) = (Placement::Device, Some(3));
    let text = message(loader(8, 2, Loading { placement, prefetch, ..Loading::default() }));
    assert!(
        text.starts_with("prefetch 3: a set on the device is not prefetched: choose"),
        "{text}"
    );
    for first in [-1, 5] {
        let text = message(plain(8, 2)?.epoch(0, first).map(drop));
        let says = format!("cannot start at batch {first} of an epoch of 4 batches");
        assert!(text.starts_with(&says), "{text}");
    }
    Ok(())
}

/// `head` returns a data module with only the first batches of each data set, for a trial run.
#[test]
fn a_head_of_a_set_has_its_first_batches() -> Result<()> {
    let head = DataModule::new("numbers", numbered(9)?, numbered(3)?, 2).head(2)?;
    assert_eq!((head.train.len(), head.val.examples()), (4, 3));
    let loader = head.in_order().train_loader(policy(Precision::F32True), 0)?;
    assert_eq!(order(&loader, 0)?, [[0, 1], [2, 3]]);
    Ok(())
}
