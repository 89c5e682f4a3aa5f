//! Tests the library that `cargo amp new` writes: it compiles, its tests pass, and its model
//! trains.

// The files of the template are compiled here as one module with the name that they have as a
// crate, because they refer to each other as `my_model`.
#[path = "../../cargo-amp/templates/lib.rs"]
#[allow(unreachable_pub, reason = "these are modules of a library")]
mod my_model;

use amp_core::prelude::*;

#[test]
fn the_registered_model_learns_the_spirals() -> Result<()> {
    let registry = my_model::registry();
    assert_eq!(registry.models().map(|model| model.name()).collect::<Vec<_>>(), ["SpiralNet"]);
    let (mut model, data) = {
        let _section = amp_core::random::seeded(42)?;
        (my_model::SpiralNet::builder().build()?, my_model::data::spirals(64)?)
    };
    let config =
        TrainerConfig::new(Precision::F32True, Device::Cpu).with(|config| config.max_epochs = 10);
    let record = Trainer::new(config).fit(&mut model, &data)?;
    let accuracy = record.last("val_acc").expect("the template logs it");
    assert!(accuracy > 0.95, "val_acc {accuracy}");
    // The training loss is logged once per epoch, although an epoch is shorter than the logging
    // interval. `cargo amp train` therefore shows the training loss.
    assert!(record.last("train_loss").is_some());
    Ok(())
}
