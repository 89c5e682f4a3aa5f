//! Tests of validation sets that contain training examples.

use amp_core::{
    Result, Trainer,
    data::{Batch, DataModule, Limit, Shuffled, Subset},
    record::RunRecord,
    tch::Tensor,
    trainer::{Check, Invariant},
};
use rstest::rstest;

use super::{Odd, Planted, broken, config, planted::Does};
use crate::support::{model::digits, seeded};

/// Where the examples of the validation set come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// The validation set is the training set itself.
    Handle,
    /// Both sets are views of one tensor of 60 examples. The training set is the first 40 examples.
    /// The validation set is the 20 examples from this index on.
    Memory(i64),
    /// The validation set begins with copies of this many of the last training examples. Examples
    /// that are not in the training set follow.
    Copies(i64),
}

/// Returns 40 training examples and 20 validation examples.
fn data(from: From) -> Result<DataModule> {
    let all = digits(60)?;
    let part = |start, count| {
        let narrow = |tensor: &Tensor| tensor.narrow(0, start, count);
        Batch::new(narrow(&all.input), narrow(&all.target))
    };
    let train: amp_core::data::SharedDataset = part(0, 40)?.into();
    let val = match from {
        From::Handle => train.clone(),
        From::Memory(start) => part(start, 20)?.into(),
        From::Copies(count) => {
            let (own, others) = (part(40 - count, count)?, part(40, 20 - count)?);
            let cat = |own: &Tensor, others: &Tensor| Tensor::cat(&[own, others], 0);
            let input = cat(&own.input, &others.input);
            Batch::new(input, cat(&own.target, &others.target))?.into()
        }
    };
    Ok(DataModule::new("digits", train, val, 8))
}

fn train(level: Check, from: From, shared: bool) -> Result<RunRecord> {
    let mut config = config(level);
    config.checks.shared_examples = shared;
    let mut model = Planted::new(Odd::Nothing, Does::Nothing)?;
    let _section = seeded(1);
    Trainer::new(config).fit(&mut model, &data(from)?)
}

#[rstest]
#[case::one_handle(Check::Cheap, From::Handle, "is, or overlaps with, the training set in memory")]
#[case::one_memory(Check::Cheap, From::Memory(0), "is, or overlaps with")]
#[case::an_example(Check::Cheap, From::Memory(39), "is, or overlaps with")]
#[case::copies(Check::Full, From::Copies(2), "shares 10 % of its examples with the training set")]
fn validating_on_training_examples_is_reported(
    #[case] level: Check,
    #[case] from: From,
    #[case] says: &str,
) -> Result<()> {
    let text = broken(train(level, from, false), Invariant::SetsAreDisjoint);
    assert!(text.starts_with(&format!("before step 1: the validation set {says}")), "{text}");
    // The option `shared_examples` says that the overlap is intended, so the run does not report
    // it.
    train(level, from, true)?;
    Ok(())
}

#[rstest]
#[case::behind_it(Check::Cheap, From::Memory(40))]
#[case::compared(Check::Full, From::Memory(40))]
#[case::a_duplicate(Check::Full, From::Copies(1))]
#[case::not_compared(Check::Cheap, From::Copies(20))]
fn validating_on_other_examples_is_not_reported(
    #[case] level: Check,
    #[case] from: From,
) -> Result<()> {
    train(level, from, false)?;
    Ok(())
}

/// With `overfit_batches`, the user wants to validate on training examples, so the overlap is not
/// reported.
#[test]
fn an_option_allows_overfitting() -> Result<()> {
    let mut config = config(Check::Full);
    config.checks.shared_examples = false;
    config.loops.overfit_batches = Some(Limit::Batches(2));
    let mut model = Planted::new(Odd::Nothing, Does::Nothing)?;
    let _section = seeded(1);
    Trainer::new(config).fit(&mut model, &data(From::Handle)?)?;
    Ok(())
}

/// Trains on the given rows of a set of 60 examples, and validates on the rows 40 to 59, which are
/// views of the set's rows, or copies.
fn fold(level: Check, rows: Vec<i64>, copied: bool) -> Result<RunRecord> {
    let all = digits(60)?;
    let part = |tensor: &Tensor| match tensor.narrow(0, 40, 20) {
        view if copied => view.copy(),
        view => view,
    };
    let val = Batch::new(part(&all.input), part(&all.target))?;
    let data = DataModule::new("digits", all, val, 8).with_order(Subset::new(rows, Shuffled)?);
    let mut config = config(level);
    config.checks.shared_examples = false;
    let mut model = Planted::new(Odd::Nothing, Does::Nothing)?;
    let _section = seeded(1);
    Trainer::new(config).fit(&mut model, &data)
}

/// In k-fold cross-validation, the order reads some rows of a set, and the others are the
/// validation set. Only the rows that the order reads are compared.
#[rstest]
#[case::views(Check::Cheap, false)]
#[case::views_compared(Check::Full, false)]
#[case::copies(Check::Full, true)]
fn only_rows_of_the_order_are_compared(#[case] level: Check, #[case] copied: bool) -> Result<()> {
    fold(level, (0..40).collect(), copied)?;
    let text = broken(fold(level, (0..42).collect(), copied), Invariant::SetsAreDisjoint);
    let says = match copied {
        true => "shares 10 % of its examples with the training set",
        false => "is, or overlaps with, the training set in memory",
    };
    assert!(text.starts_with(&format!("before step 1: the validation set {says}")), "{text}");
    Ok(())
}
