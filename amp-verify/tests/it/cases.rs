//! Tests of cases (a model with its data and options), and of the memory that their runs report.

use amp_core::{
    Result,
    data::{Batch, DataModule, Shuffled, Subset},
    event::Event,
    precision::Precision,
    prelude::*,
    tch::{Device, Kind, Tensor},
    trainer::Check,
};
use amp_verify::{
    DataSet, Registry,
    case::{Case, Choices},
    model, project,
    runner::{self, Extras},
};

#[derive(LightningModule)]
#[loss(mse_loss)]
#[metric(r2, name = fit)]
#[optimizer(adamw, lr = 1e-2)]
struct Line {
    #[layer(linear(2, 1))]
    head: Linear,
}

/// Returns 4,000 training examples and 80 validation examples of ones.
fn ones(batch_size: i64) -> Result<DataModule> {
    let part = |count| -> Result<Batch> {
        let ones = |width| Tensor::f_ones([count, width], (Kind::Float, Device::Cpu));
        Batch::new(ones(2)?, ones(1)?)
    };
    Ok(DataModule::new("ones", part(4000)?, part(80)?, batch_size))
}

/// Checks that a registry cannot declare an error metric of which the model's metric says that
/// larger values are better.
#[test]
fn a_metric_that_is_no_error_is_refused_as_one() {
    let registry = Registry::new(project!()).data_set(DataSet::new("ones", ones));
    let case = |model| Case::new(&registry, &model, Choices::default(), Device::Cpu);
    let refused = case(model!(Line).error_metric("val_fit"));
    let error = refused.err().expect("larger values of R² are better").to_string();
    assert_eq!(
        error,
        "in `model Line`: `.error_metric(\"val_fit\")` declares that lower values are better, but \
         higher values of this metric are better: declare it with `.metric(\"val_fit\")`, or \
         `.score(\"val_fit\")` if its values are no fractions"
    );
    assert!(case(model!(Line).score("val_fit")).is_ok());
}

/// Checks that the peak memory of a run does not count the run's copy of the data in its own dtype.
/// The copies of the 4,080 examples take 24 bytes each under 64-true. Most of the other memory is the
/// order of the training examples, 8 bytes each.
#[test]
fn the_peak_memory_does_not_count_copies_of_the_data() -> Result<()> {
    let model = model!(Line).judged_by_loss().epochs(1).batch_size(4);
    let registry = Registry::new(project!()).data_set(DataSet::new("ones", ones)).model(model);
    let case = Case::new(&registry, registry.find(None)?, Choices::default(), Device::Cpu)?;
    let copies = case.copied_bytes(Precision::F64True)?;
    assert_eq!((copies, case.copied_bytes(Precision::F32True)?), (4080 * 24, 0));
    let record =
        runner::run(&case, Precision::F64True, Extras::default(), &mut |_: &Event| Ok(()))?;
    let peak = record.memory.expect("a measurement").peak_allocated;
    assert!(peak < copies / 2, "{peak} of {copies}");
    Ok(())
}

/// Checks that shared examples are judged on the whole sets only. The validation set has 200
/// examples, of which the first is a training example: 0.5 %, which is allowed, but a sixteenth of
/// the first two batches. The second data set is one fold of k-fold cross-validation, whose
/// validation set is the beginning of the table of all examples.
#[test]
fn shared_examples_are_judged_on_the_whole_sets() -> Result<()> {
    fn rows(first: i64, count: i64) -> Result<Batch> {
        let input =
            Tensor::f_arange_start(2 * first, 2 * (first + count), (Kind::Float, Device::Cpu))?;
        let input = (input / 1000.0).f_view([count, 2])?;
        let target = input.f_sum_dim_intlist([1].as_slice(), true, Kind::Float)?;
        Batch::new(input, target)
    }
    fn a_duplicate(batch_size: i64) -> Result<DataModule> {
        let (train, own, others) = (rows(0, 400)?, rows(0, 1)?, rows(400, 199)?);
        let input = Tensor::f_cat(&[own.input, others.input], 0)?;
        let val = Batch::new(input, Tensor::f_cat(&[own.target, others.target], 0)?)?;
        Ok(DataModule::new("duplicate", train, val, batch_size))
    }
    fn a_fold(batch_size: i64) -> Result<DataModule> {
        let order = Subset::new((100..400).collect(), Shuffled)?;
        Ok(DataModule::new("fold", rows(0, 400)?, rows(0, 100)?, batch_size).with_order(order))
    }
    for (name, load) in
        [("duplicate", a_duplicate as fn(i64) -> Result<DataModule>), ("fold", a_fold)]
    {
        let model = model!(Line).judged_by_loss().epochs(1).batch_size(8);
        let registry = Registry::new(project!()).data_set(DataSet::new(name, load)).model(model);
        let mut case = Case::new(&registry, registry.find(None)?, Choices::default(), Device::Cpu)?;
        case.trainer.checks.level = Check::Full;
        runner::run(&case, Precision::F32True, Extras::default(), &mut |_: &Event| Ok(()))?;
    }
    Ok(())
}
