//! Tests of precision regions: parts of a model that compute in another dtype than the rest, under
//! every precision.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use amp_core::{
    LightningModule, Module, Result, Trainer, TrainerConfig,
    nn::{
        self, Context, DtypeProbe, Linear, LinearConfig, ModuleOutput, Op, Visit, Visitor,
        visit_child,
    },
    precision::{Policy, Precision, Region, autocast_state},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    device, message,
    model::{constant, linear, same},
    seeded,
};

/// A linear layer. It may be in a precision region, and it may contain an inner `Part` that runs
/// before it.
struct Part {
    region: Option<Region>,
    layer: Linear,
    inner: Option<Box<Part>>,
}

impl Part {
    fn of(region: Option<Region>, inner: Option<Part>) -> Result<Self> {
        Ok(Self { region, layer: linear(8, 8)?, inner: inner.map(Box::new) })
    }
}

impl Visit for Part {
    fn visit(&self, visitor: &mut dyn Visitor) {
        if let Some(inner) = &self.inner {
            visit_child(visitor, "inner", inner.region, inner);
        }
        visit_child(visitor, "layer", None, &self.layer);
    }
}

impl Module for Part {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let x = match &self.inner {
            Some(inner) => cx.call("inner", inner.region, inner, input)?,
            None => input.shallow_clone(),
        };
        cx.call("layer", None, &self.layer, &x)
    }
}

/// A probe that records, for every matrix product, the dtype of its output and the dtype that the
/// precision prescribes for it.
#[derive(Default)]
struct Products(RefCell<BTreeMap<String, (Kind, Kind)>>);

impl DtypeProbe for Products {
    fn module_output(&self, output: &ModuleOutput<'_>) {
        if output.op == Op::Matmul {
            let kinds = (output.kind, output.plan.compute);
            self.0.borrow_mut().insert(output.path.to_owned(), kinds);
        }
    }
}

struct Run {
    products: BTreeMap<String, (Kind, Kind)>,
    parameters: BTreeMap<String, Kind>,
    output: Kind,
}

/// Runs `part` forward and backward. `islands` assigns precision regions to layers by their paths.
/// Returns the dtypes of the matrix products, the parameters and the output.
fn run(precision: Precision, part: &Part, islands: &[(&str, Region)]) -> Result<Run> {
    let policy = Policy::new(precision, Device::Cpu);
    let islands: BTreeMap<_, _> =
        islands.iter().map(|(path, region)| ((*path).to_owned(), *region)).collect();
    nn::place(part, policy, &islands)?;
    let before = autocast_state(Device::Cpu)?;
    let products = Rc::new(Products::default());
    let context = Context::new(policy, true)
        .with_overrides(Rc::new(islands))
        .with_dtype_probe(products.clone());
    let input = Tensor::ones([2, 8], (precision.storage(), Device::Cpu));
    let output = {
        let _autocast = policy.autocast()?;
        part.forward(&input, &context)?
    };
    assert_eq!(autocast_state(Device::Cpu)?, before);
    output.to_kind(Kind::Float).sum(Kind::Float).backward();
    let parameters = nn::parameters(part);
    for parameter in &parameters {
        assert_eq!(parameter.tensor.grad().kind(), parameter.tensor.kind(), "{}", parameter.name);
    }
    drop(context);
    Ok(Run {
        products: products.0.take(),
        parameters: parameters.into_iter().map(|p| (p.name.to_string(), p.tensor.kind())).collect(),
        output: output.kind(),
    })
}

/// A precision region sets the dtypes of its own parameters and matrix products, but not of those
/// outside it. In a mixed-precision run, the matrix products of the region have its dtype. In a
/// 32-true or 64-true run, a region has an effect only if its dtype is wider than that of the run.
/// The 32-true run, which is the baseline, thus has no 16-bit parts.
#[rstest]
#[case(Precision::F16Mixed, Region::Fp32, Kind::Float, Kind::Float)]
#[case(Precision::F16Mixed, Region::Bf16, Kind::Float, Kind::BFloat16)]
#[case(Precision::F16Mixed, Region::Fp16, Kind::Float, Kind::Half)]
#[case(Precision::F16Mixed, Region::Fp64, Kind::Double, Kind::Double)]
#[case(Precision::F16Mixed, Region::AutocastOff, Kind::Float, Kind::Float)]
#[case(Precision::Bf16Mixed, Region::Fp16, Kind::Float, Kind::Half)]
#[case(Precision::Bf16Mixed, Region::Fp32, Kind::Float, Kind::Float)]
#[case(Precision::F32True, Region::Fp16, Kind::Float, Kind::Float)]
#[case(Precision::F32True, Region::Bf16, Kind::Float, Kind::Float)]
#[case(Precision::F32True, Region::Fp32, Kind::Float, Kind::Float)]
#[case(Precision::F32True, Region::Fp64, Kind::Double, Kind::Double)]
#[case(Precision::F64True, Region::Fp32, Kind::Double, Kind::Double)]
#[case(Precision::F16True, Region::Fp32, Kind::Float, Kind::Float)]
#[case(Precision::F16True, Region::Bf16, Kind::BFloat16, Kind::BFloat16)]
#[case(Precision::Bf16True, Region::Fp16, Kind::Half, Kind::Half)]
#[case(Precision::Bf16True, Region::Bf16, Kind::BFloat16, Kind::BFloat16)]
#[case(Precision::Bf16True, Region::Fp64, Kind::Double, Kind::Double)]
#[case(Precision::Bf16True, Region::AutocastOff, Kind::BFloat16, Kind::BFloat16)]
fn a_region_applies_to_its_part_alone(
    #[case] precision: Precision,
    #[case] region: Region,
    #[case] storage: Kind,
    #[case] compute: Kind,
) -> Result<()> {
    let _generator = seeded(0);
    let part = Part::of(None, Some(Part::of(Some(region), None)?))?;
    let run = run(precision, &part, &[])?;
    assert_eq!(run.products["inner.layer"], (compute, compute));
    assert_eq!(run.products["layer"], (precision.compute(), precision.compute()));
    assert_eq!(run.parameters["inner.layer.weight"], storage);
    assert_eq!(run.parameters["layer.weight"], precision.storage());
    assert_eq!(run.output, precision.compute());
    Ok(())
}

/// Precision regions can be nested. Here a bf16 region is inside an f32 region, in a 16-mixed run.
/// After each region, the autocast state of the surrounding region is restored.
#[test]
fn regions_nest() -> Result<()> {
    let _generator = seeded(0);
    let innermost = Part::of(Some(Region::Bf16), None)?;
    let island = Part::of(Some(Region::Fp32), Some(innermost))?;
    let run = run(Precision::F16Mixed, &Part::of(None, Some(island))?, &[])?;
    let seen = |path: &str| run.products[path].0;
    assert_eq!(seen("inner.inner.layer"), Kind::BFloat16);
    assert_eq!(seen("inner.layer"), Kind::Float);
    assert_eq!(seen("layer"), Kind::Half);
    Ok(())
}

/// In a bf16-true run, an f32 region is inside an f64 region. The layer in the f32 region and its
/// parameters are f32, because the dtype of a region is compared with that of the run, and not with
/// that of the surrounding region.
#[test]
fn a_region_inside_a_raised_one_raises_from_the_runs_dtype() -> Result<()> {
    let _generator = seeded(0);
    let innermost = Part::of(Some(Region::Fp32), None)?;
    let island = Part::of(Some(Region::Fp64), Some(innermost))?;
    let run = run(Precision::Bf16True, &Part::of(None, Some(island))?, &[])?;
    assert_eq!(run.products["inner.inner.layer"], (Kind::Float, Kind::Float));
    assert_eq!(run.products["inner.layer"], (Kind::Double, Kind::Double));
    assert_eq!(run.parameters["inner.inner.layer.weight"], Kind::Float);
    assert_eq!(run.output, Kind::BFloat16);
    Ok(())
}

/// A region given by path overrides the region that the model declares.
#[test]
fn regions_by_path_override_declared_regions() -> Result<()> {
    let _generator = seeded(0);
    let part = Part::of(None, Some(Part::of(Some(Region::Fp32), None)?))?;
    let run = run(Precision::F16Mixed, &part, &[("inner", Region::Bf16), ("layer", Region::Fp64)])?;
    assert_eq!(run.products["inner.layer"], (Kind::BFloat16, Kind::BFloat16));
    assert_eq!(run.products["layer"], (Kind::Double, Kind::Double));
    assert_eq!(run.parameters["layer.weight"], Kind::Double);
    assert_eq!(run.output, Kind::Float, "autocast outside of the region does not cast f64 tensors");
    Ok(())
}

/// If an error occurs inside a precision region, the autocast state, the module path and the
/// planned dtypes are restored, so that the next forward pass runs.
#[test]
fn an_error_inside_a_region_ends_it() -> Result<()> {
    let _generator = seeded(0);
    let mut island = Part::of(Some(Region::Fp32), None)?;
    island.layer = Linear::new(LinearConfig::new(5, 8))?;
    let part = Part::of(None, Some(island))?;
    let policy = Policy::new(Precision::F16Mixed, Device::Cpu);
    let context = Context::new(policy, true);
    let _autocast = policy.autocast()?;
    let before = autocast_state(Device::Cpu)?;
    let input = Tensor::ones([2, 8], (Kind::Float, Device::Cpu));
    let said = message(part.forward(&input, &context));
    assert!(said.starts_with("in `inner.layer`: libtorch: mat1 and mat2"), "{said}");
    assert_eq!(autocast_state(Device::Cpu)?, before);
    assert_eq!(&*context.path(), "");
    let good = Part::of(None, None)?;
    assert_eq!(context.call("good", None, &good, &input)?.kind(), Kind::Half);
    Ok(())
}

/// A panic inside a region restores the autocast state.
#[test]
fn a_panic_inside_a_region_restores_autocast() -> Result<()> {
    struct Panics;
    impl Visit for Panics {
        fn visit(&self, _: &mut dyn Visitor) {}
    }

    impl Module for Panics {
        fn forward(&self, _: &Tensor, _: &Context) -> Result<Tensor> {
            std::panic::resume_unwind(Box::new("a panic that prints nothing"))
        }
    }
    let policy = Policy::new(Precision::F16Mixed, Device::Cpu);
    let _autocast = policy.autocast()?;
    let before = autocast_state(Device::Cpu)?;
    let left = std::panic::catch_unwind(|| {
        let input = Tensor::ones([1], (Kind::Float, Device::Cpu));
        Context::new(policy, true).call("panics", Some(Region::Fp32), &Panics, &input).map(drop)
    });
    assert!(left.is_err());
    assert_eq!(autocast_state(Device::Cpu)?, before);
    Ok(())
}

/// Placing a model on a device changes the data of its tensors in place. Tensors that an optimizer
/// already refers to therefore stay valid.
#[test]
fn handles_taken_before_placing_remain_valid() -> Result<()> {
    let _generator = seeded(0);
    let layer = linear(2, 2)?;
    let handles = nn::parameters(&layer);
    nn::place(&layer, Policy::new(Precision::F64True, Device::Cpu), &BTreeMap::new())?;
    assert!(handles.iter().all(|parameter| parameter.tensor.kind() == Kind::Double));
    assert!(handles.iter().all(|parameter| parameter.tensor.requires_grad()));
    Ok(())
}

#[test]
fn every_region_parses_from_its_name() -> Result<()> {
    for name in ["fp32", "fp16", "bf16", "fp64", "autocast_off"] {
        assert_eq!(name.parse::<Region>()?.to_string(), name);
    }
    let said = message("float".parse::<Region>());
    assert!(said.contains("unknown precision region `float`: expected fp32, fp16"), "{said}");
    Ok(())
}

#[test]
fn every_precision_parses_from_lightnings_names() -> Result<()> {
    for precision in Precision::ALL {
        assert_eq!(precision.name().parse::<Precision>()?, precision);
        let json = serde_json::to_string(&precision).expect("a name");
        assert_eq!(json, format!("\"{precision}\""));
    }
    for (short, long) in
        [("16", "16-mixed"), ("bf16", "bf16-mixed"), ("32", "32-true"), ("64", "64-true")]
    {
        assert_eq!(short.parse::<Precision>()?.name(), long);
    }
    let said = message("fp8".parse::<Precision>());
    assert!(said.contains("unknown precision `fp8`: expected one of 32-true, 16-mixed"), "{said}");
    Ok(())
}

/// A block with a layer in a precision region.
#[derive(Module)]
#[forward(|x| inner(&head(x)?))]
struct Inside {
    #[layer(linear(4, 4))]
    inner: Linear,
    #[layer(linear(4, 4))]
    #[precision(fp32)]
    head: Linear,
}

/// A model that calls the layers of a block through a plain reference to the block. The layers
/// therefore run without a module path, and their precision regions have no effect.
#[derive(LightningModule)]
#[forward(|x| {
    let block: &Inside = &self.block;
    block.inner.forward(&block.head.forward(x, cx)?, cx)
})]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct ByReference {
    #[layer(Inside::builder().build()?)]
    block: Inside,
}

#[derive(LightningModule)]
#[forward(|x| block(x))]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Through {
    #[layer(Inside::builder().build()?)]
    block: Inside,
}

/// If the model runs a layer without the precision region that is declared for this layer, the run
/// ends with an error. Steps that create a `Context` of their own are tested in `amp-verify`.
#[test]
fn a_region_that_was_bypassed_is_refused() -> Result<()> {
    let _generator = seeded(0);
    let data = same(constant(8, 4, 1.0)?, 4)?;
    let config = TrainerConfig::new(Precision::Bf16Mixed, device()).with(|config| {
        config.max_epochs = 1;
    });
    let train = |model: &mut dyn LightningModule| Trainer::new(config.clone()).fit(model, &data);
    train(&mut Through::builder().build()?)?;
    let text = message(train(&mut ByReference::builder().build()?));
    let says = "the precision region of `block.head` had no effect: the module was called through a reference";
    assert!(text.contains(says), "{text}");
    Ok(())
}
