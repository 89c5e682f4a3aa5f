//! Tests of cases (a model with its data and options), and of the memory that their runs report.

use amp_core::{
    Result,
    data::{Batch, DataModule},
    event::Event,
    precision::Precision,
    prelude::*,
    tch::{Device, Kind, Tensor},
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
