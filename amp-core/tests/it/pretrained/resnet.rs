//! Tests of importing torchvision's `resnet18`. The parameters of the model here have the same
//! names as in torchvision.

use amp_core::{
    nn::Context,
    precision::Policy,
    prelude::*,
    weights::{self, Import},
};
use tempfile::tempdir;

use super::{assert_logits, case};
use crate::support::{oracle::Lcg, seeded};

#[derive(Module)]
#[forward(|x| {
    let y = bn1(&conv1(x)?)?.f_relu()?;
    Ok(bn2(&conv2(&y)?)?.f_add(&downsample(x)?)?.f_relu()?)
})]
struct BasicBlock {
    #[hparam(default = 64)]
    inputs: i64,
    #[hparam(default = 64)]
    planes: i64,
    #[layer(conv2d(inputs, planes, 3, stride = planes / inputs, padding = 1, bias = false))]
    conv1: Conv2d,
    #[layer(batch_norm2d(planes))]
    bn1: BatchNorm,
    #[layer(conv2d(planes, planes, 3, padding = 1, bias = false))]
    conv2: Conv2d,
    #[layer(batch_norm2d(planes))]
    bn2: BatchNorm,
    #[layer(optional(inputs != planes, sequential(
        conv2d(inputs, planes, 1, stride = planes / inputs, bias = false),
        batch_norm2d(planes),
    )))]
    downsample: Option<Sequential>,
}

fn stage(inputs: i64, planes: i64) -> Result<Sequential> {
    let block = |inputs| -> Result<Box<dyn Module>> {
        Ok(Box::new(BasicBlock::builder().inputs(inputs).planes(planes).build()?))
    };
    Ok(Sequential::new(vec![block(inputs)?, block(planes)?]))
}

#[derive(Module)]
#[forward(|x| {
    let x = bn1(&conv1(x)?)?.f_relu()?;
    let x = layer1(&x.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?)?;
    let x = layer4(&layer3(&layer2(&x)?)?)?;
    fc(&x.f_mean_dim([2, 3].as_slice(), false, None)?)
})]
struct ResNet18 {
    #[layer(conv2d(3, 64, 7, stride = 2, padding = 3, bias = false))]
    conv1: Conv2d,
    #[layer(batch_norm2d(64))]
    bn1: BatchNorm,
    #[layer(self::stage(64, 64)?)]
    layer1: Sequential,
    #[layer(self::stage(64, 128)?)]
    layer2: Sequential,
    #[layer(self::stage(128, 256)?)]
    layer3: Sequential,
    #[layer(self::stage(256, 512)?)]
    layer4: Sequential,
    #[layer(linear(512, 10))]
    fc: Linear,
}

/// With the `state_dict` of torchvision's model, this model computes Python's logits. The recording
/// contains only the names and shapes of the tensors. The test generates the same values as the
/// recording script, and writes them to a file.
#[test]
fn its_state_dict_gives_pythons_logits() -> Result<()> {
    let _generator = seeded(0);
    let case = case("resnet");
    let mut generator = Lcg(6);
    let mut tensors = Vec::new();
    for (name, about) in case["tensors"].as_object().expect("tensors") {
        let shape: Vec<i64> = serde_json::from_value(about[1].clone()).expect("a shape");
        let count: i64 = shape.iter().product();
        if name.ends_with("num_batches_tracked") {
            tensors.push((name.clone(), Tensor::zeros(&shape, (Kind::Int64, Device::Cpu))));
            continue;
        }
        let few = generator.tensor(&[count.min(997)], 2048.0);
        let values = few.repeat([count / few.numel() as i64 + 1]).narrow(0, 0, count).view(&*shape);
        let about_one =
            name.ends_with("running_var") || (shape.len() == 1 && name.ends_with("weight"));
        let values = if about_one { values + 1.0 } else { values };
        tensors.push((name.clone(), values.to_kind(Kind::Double)));
    }
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("resnet18.safetensors");
    let named = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
    weights::save_tensors(named, &path, Default::default())?;

    let model = ResNet18::builder().build()?;
    let policy = Policy::new(Precision::F64True, crate::support::device());
    amp_core::nn::place(&model, policy, &Default::default())?;
    let report = Import::open(&path)?.load_into(&model)?;
    assert_eq!((report.tensors.len(), report.kept().count()), (122, 0));
    let images = generator.tensor(&[2, 3, 32, 32], 64.0).to_kind(Kind::Double);
    let logits = model.forward(&images.to_device(policy.device), &Context::new(policy, false))?;
    assert_logits(&logits.to_device(Device::Cpu), "resnet");
    Ok(())
}
