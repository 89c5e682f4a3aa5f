//! Tests of models that are built from a checkpoint alone.

use std::collections::BTreeMap;

use amp_core::{
    LightningModule, Module, Result, Trainer, TrainerConfig,
    callback::{Mode, ModelCheckpoint},
    data::Batch,
    loss,
    nn::{self, Linear},
    precision::Precision,
    tch::Tensor,
    weights,
};
use tempfile::tempdir;

use crate::support::{
    device, message,
    model::{digits, same},
    seeded,
};

#[derive(LightningModule)]
#[training_step(counted)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = self.rate)]
struct Net {
    #[hparam]
    classes: i64,
    #[hparam(default = 8)]
    width: i64,
    #[hparam(default = 0.01)]
    rate: f64,
    #[layer(linear(64, width))]
    body: Linear,
    #[layer(linear(width, classes))]
    head: Linear,
    #[state]
    seen: i64,
}

fn counted(net: &mut Net, batch: &Batch, step: &mut amp_core::Step<'_>) -> Result<Tensor> {
    net.seen += 1;
    loss::cross_entropy(&net.forward(&batch.input, step.context())?, &batch.target)
}

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 0.01)]
struct Other {
    #[layer(linear(64, 10))]
    head: Linear,
}

/// A model can be built from its type and a file alone. Its hyperparameters (including required
/// ones), weights and state are restored. The path may also be the folder that contains the files,
/// with or without `best` or `last` after it.
#[test]
fn a_model_is_built_from_its_type_and_a_file() -> Result<()> {
    let _section = seeded(0);
    let folder = tempdir().expect("a folder");
    let mut net = Net::builder(10).width(12).build()?;
    let config =
        TrainerConfig { max_epochs: 3, ..TrainerConfig::new(Precision::F32True, device()) };
    let saves = ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true);
    Trainer::new(config).callback(saves).fit(&mut net, &same(digits(64)?, 16)?)?;
    for place in ["best", "last", ""] {
        let again = Net::from_checkpoint(folder.path().join(place))?;
        assert_eq!((again.classes, again.width, again.seen), (10, 12, 12), "{place}");
        for (one, other) in nn::parameters(&again).iter().zip(nn::parameters(&net)) {
            let other = other.tensor.to_device(amp_core::tch::Device::Cpu);
            assert!(one.tensor.equal(&other), "`{}` of {place}", one.name);
        }
    }
    let text = message(Other::from_checkpoint(folder.path().join("last")).map(drop));
    assert!(text.ends_with("belongs to the model `Net`, not to `Other`"), "{text}");
    let text = message(Net::from_checkpoint(folder.path().join("worst")).map(drop));
    assert!(text.contains("no such checkpoint"), "{text}");
    Ok(())
}

/// A file that PyTorch wrote is no checkpoint, because it does not contain the hyperparameters. The
/// error names what to do with the weights in it.
#[test]
fn a_file_of_another_program_is_refused_with_the_way_to_load_it() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("theirs.safetensors");
    let net = Net::builder(10).build()?;
    let tensors = nn::parameters(&net).into_iter().map(|one| (one.name, one.tensor));
    let tensors: Vec<(String, Tensor)> = tensors.collect();
    let named = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
    weights::save_tensors(named, &path, BTreeMap::new())?;
    let text = message(Net::from_checkpoint(&path).map(drop));
    let says = "does not record its hyperparameters, so it is no checkpoint of amp: to use the \
                weights of another program, build the model in Rust, load them with \
                `weights::load` or `weights::Import`, and call `Trainer::validate`, `test` or \
                `predict`";
    assert!(text.ends_with(says), "{text}");
    let mut other = Net::builder(10).build()?;
    weights::load(&other, &path)?;
    let config = TrainerConfig::new(Precision::F32True, device());
    Trainer::new(config).validate(&mut other, &same(digits(64)?, 16)?)?;

    std::fs::write(&path, b"PK\x03\x04 the archive of torch.save").expect("a file");
    let text = message(Net::from_checkpoint(&path).map(drop));
    assert!(text.contains("looks like a file of torch.save"), "{text}");
    Ok(())
}
