//! Batch normalisation with ReLU and dropout in one kernel, and dropout by itself, on CUDA alone
//! (`AMP_DEVICE=cuda`), against libtorch's in f64 on the CPU.

use std::{collections::BTreeMap, rc::Rc};

use amp_core::{
    Module, Result,
    nn::{
        BatchNorm, BatchNormConfig, Call, Context, Dropout, Probe, Relu, Sequential, named_tensors,
        parameters, place,
    },
    precision::{Policy, Precision},
    tch::{self, Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device, seeded,
};

/// Half a unit in the last place, relative.
fn rounding(kind: Kind) -> f64 {
    match kind {
        Kind::Half => 2.0_f64.powi(-11),
        Kind::BFloat16 => 2.0_f64.powi(-8),
        // The statistics are sums of some hundred terms.
        Kind::Float => 1e-5,
        _ => 1e-13,
    }
}

/// What a dropout of these many elements multiplies them by, from this seed on.
fn factors(p: f64, shape: [i64; 2], seed: i64) -> Result<Tensor> {
    let cx = Context::new(Policy::new(Precision::F64True, device()), true);
    tch::manual_seed(seed);
    Ok(wide(&Dropout::new(p)?.forward(&Tensor::ones(shape, (Kind::Double, device())), &cx)?))
}

/// Looks at each layer.
struct Nobody;

impl Probe for Nobody {
    fn ran(&self, _: &Call<'_>) {}
}

#[rstest]
fn layers_in_one_compute_what_they_compute(
    #[values(
        Precision::F32True,
        Precision::F64True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values([2, 4], [130, 36], [1000, 100])] shape: [i64; 2],
    #[values((true, 0.3), (true, 0.0), (false, 0.3))] (relu, p): (bool, f64),
) -> Result<()> {
    if !device().is_cuda() {
        return Ok(());
    }
    let _generator = seeded(11);
    let policy = Policy::new(precision, device());
    let (compute, storage) = (precision.compute(), precision.storage());
    let draw = |shape: &[i64], kind: Kind, scale: f64, shift: f64| {
        (Tensor::randn(shape, (Kind::Double, Device::Cpu)) * scale + shift).to_kind(kind)
    };
    // Far from zero, as behind a ReLU.
    let input = draw(&shape, compute, 0.5, 3.0);
    let incoming = draw(&shape, compute, 1.0, 0.0);

    let mut layers: Vec<Box<dyn Module>> =
        vec![Box::new(BatchNorm::new(BatchNormConfig::new(shape[1]))?)];
    if relu {
        layers.push(Box::new(Relu));
    }
    layers.push(Box::new(Dropout::new(p)?));
    let layers = Sequential::new(layers);
    place(&layers, policy, &BTreeMap::new())?;
    for parameter in parameters(&layers) {
        let value = draw(&[shape[1]], storage, 0.5, 0.5).to(device());
        tch::no_grad(|| parameter.tensor.shallow_clone().copy_(&value));
    }

    let given = input.to(device()).set_requires_grad(true);
    tch::manual_seed(5);
    let output = {
        let _region = policy.autocast()?;
        layers.forward(&given, &Context::new(policy, true))?
    };
    (&output * incoming.to(device())).sum(Kind::Double).backward();

    // One by one, as where somebody looks at each, the bits are the same.
    let watched = input.to(device()).set_requires_grad(true);
    let own = parameters(&layers);
    let grads = || own.iter().map(|parameter| parameter.tensor.grad().copy()).collect::<Vec<_>>();
    let together = grads();
    own.iter().for_each(|parameter| parameter.tensor.shallow_clone().zero_grad());
    tch::manual_seed(5);
    let alone = {
        let _region = policy.autocast()?;
        let cx = Context::new(policy, true).with_probe(Rc::new(Nobody));
        layers.forward(&watched, &cx)?
    };
    (&alone * incoming.to(device())).sum(Kind::Double).backward();
    assert!(alone.equal(&output) && watched.grad().equal(&given.grad()));
    assert_eq!(grads(), together);

    let leaf = |tensor: &Tensor| wide(tensor).set_requires_grad(true);
    let exact_in = leaf(&input);
    let [weight, bias] = [0, 1].map(|at| leaf(&own[at].tensor));
    let statistics = |value| Tensor::full([shape[1]], value, (Kind::Double, Device::Cpu));
    let (mean, var) = (statistics(0.0), statistics(1.0));
    let normalise = || {
        exact_in.batch_norm(
            Some(&weight),
            Some(&bias),
            Some(&mean),
            Some(&var),
            true,
            0.1,
            1e-5,
            false,
        )
    };
    drop(normalise());
    let normal = normalise();
    let cut = if relu { normal.relu() } else { normal };
    let exact = if p > 0.0 { cut * factors(p, shape, 5)? } else { cut };
    (&exact * wide(&incoming)).sum(Kind::Double).backward();

    // A batch of two is normalised to two numbers: its gradients are what cancels.
    // Those of a weight are sums of what was rounded between the layers.
    let close = |name: &str, seen: &Tensor, exact: &Tensor, kind: Kind| {
        let bound = 2.0 * rounding(kind).max(rounding(compute));
        let off = relative(seen, exact);
        assert!(shape[0] == 2 || off < bound, "{name}: {off} for {bound}");
    };
    assert_eq!((output.kind(), given.grad().kind()), (compute, compute));
    let off = relative(&output, &exact.detach());
    assert!(off < 2.0 * rounding(compute), "output: {off}");
    close("input", &given.grad(), &exact_in.grad(), compute);
    close("weight", &own[0].tensor.grad(), &weight.grad(), storage);
    close("bias", &own[1].tensor.grad(), &bias.grad(), storage);
    for (name, tensor, _) in named_tensors(&layers) {
        match name.rsplit('.').next() {
            Some("running_mean") => assert!(relative(&tensor, &mean) < 2.0 * rounding(storage)),
            Some("running_var") => assert!(relative(&tensor, &var) < 2.0 * rounding(storage)),
            Some("num_batches_tracked") => assert_eq!(tensor.int64_value(&[]), 2),
            _ => {}
        }
    }
    Ok(())
}

/// A million draws: their share within five standard errors, no pattern along rows or columns, other
/// elements each time, and the gradient is dropped where the value was.
#[rstest]
fn dropout_on_cuda_drops_its_share(#[values(0.1, 0.5)] p: f64) -> Result<()> {
    if !device().is_cuda() {
        return Ok(());
    }
    let _generator = seeded(1);
    let shape = [1000, 1000];
    let first = factors(p, shape, 3)?;
    assert!(first.equal(&factors(p, shape, 3)?), "the seed decides");
    let kept = first.gt(0.0).to_kind(Kind::Double);
    let share = |kept: &Tensor| kept.mean(Kind::Double).double_value(&[]);
    let error = (p * (1.0 - p)).sqrt();
    assert!((share(&kept) - (1.0 - p)).abs() < 5.0 * error / 1e3, "{}", share(&kept));
    for dim in [0_i64, 1] {
        let sums = kept.mean_dim(dim, false, Kind::Double) - (1.0 - p);
        let most = sums.abs().max().double_value(&[]);
        assert!(most < 5.0 * error / 1e3_f64.sqrt(), "{most}");
    }
    let neighbours = kept.narrow(1, 0, 999) * kept.narrow(1, 1, 999);
    assert!((share(&neighbours) - (1.0 - p).powi(2)).abs() < 5.0 / 1e3);
    assert_eq!(first.max().double_value(&[]), f64::from((1.0 / (1.0 - p)) as f32));

    let cx = Context::new(Policy::new(Precision::F32True, device()), true);
    let given = Tensor::ones(shape, (Kind::Float, device())).set_requires_grad(true);
    let second = Dropout::new(p)?.forward(&given, &cx)?;
    second.sum(Kind::Float).backward();
    assert!(given.grad().equal(&second));
    assert!(!wide(&second).equal(&first));
    Ok(())
}
