//! A ResNet-50 in which the gradient of the first convolution overflows.

use amp_core::{
    LightningModule, Module, Result, Trainer, TrainerConfig,
    data::{Batch, DataModule},
    memory::MemoryMeter,
    nn::{self, BatchNorm, Conv2d, Linear, Sequential},
    precision::Precision,
    provenance::Cause,
    tch::{Device, Kind, Tensor},
};

use crate::support::{device, seeded};

/// A bottleneck of torchvision: 1×1, 3×3 and 1×1 convolutions with a residual. The output has
/// 4·`width` channels.
#[derive(Module)]
#[forward(|x| {
    let y = bn1(&conv1(x)?)?.f_relu()?;
    let y = bn2(&conv2(&y)?)?.f_relu()?;
    let y = bn3(&conv3(&y)?)?;
    Ok(y.f_add(&downsample(x)?)?.f_relu()?)
})]
struct Bottleneck {
    #[hparam(default = 64)]
    inputs: i64,
    #[hparam(default = 64)]
    width: i64,
    #[hparam(default = 1)]
    stride: i64,
    #[layer(conv2d(inputs, width, 1, bias = false))]
    conv1: Conv2d,
    #[layer(batch_norm2d(width))]
    bn1: BatchNorm,
    #[layer(conv2d(width, width, 3, stride = stride, padding = 1, bias = false))]
    conv2: Conv2d,
    #[layer(batch_norm2d(width))]
    bn2: BatchNorm,
    #[layer(conv2d(width, 4 * width, 1, bias = false))]
    conv3: Conv2d,
    #[layer(batch_norm2d(4 * width))]
    bn3: BatchNorm,
    #[layer(optional(stride != 1 || inputs != 4 * width, sequential(
        conv2d(inputs, 4 * width, 1, stride = stride, bias = false),
        batch_norm2d(4 * width),
    )))]
    downsample: Option<Sequential>,
}

/// Builds the residual blocks of one stage.
fn stage(width: i64, inputs: i64, blocks: usize, stride: i64) -> Result<Sequential> {
    let mut layers: Vec<Box<dyn Module>> = Vec::new();
    for block in 0..blocks {
        let (inputs, stride) = if block == 0 { (inputs, stride) } else { (4 * width, 1) };
        layers.push(Box::new(
            Bottleneck::builder().inputs(inputs).width(width).stride(stride).build()?,
        ));
    }
    Ok(Sequential::new(layers))
}

/// Returns its input. In the backward pass, the gradient is multiplied by 1e30.
fn amplify(x: &Tensor) -> Result<Tensor> {
    let nothing = x.f_sub(&x.f_detach()?)?;
    Ok(x.f_add(&nothing.f_mul_scalar(1e30)?)?)
}

#[derive(LightningModule)]
#[forward(|x| {
    let x = self::amplify(&self::amplify(&bn1(&conv1(x)?)?.f_relu()?)?)?;
    head(&body(&x)?)
})]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct ResNet50 {
    #[layer(conv2d(3, 64, 7, stride = 2, padding = 3, bias = false))]
    conv1: Conv2d,
    #[layer(batch_norm2d(64))]
    bn1: BatchNorm,
    #[layer(sequential(
        max_pool2d(3, stride = 2, padding = 1),
        self::stage(64, 64, 3, 1)?,
        self::stage(128, 256, 4, 2)?,
        self::stage(256, 512, 6, 2)?,
        self::stage(512, 1024, 3, 2)?,
        adaptive_avg_pool2d(1),
        flatten,
    ))]
    body: Sequential,
    #[layer(linear(2048, 1000))]
    head: Linear,
}

/// The model has torchvision's 25,557,032 parameters. The search for the cause of a skipped step
/// needs no more memory than the step.
#[test]
fn the_search_needs_no_more_memory_than_the_step() -> Result<()> {
    let peak = |provenance: bool| -> Result<(u64, Option<Cause>)> {
        let _section = seeded(0);
        let mut net = ResNet50::builder().build()?;
        let count: usize = nn::parameters(&net).iter().map(|one| one.tensor.numel()).sum();
        assert_eq!(count, 25_557_032);
        let x = Tensor::randn([16, 3, 64, 64], (Kind::Float, Device::Cpu));
        let y = Tensor::randint(1000, [16], (Kind::Int64, Device::Cpu));
        let data = DataModule::training("noise", Batch::new(x, y)?, 16);
        let config = TrainerConfig::new(Precision::F32True, device()).with(|config| {
            config.max_steps = Some(1);
            config.max_epochs = 1;
            config.recovery.provenance = provenance;
        });
        let meter = MemoryMeter::start(device())?;
        let record = Trainer::new(config).fit(&mut net, &data)?;
        let [skip] = record.skips.as_slice() else { panic!("one step is skipped") };
        Ok((
            meter.read()?.peak_allocated,
            skip.provenance.as_ref().map(|found| found.cause.clone()),
        ))
    };
    let ((unexplained, None), (explained, Some(cause))) = (peak(false)?, peak(true)?) else {
        panic!("expected one run without and one run with the search for the cause");
    };
    let ratio = explained as f64 / unexplained as f64;
    assert_eq!(cause, Cause::InputGradient("body.0".to_owned()));
    assert!(ratio < 1.05, "{explained} bytes with the search, {unexplained} without: {ratio:.2}");
    Ok(())
}
