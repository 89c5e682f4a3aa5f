//! Tests of training runs of models whose layers have kernels of this project on CUDA
//! (`AMP_DEVICE=cuda`). A run with CUDA graphs, a run with checkpointed blocks, and a run that is
//! resumed from a checkpoint have the same bits as a run without any of these. On other devices,
//! the layers run one by one.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    rc::Rc,
};

use amp_core::{
    Hook,
    callback::{Action, Callback},
    hardware::set_numerics,
    nn::{Activation, Checkpoint, named_tensors, split_heads},
    precision::{Clip, GradScalerConfig, Precision, StepOutcome},
    prelude::*,
    trainer::Graph,
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{
    bits::sha256,
    device,
    model::{digits, same},
    seeded,
};

const WIDTH: i64 = 128;
/// The number of classes. It is so large that the loss of a batch of 32 examples is not computed by
/// a single block of threads.
const CLASSES: i64 = 4096;

/// Attention whose queries, keys and values come from one matrix product. One kernel joins their
/// gradients.
#[derive(Module)]
#[forward(|x| {
    let size = x.size();
    let [q, k, v] = split_heads(&qkv(x)?, 4)?;
    let scores = q.f_matmul(&k.f_transpose(-2, -1)?)?.f_mul_scalar(0.2)?;
    let mixed = scores.f_softmax(-1, scores.kind())?.f_matmul(&v)?;
    out(&mixed.f_transpose(1, 2)?.f_reshape(size)?)
})]
struct Attention {
    #[layer(linear(WIDTH, 3 * WIDTH))]
    qkv: Linear,
    #[layer(linear(WIDTH, WIDTH))]
    out: Linear,
}

/// A transformer block with two residuals, each of which begins with a norm. The first is around
/// attention. The second is around two linear layers, the first of which is fused with its bias and
/// GELU.
#[derive(Module)]
#[forward(|x| {
    let x = self.norm1.residual_of_products(x, attention, cx)?;
    self.norm2.residual(&x, |x| outer(&self.inner.activated(x, Activation::GeluTanh, cx)?), cx)
})]
struct Block {
    #[layer(layer_norm(WIDTH))]
    norm1: LayerNorm,
    #[layer(Attention::builder().build()?)]
    attention: Attention,
    #[layer(layer_norm(WIDTH))]
    norm2: LayerNorm,
    #[layer(linear(WIDTH, 2 * WIDTH))]
    inner: Linear,
    #[layer(linear(2 * WIDTH, WIDTH))]
    outer: Linear,
}

/// A transformer that reads each row of pixels as a token, with many classes.
#[derive(LightningModule)]
#[forward(|x| {
    let x = blocks(&embedding(&x.f_reshape([-1, 8, 8])?)?)?;
    head(&norm(&x.f_mean_dim([1].as_slice(), false, None)?)?)
})]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Words {
    #[hparam]
    checkpointed: bool,
    #[layer(linear(8, WIDTH))]
    embedding: Linear,
    #[layer(repeat(2, |_| Checkpoint::new(Block::builder().build()?, checkpointed)))]
    blocks: Vec<Checkpoint<Block>>,
    #[layer(layer_norm(WIDTH))]
    norm: LayerNorm,
    #[layer(linear(WIDTH, CLASSES))]
    head: Linear,
}

/// A block of 1×1 and 3×3 convolutions, with a residual around them.
#[derive(Module)]
#[forward(|x| {
    let (y, x) = self.conv1.and_input(x, cx)?;
    let y = self.bn1.forward_relu(&y, cx)?;
    let y = self.bn2.forward_relu(&conv2(&y)?, cx)?;
    self.bn3.forward_add_relu(&conv3(&y)?, &x, cx)
})]
struct Bottleneck {
    #[layer(conv2d(32, 16, 1, bias = false))]
    conv1: Conv2d,
    #[layer(batch_norm2d(16))]
    bn1: BatchNorm,
    #[layer(conv2d(16, 16, 3, padding = 1, bias = false))]
    conv2: Conv2d,
    #[layer(batch_norm2d(16))]
    bn2: BatchNorm,
    #[layer(conv2d(16, 32, 1, bias = false))]
    conv3: Conv2d,
    #[layer(batch_norm2d(32))]
    bn3: BatchNorm,
}

#[derive(LightningModule)]
#[forward(|x| {
    let x = self.bn.forward_relu(&conv(&x.f_reshape([-1, 1, 8, 8])?)?, cx)?;
    fc(&blocks(&pool(&x)?)?.f_flatten(1, -1)?)
})]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 1e-2, momentum = 0.9)]
struct Images {
    #[hparam]
    checkpointed: bool,
    #[layer(conv2d(1, 32, 3, padding = 1, bias = false))]
    conv: Conv2d,
    #[layer(batch_norm2d(32))]
    bn: BatchNorm,
    #[layer(max_pool2d(2))]
    pool: MaxPool2d,
    #[layer(repeat(2, |_| Checkpoint::new(Bottleneck::builder().build()?, checkpointed)))]
    blocks: Vec<Checkpoint<Bottleneck>>,
    #[layer(linear(32 * 16, CLASSES))]
    fc: Linear,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Net {
    Words,
    Images,
}

impl Net {
    fn build(self, checkpointed: bool) -> Result<Box<dyn LightningModule>> {
        Ok(match self {
            Self::Words => Box::new(Words::builder(checkpointed).build()?),
            Self::Images => Box::new(Images::builder(checkpointed).build()?),
        })
    }
}

/// A callback that saves the run after the 13th step, in the second epoch.
struct Saves {
    path: PathBuf,
    steps: Rc<Cell<usize>>,
}

impl Callback for Saves {
    fn name(&self) -> String {
        "Saves".into()
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        self.steps.set(self.steps.get() + usize::from(outcome.is_some()));
        Ok(match self.steps.get() {
            13 => vec![Action::Save { path: self.path.clone(), weights_only: false }],
            _ => Vec::new(),
        })
    }
}

/// The options of a training run.
#[derive(Debug, Clone, Copy)]
struct How<'a> {
    graph: Graph,
    checkpointed: bool,
    saves: Option<&'a Path>,
    from: Option<&'a Path>,
}

const PLAIN: How<'_> = How { graph: Graph::Off, checkpointed: false, saves: None, from: None };

/// Trains for three epochs on some digits, with deterministic algorithms on CUDA. Returns every
/// tensor after the run, and the number of steps that ran as CUDA graphs.
fn train(net: Net, precision: Precision, how: How<'_>) -> Result<(Vec<(String, String)>, u64)> {
    let How { graph, checkpointed, saves, from } = how;
    // `set_numerics` changes a setting of the whole process. Until `_generator` is dropped, other
    // tests that train wait. A resumed run begins with another seed, so that its random numbers are
    // right only if the checkpoint restores them.
    let _generator = seeded(if from.is_some() { 8 } else { 7 });
    set_numerics(false, device().is_cuda())?;
    let config = TrainerConfig { max_epochs: 3, graph, ..TrainerConfig::new(precision, device()) }
        .with(|config| {
            config.optimization.gradient_clip = Some(Clip::Norm(1.0));
            config.recovery.provenance = false;
            // With this loss scale, the gradients of the first steps overflow in f16.
            config.numerics.scaler =
                GradScalerConfig { init_scale: 2.0_f64.powi(24), ..Default::default() };
        });
    let mut model = net.build(checkpointed)?;
    let mut trainer = Trainer::new(config);
    if let Some(path) = saves {
        trainer = trainer.callback(Saves { path: path.to_owned(), steps: Rc::default() });
    }
    if let Some(path) = from {
        trainer = trainer.resume_from(path);
    }
    let record = trainer.fit(model.as_mut(), &same(digits(330)?, 32)?);
    set_numerics(false, false)?;
    let tensors = named_tensors(model.as_ref());
    let tensors = tensors.into_iter().map(|(name, tensor, _)| (name, sha256(&tensor))).collect();
    Ok((tensors, record?.end.replayed))
}

#[rstest]
fn a_run_is_the_same_in_every_way(
    #[values(Net::Words, Net::Images)] net: Net,
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("run.safetensors");
    let (plain, _) = train(net, precision, How { saves: Some(&path), ..PLAIN })?;
    let same = |how: How<'_>| -> Result<()> {
        let (other, replayed) = train(net, precision, how)?;
        assert_eq!(other, plain, "{how:?}");
        assert!(
            how.graph == Graph::Off || replayed > 5,
            "{how:?}: {replayed} steps ran as CUDA graphs"
        );
        Ok(())
    };
    same(How { checkpointed: true, ..PLAIN })?;
    same(How { from: Some(&path), ..PLAIN })?;
    if device().is_cuda() {
        let graph = Graph::On;
        same(How { graph, ..PLAIN })?;
        same(How { graph, checkpointed: true, ..PLAIN })?;
        same(How { graph, from: Some(&path), ..PLAIN })?;
    }
    Ok(())
}
