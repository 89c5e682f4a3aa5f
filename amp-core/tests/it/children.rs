//! Tests of modules with inputs of any type, and of every form in which a derived `#[forward]` can
//! call a layer. In each form, the layer must have its path and its precision region, and its
//! dtypes must be checked.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Module, Result,
    nn::{
        self, Call, Child, Context, DtypeProbe, LayerNorm, Linear, ModuleOutput, Op, Probe, Visit,
        named_tensors,
    },
    precision::{Policy, Precision, Region},
    tch::{Device, Kind, Tensor},
};

use crate::support::{message, seeded};

/// A dtype probe that records the path and the dtype of each matrix product in a forward pass.
#[derive(Default)]
struct Products(RefCell<Vec<(String, Kind)>>);

impl DtypeProbe for Products {
    fn module_output(&self, output: &ModuleOutput<'_>) {
        if output.op == Op::Matmul {
            self.0.borrow_mut().push((output.path.to_owned(), output.kind));
        }
    }
}

pub(crate) fn ones(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Float, Device::Cpu))
}

/// Runs the forward pass of a model in this precision. Returns the path and the dtype of each
/// matrix product, in order.
pub(crate) fn products<M: Visit, T>(
    precision: Precision,
    model: &M,
    run: impl FnOnce(&M, &Context) -> Result<T>,
) -> Result<Vec<(String, Kind)>> {
    let policy = Policy::new(precision, Device::Cpu);
    nn::place(model, policy, &Default::default())?;
    let told = Rc::new(Products::default());
    let cx = Context::new(policy, true).with_dtype_probe(told.clone());
    let _autocast = policy.autocast()?;
    run(model, &cx)?;
    assert_eq!(&*cx.path(), "", "the path is empty again");
    Ok(told.0.take())
}

/// A block with a layer in a precision region.
#[derive(Module)]
#[forward(|x| {
    let y = self.inner.forward(x, cx)?;
    Ok(self.outer.forward(&y.f_relu()?, cx)?)
})]
struct Block {
    #[layer(linear(4, 4))]
    inner: Linear,
    #[layer(linear(4, 4))]
    #[precision(fp32)]
    outer: Linear,
}

/// A model that calls its layers in several forms: as methods, as elements of containers, by index,
/// as closures, and as arguments of a function.
#[derive(Module)]
#[forward(|x| {
    let mut x = self.first.forward(x, cx)?;
    for block in &self.blocks {
        x = block.forward(&x, cx)?;
    }
    for (at, row) in self.grid.iter().enumerate() {
        for layer in row.iter().rev() {
            x = layer.forward(&x, cx)?.f_add_scalar(at as i64)?;
        }
    }
    if let Some(layer) = &self.maybe {
        x = layer.forward(&x, cx)?;
    }
    if let Some(layer) = &self.never {
        x = layer.forward(&x, cx)?;
    }
    x = self.blocks[1].forward(&x, cx)?;
    x = self.boxed.forward(&x, cx)?;
    x = apply(&self.first, &x, cx)?;
    let bias = self.head.weight().f_sum(Kind::Float)?;
    Ok(self.head.forward(&last(&x)?, cx)?.f_add(&bias)?)
})]
struct Net {
    #[layer(linear(4, 4))]
    first: Linear,
    #[layer(repeat(2, |_| Block::builder().build()?))]
    blocks: Vec<Block>,
    #[layer(repeat(2, |_| repeat(2, |_| linear(4, 4))))]
    #[precision(fp32)]
    grid: Vec<Vec<Linear>>,
    #[layer(optional(true, linear(4, 4)))]
    maybe: Option<Linear>,
    #[layer(optional(false, linear(4, 4)))]
    never: Option<Linear>,
    #[layer(Box::new(Linear::new(nn::LinearConfig::new(4, 4))?))]
    #[precision(fp32)]
    boxed: Box<dyn Module>,
    #[layer(linear(4, 4))]
    last: Linear,
    #[layer(linear(4, 2))]
    #[precision(fp32)]
    head: Linear,
}

/// Runs a layer that is passed as a generic argument.
fn apply(layer: &impl Module, x: &Tensor, cx: &Context) -> Result<Tensor> {
    layer.forward(x, cx)
}

#[test]
fn every_way_of_calling_a_layer_keeps_path_and_region() -> Result<()> {
    let _generator = seeded(0);
    let net = Net::builder().build()?;
    let found = products(Precision::Bf16Mixed, &net, |net, cx| net.forward(&ones(&[3, 4]), cx))?;
    let (low, high) = (Kind::BFloat16, Kind::Float);
    let block = |at| {
        let path = |name| format!("blocks.{at}.{name}");
        [(path("inner"), low), (path("outer"), high)]
    };
    let row = |path: &str, kind| [(path.to_owned(), kind)];
    let expected = [
        &row("first", low)[..],
        &block(0),
        &block(1),
        &row("grid.0.1", high),
        &row("grid.0.0", high),
        &row("grid.1.1", high),
        &row("grid.1.0", high),
        &row("maybe", low),
        &block(1),
        &row("boxed", high),
        &row("first", low),
        &row("last", low),
        &row("head", high),
    ];
    assert_eq!(found, expected.concat());
    Ok(())
}

/// A precision override for a path applies in every form in which a layer can be called.
#[test]
fn overrides_apply_to_children() -> Result<()> {
    let _generator = seeded(0);
    let net = Net::builder().build()?;
    let islands = ["first", "blocks.0", "grid.1", "head"]
        .map(|path| (path.to_owned(), if path == "head" { Region::Bf16 } else { Region::Fp64 }));
    let islands = Rc::new(islands.into());
    let policy = Policy::new(Precision::Bf16Mixed, Device::Cpu);
    nn::place(&net, policy, &islands)?;
    let told = Rc::new(Products::default());
    let cx = Context::new(policy, true).with_overrides(islands).with_dtype_probe(told.clone());
    let _autocast = policy.autocast()?;
    let _ = net.forward(&ones(&[3, 4]), &cx)?;
    let of = |path: &str| {
        let told = told.0.borrow();
        let kinds: Vec<Kind> =
            told.iter().filter(|(found, _)| found == path).map(|(_, kind)| *kind).collect();
        kinds
    };
    assert_eq!(of("first"), [Kind::Double, Kind::Double]);
    assert_eq!(of("blocks.0.inner"), [Kind::Double]);
    // The precision region that `outer` declares itself applies, and not the override of
    // `blocks.0`, because the inner region wins.
    assert_eq!(of("blocks.0.outer"), [Kind::Float]);
    assert_eq!(of("blocks.1.inner"), [Kind::BFloat16, Kind::BFloat16]);
    assert_eq!((of("grid.0.0"), of("grid.1.0")), (vec![Kind::Float], vec![Kind::Double]));
    assert_eq!(of("head"), [Kind::BFloat16]);
    Ok(())
}

/// Attention with a mask, as in BERT. It has several inputs, and the mask is optional.
#[derive(Module)]
#[forward(|x, mask: Option<&Tensor>, scale: f64| -> Result<(Tensor, Tensor)> {
    let scores = query(x)?.f_matmul(&key(x)?.f_transpose(1, 2)?)?.f_mul_scalar(scale)?;
    let scores = match mask {
        Some(mask) => scores.f_masked_fill(&mask.f_unsqueeze(1)?.f_logical_not()?, -1e4)?,
        None => scores,
    };
    let weights = scores.f_softmax(-1, Kind::Float)?;
    Ok((weights.f_to_kind(x.kind())?.f_matmul(x)?, weights))
})]
struct Attention {
    #[layer(linear(4, 4))]
    query: Linear,
    #[layer(linear(4, 4))]
    key: Linear,
}

#[derive(Module)]
#[forward(|x, mask: &Tensor| {
    let mut x = x.shallow_clone();
    for layer in &self.layers {
        let (next, _) = layer.forward(&x, Some(mask), 0.5, cx)?;
        x = norm(&next)?;
    }
    let (once, weights) = wide(&x, None, 1.0)?;
    let y = self.wide.forward_with((&once, Some(mask), 2.0), cx)?.0;
    assert_eq!((once.kind(), weights.kind(), y.kind()), (Kind::Float, Kind::Float, Kind::Float));
    head(&y)
})]
struct Encoder {
    #[layer(repeat(2, |_| Attention::builder().build()?))]
    layers: Vec<Attention>,
    #[layer(layer_norm(4))]
    norm: LayerNorm,
    #[layer(Attention::builder().build()?)]
    #[precision(fp64)]
    wide: Attention,
    #[layer(linear(4, 2))]
    head: Linear,
}

fn mask() -> Tensor {
    Tensor::from_slice(&[true, true, false]).reshape([1, 3])
}

/// A precision region casts all floating-point inputs and outputs of its module, including those in
/// options and tuples. It does not cast booleans.
#[test]
fn a_region_casts_every_input_and_output() -> Result<()> {
    let _generator = seeded(0);
    let encoder = Encoder::builder().build()?;
    let x = Tensor::randn([1, 3, 4], (Kind::Float, Device::Cpu));
    let run = |encoder: &Encoder, cx: &Context| encoder.forward(&x, &mask(), cx);
    let found = products(Precision::F32True, &encoder, run)?;
    let layer = |path: &str, kind| ["query", "key"].map(|name| (format!("{path}.{name}"), kind));
    let expected = [
        &layer("layers.0", Kind::Float)[..],
        &layer("layers.1", Kind::Float),
        &layer("wide", Kind::Double),
        &layer("wide", Kind::Double),
        &[("head".to_owned(), Kind::Float)],
    ];
    assert_eq!(found, expected.concat());
    Ok(())
}

/// The attention weights of masked elements are 0.
#[test]
fn masked_elements_have_no_effect() -> Result<()> {
    let _generator = seeded(0);
    let encoder = Encoder::builder().build()?;
    let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), false);
    nn::place(&encoder, cx.policy(), &Default::default())?;
    let x = Tensor::randn([1, 3, 4], (Kind::Float, Device::Cpu));
    let layer = &encoder.layers[0];
    let weights = |mask: Option<&Tensor>| layer.forward(&x, mask, 0.5, &cx).map(|(_, w)| w);
    let hidden = weights(Some(&mask()))?.select(2, 2);
    assert_eq!(hidden.abs().max().double_value(&[]), 0.0, "e^-10000 is 0 in f32");
    assert!(weights(None)?.select(2, 2).min().double_value(&[]) > 0.0);
    Ok(())
}

/// A block of a U-Net. Its two inputs are an image and a time.
#[derive(Module)]
#[forward(|x, t| {
    let shift = time(t)?.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
    Ok(conv(x)?.f_add(&shift)?.f_silu()?)
})]
struct TimeBlock {
    #[layer(conv2d(2, 2, 3, padding = 1))]
    conv: nn::Conv2d,
    #[layer(linear(4, 2))]
    time: Linear,
}

#[derive(Module)]
#[forward(|x, t| {
    let down = down(x, t)?;
    up(&down.f_add(x)?, &t)
})]
struct UNet {
    #[layer(TimeBlock::builder().build()?)]
    down: TimeBlock,
    #[layer(TimeBlock::builder().build()?)]
    #[precision(fp32)]
    up: TimeBlock,
}

#[derive(Module)]
#[forward(|pair: (&Tensor, &Tensor)| -> Result<Vec<Tensor>> {
    [left(pair.0), right(pair.1)].into_iter().collect()
})]
struct Towers {
    #[layer(sequential(linear(4, 4), gelu))]
    left: nn::Sequential,
    #[layer(sequential(linear(4, 4), gelu))]
    right: nn::Sequential,
}

#[test]
fn blocks_with_two_inputs_run_in_a_model() -> Result<()> {
    let _generator = seeded(0);
    let net = UNet::builder().build()?;
    let (x, t) = (ones(&[1, 2, 5, 5]), ones(&[1, 4]));
    let found = products(Precision::Bf16Mixed, &net, |net, cx| net.forward(&x, &t, cx))?;
    let row = |path: &str, kind| (path.to_owned(), kind);
    let (low, high) = (Kind::BFloat16, Kind::Float);
    let expected =
        [row("down.time", low), row("down.conv", low), row("up.time", high), row("up.conv", high)];
    assert_eq!(found, expected);

    let towers = Towers::builder().build()?;
    let (a, b) = (ones(&[2, 4]), ones(&[2, 4]));
    let found = products(Precision::Bf16Mixed, &towers, |towers, cx| {
        assert_eq!(towers.forward((&a, &b), cx)?.len(), 2);
        Child::new("towers", Some(Region::Fp32), towers).forward((&a, &b), cx)
    })?;
    let expected = [
        row("left.0", low),
        row("right.0", low),
        row("towers.left.0", high),
        row("towers.right.0", high),
    ];
    assert_eq!(found, expected);
    Ok(())
}

/// A probe that runs each module a second time, including modules with several inputs and outputs.
/// Records, for each output, the path, the size, and the largest difference between the two runs.
#[derive(Default)]
struct Shown(RefCell<Vec<(String, Vec<i64>, f64)>>);

impl Probe for Shown {
    fn ran(&self, call: &Call<'_>) {
        let again = (call.rerun)(call.input).expect("it ran before");
        let difference = (again - call.output).abs().max().double_value(&[]);
        self.0.borrow_mut().push((call.path.to_owned(), call.output.size(), difference));
    }
}

#[test]
fn a_probe_gets_each_output() -> Result<()> {
    let _generator = seeded(0);
    let encoder = Encoder::builder().build()?;
    let policy = Policy::new(Precision::F32True, Device::Cpu);
    nn::place(&encoder, policy, &Default::default())?;
    let shown = Rc::new(Shown::default());
    let cx = Context::new(policy, false).with_probe(shown.clone());
    let _ = encoder.forward(&Tensor::randn([1, 3, 4], (Kind::Float, Device::Cpu)), &mask(), &cx)?;
    let of_first: Vec<_> =
        shown.0.take().into_iter().filter(|(path, ..)| path == "layers.0").collect();
    let row = |size: [i64; 3]| ("layers.0".to_owned(), size.to_vec(), 0.0);
    assert_eq!(of_first, [row([1, 3, 4]), row([1, 3, 3])]);
    Ok(())
}

/// The error of a failing layer names the innermost module, whatever the types of the modules'
/// inputs are.
#[test]
fn an_error_names_the_innermost_module() -> Result<()> {
    let _generator = seeded(0);
    let net = UNet::builder().build()?;
    let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), false);
    let error = net.forward(&ones(&[1, 2, 5, 5]), &ones(&[1, 3]), &cx);
    let error = message(error);
    assert!(error.contains("down.time"), "{error}");
    let names: Vec<String> = named_tensors(&net).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names[..2], ["down.conv.weight", "down.conv.bias"]);
    Ok(())
}
