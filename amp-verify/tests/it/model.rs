//! A model written out by hand, with layers that lose more than others.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use amp_core::{
    Hyperparameters, LightningModule, Module, Result, Step,
    data::Batch,
    log::LogOptions,
    nn::{
        Context, LayerNorm, LayerNormConfig, Linear, LinearConfig, Relu, Role, Sequential, Visitor,
        named_tensors, visit_child,
    },
    optim::{AdamW, OptimizerConfig, Optimizers, TrainingPlan},
    precision::{Region, autocast_state},
    tch::{Device, Kind, Tensor, no_grad},
};
use amp_verify::layers::Subject;

use crate::support::torch_device;

type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;

pub(crate) struct Model {
    pub(crate) model: Box<dyn Module>,
    pub(crate) loss: Loss,
}

impl Model {
    pub(crate) fn new(model: impl Module + 'static, loss: Loss) -> Self {
        Self { model: Box::new(model), loss }
    }

    fn log(&self, name: &str, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
        let output = self.forward(&batch.input, step.context())?;
        let loss = (self.loss)(&output, &batch.target)?;
        step.log(name, &loss, batch.len(), LogOptions::ON_EPOCH)?;
        Ok(loss)
    }
}

impl Module for Model {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        cx.call("model", None, &self.model, input)
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "model", None, &self.model);
    }
}

impl LightningModule for Model {
    fn name(&self) -> &'static str {
        "Model"
    }

    fn hyperparameters(&self) -> Hyperparameters {
        Hyperparameters::new()
    }

    fn training_step(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
        self.log("train_loss", batch, step)
    }

    fn validation_step(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<()> {
        self.log("val_loss", batch, step).map(drop)
    }

    fn configure_optimizers(&self, _: &TrainingPlan) -> Result<Optimizers> {
        Ok(OptimizerConfig::new(AdamW { lr: 1e-3, ..Default::default() }).into())
    }
}

/// The mean of the output, in f32 at least: a loss in f16 bears no scale of 65536.
pub(crate) fn mean(output: &Tensor, _: &Tensor) -> Result<Tensor> {
    let double = output.kind() == Kind::Double;
    Ok(output.f_mean(if double { Kind::Double } else { Kind::Float })?)
}

pub(crate) fn linear(inputs: i64, outputs: i64, bias: bool) -> Linear {
    Linear::new(LinearConfig { bias, ..LinearConfig::new(inputs, outputs) }).expect("a layer")
}

/// Sets the tensor of this name to one value.
pub(crate) fn fill(module: &dyn Module, name: &str, value: f64) {
    let tensors = named_tensors(module);
    let (_, tensor, _) = tensors.iter().find(|(other, ..)| other == name).expect("a tensor");
    let _ = no_grad(|| tensor.shallow_clone().fill_(value));
}

/// A layer norm that goes past autocast's list: it computes in the autocast dtype where there is
/// one. Without autocast it is a [`LayerNorm`].
pub(crate) struct HalfLayerNorm(pub(crate) LayerNorm);

impl HalfLayerNorm {
    pub(crate) fn new(width: i64) -> Self {
        Self(LayerNorm::new(LayerNormConfig::new(width)).expect("a layer"))
    }
}

impl Module for HalfLayerNorm {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let state = autocast_state(input.device())?;
        let (true, Some(kind)) = (state.enabled, state.dtype) else {
            return self.0.forward(input, cx);
        };
        let x = input.f_to_kind(kind)?;
        let centred = x.f_sub(&x.f_mean_dim([-1].as_slice(), true, kind)?)?;
        let square = centred.f_mul(&centred)?;
        let variance = square.f_mean_dim([-1].as_slice(), true, kind)?;
        let normal = centred.f_mul(&variance.f_add_scalar(1e-5)?.f_rsqrt()?)?;
        let found = RefCell::new(Vec::new());
        struct Collect<'a>(&'a RefCell<Vec<Tensor>>);
        impl Visitor for Collect<'_> {
            fn enter(&mut self, _: &str, _: Option<Region>) {}
            fn leave(&mut self) {}
            fn tensor(&mut self, _: &str, tensor: &Tensor, _: Role) {
                self.0.borrow_mut().push(tensor.shallow_clone());
            }
        }
        self.0.visit(&mut Collect(&found));
        let own = found.take();
        Ok(normal.f_mul(&own[0].f_to_kind(kind)?)?.f_add(&own[1].f_to_kind(kind)?)?)
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        self.0.visit(visitor);
    }
}

/// Three blocks of Linear, norm, ReLU and a Linear; the second norm's input is large, so that its
/// squares overflow f16: `model.4` is the culprit when it is a [`HalfLayerNorm`].
pub(crate) fn planted(half: bool) -> Model {
    let norm = || LayerNorm::new(LayerNormConfig::new(16)).expect("a layer");
    let culprit: Box<dyn Module> =
        if half { Box::new(HalfLayerNorm::new(16)) } else { Box::new(norm()) };
    let large = linear(16, 16, true);
    for (_, tensor, _) in named_tensors(&large) {
        let _ = no_grad(|| tensor.shallow_clone().f_mul_scalar_(2000.0)).expect("a factor");
    }
    let layers: Vec<Box<dyn Module>> = vec![
        Box::new(linear(64, 16, true)),
        Box::new(norm()),
        Box::new(Relu),
        Box::new(large),
        culprit,
        Box::new(Relu),
        Box::new(linear(16, 16, true)),
        Box::new(norm()),
        Box::new(linear(16, 10, true)),
    ];
    Model::new(Sequential::new(layers), amp_core::loss::cross_entropy)
}

/// A batch of `rows` for [`planted`].
pub(crate) fn batch(rows: i64) -> Batch {
    let _section = amp_core::random::seeded(3).expect("a seed");
    let input = Tensor::randn([rows, 64], (Kind::Float, Device::Cpu));
    let target = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(10);
    Batch::new(input, target).expect("a batch")
}

pub(crate) fn subject<'a>(
    build: &'a dyn Fn() -> Result<Box<dyn LightningModule>>,
    batch: &'a Batch,
    islands: &[&str],
) -> Subject<'a> {
    let islands: BTreeMap<String, Region> =
        islands.iter().map(|path| ((*path).to_owned(), Region::Fp32)).collect();
    Subject { build, batch, device: torch_device(), seed: 5, islands: Rc::new(islands) }
}
