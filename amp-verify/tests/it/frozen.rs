//! Tests of what `verify` reports about frozen parameters.

use amp_core::{event::Event, prelude::*, tch::Device};
use amp_verify::{
    DataSet, Registry,
    case::{Case, Choices},
    matrix, model, project, view,
};
use rstest::rstest;

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(2, 3))]
    stem: Linear,
    #[layer(linear(3, 1))]
    head: Linear,
}

/// Returns 16 training examples and 16 validation examples.
fn ones(batch_size: i64) -> Result<DataModule> {
    let part = |width| Tensor::f_ones([16, width], (Kind::Float, Device::Cpu));
    let rows = || Batch::new(part(2)?, part(1)?);
    Ok(DataModule::new("ones", rows()?, rows()?, batch_size))
}

/// Checks that the line above the table shows how many parameters are trained from the first step
/// on, and how many at the end of the run, when a freeze may have ended. The stem has 9 parameters
/// and the head 4.
#[rstest]
#[case::none(&[], "Net (13 parameters) on ones")]
#[case::endless(&["stem.*"], "Net (4 parameters) on ones")]
#[case::ending(&["stem.*=epoch:1"], "Net (4 parameters trained at first, 13 in all) on ones")]
#[case::partly(
    &["stem.*=epoch:1", "stem.bias"],
    "Net (4 parameters trained at first, 10 in all) on ones"
)]
fn the_table_counts_the_trained_parameters(
    #[case] freeze: &[&str],
    #[case] says: &str,
) -> Result<()> {
    let freeze: Vec<_> = freeze.iter().map(|text| text.parse()).collect::<Result<_>>()?;
    let registry = Registry::new(project!())
        .data_set(DataSet::new("ones", ones))
        .model(model!(Net).judged_by_loss().epochs(2).batch_size(4).freeze(freeze));
    let case = Case::new(&registry, registry.find(None)?, Choices::default(), Device::Cpu)?;
    let comparison = matrix::over_seeds(&case, &[], 1, &mut |_: &Event| Ok(()))?;
    let table = view::table(&comparison);
    assert!(table.starts_with(says), "{table}");
    Ok(())
}
