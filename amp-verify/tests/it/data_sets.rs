//! Tests of registered data sets.

use amp_core::{
    data::{Batch, DataModule, SharedDataset},
    prelude::*,
    random,
};
use amp_verify::DataSet;

/// The examples that a data set draws from libtorch's CPU generator depend only on the data set's
/// name, and loading it changes no random number that is drawn afterwards.
#[test]
fn drawn_examples_are_the_same_in_each_call_and_for_each_seed() -> Result<()> {
    fn noise(batch_size: i64) -> Result<DataModule> {
        let part = |count: i64| {
            let x = Tensor::f_randn([count, 2], (Kind::Float, Device::Cpu))?;
            Batch::new(x.shallow_clone(), x)
        };
        Ok(DataModule::new("noise", part(8)?, part(4)?, batch_size))
    }
    let drawn = |data_set: DataSet, seed: u64| -> Result<(Tensor, Tensor)> {
        let _section = random::seeded(seed)?;
        let data = data_set.load(4)?;
        let next = Tensor::f_rand([4], (Kind::Float, Device::Cpu))?;
        let _again = random::seeded(seed)?;
        assert_eq!(next, Tensor::f_rand([4], (Kind::Float, Device::Cpu))?);
        let of = |set: &SharedDataset| Ok::<_, Error>(set.head(8)?.required("input")?.copy());
        Ok((of(&data.train)?, of(data.val.first().expect("a set"))?))
    };
    let own = drawn(DataSet::new("noise", noise), 1)?;
    assert_eq!(own, drawn(DataSet::sized("noise", |size, _| noise(size)), 2)?);
    assert_ne!(own, drawn(DataSet::new("other", noise), 1)?);
    Ok(())
}
