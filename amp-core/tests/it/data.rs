//! The loader: every example once an epoch, in an order that the seed and the epoch alone give.

use std::collections::BTreeSet;

use amp_core::{
    Result,
    data::{Batch, DataLoader, DataModule},
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::message;

/// Examples whose input and target are their number.
fn numbered(count: i64) -> Result<Batch> {
    let numbers = Tensor::arange(count, (Kind::Int64, Device::Cpu));
    Batch::new(numbers.to_kind(Kind::Float).reshape([-1, 1]), numbers)
}

/// The numbers of each batch's examples; input and target must belong together.
fn order(loader: &DataLoader<'_>, epoch: u64) -> Result<Vec<Vec<i64>>> {
    loader
        .epoch(epoch, 0)?
        .map(|batch| {
            let batch = batch?;
            let targets = Vec::<i64>::try_from(&batch.target)?;
            assert_eq!(batch.input.flatten(0, -1).to_kind(Kind::Int64), batch.target);
            assert_eq!(batch.len(), targets.len() as i64);
            Ok(targets)
        })
        .collect()
}

#[test]
fn without_shuffling_the_order_is_the_sets() -> Result<()> {
    let data = numbered(5)?;
    let loader = DataLoader::new(&data, 2);
    assert_eq!(order(&loader, 0)?, [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(order(&loader, 7)?, order(&loader, 0)?);
    Ok(())
}

/// Every epoch holds every example once; the last batch is what is left.
#[rstest]
#[case(103, 10)]
#[case(100, 10)]
#[case(7, 7)]
#[case(3, 1)]
fn an_epoch_is_a_permutation(#[case] count: i64, #[case] size: i64) -> Result<()> {
    let data = numbered(count)?;
    let loader = DataLoader::new(&data, size).shuffled(42);
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

/// The same seed and epoch give the same order on every call and in every precision; another seed
/// or epoch gives another, also where their sums agree.
#[test]
fn the_order_depends_on_seed_and_epoch_alone() -> Result<()> {
    let data = numbered(64)?;
    let with = |seed| DataLoader::new(&data, 64).shuffled(seed);
    assert_eq!(order(&with(1), 5)?, order(&with(1), 5)?);
    let f64s = data.place(Policy::new(Precision::F64True, Device::Cpu))?;
    assert_eq!(order(&DataLoader::new(&f64s, 64).shuffled(1), 5)?, order(&with(1), 5)?);
    let mut orders = BTreeSet::new();
    for seed in 0..8 {
        for epoch in 0..8 {
            orders.insert(order(&with(seed), epoch)?);
        }
    }
    assert_eq!(orders.len(), 64, "all orders differ");
    Ok(())
}

/// libtorch's generator is for weights and dropout: shuffling leaves it alone.
#[test]
fn shuffling_draws_nothing_from_libtorch() -> Result<()> {
    let data = numbered(64)?;
    let draw = || Vec::<f32>::try_from(Tensor::rand([4], (Kind::Float, Device::Cpu)));
    let _generator = crate::support::seeded(3);
    let expected = draw()?;
    amp_core::hardware::seed_everything(3)?;
    order(&DataLoader::new(&data, 8).shuffled(3), 0)?;
    assert_eq!(draw()?, expected);
    Ok(())
}

/// [18]: floating inputs and targets take the precision's dtype, classes stay integers.
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
fn inputs_and_targets_must_be_as_many() {
    let two = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
    let three = Tensor::zeros([3], (Kind::Int64, Device::Cpu));
    assert_eq!(message(Batch::new(two, three)), "2 inputs, but 3 targets");
}

#[rstest]
#[case(0, 4, "batch size 0: it must be at least 1")]
#[case(9, 4, "batch size 9 is larger than the 8 training examples of `numbers`: choose at most 8")]
#[case(4, 0, "`numbers` has no validation examples")]
fn sets_that_cannot_be_batched_are_refused(
    #[case] batch_size: i64,
    #[case] val: i64,
    #[case] says: &str,
) -> Result<()> {
    let name = "numbers".to_owned();
    let data = DataModule { name, train: numbered(8)?, val: numbered(val)?, batch_size };
    assert_eq!(message(data.check()), says);
    Ok(())
}

#[test]
fn a_batch_as_large_as_the_set_is_taken() -> Result<()> {
    let name = "numbers".to_owned();
    DataModule { name, train: numbered(8)?, val: numbered(1)?, batch_size: 8 }.check()
}
