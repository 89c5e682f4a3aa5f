//! Checks that a run computes in the dtypes of its precision: compares the dtypes that one step
//! used with the dtypes that the precision prescribes. Also records the dtypes in which random
//! numbers were drawn.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    Error, Result,
    nn::{Draw, DtypeProbe, ModuleOutput, Op, Parameter, Product},
    precision::{Precision, Region, RegionPlan, dtype_name, is_floating},
};

/// The names, as in PyTorch, of the dtypes that one training step used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// The dtypes of the outputs of matrix products and convolutions.
    pub matmul: BTreeSet<String>,
    /// The dtype of the loss.
    pub loss: String,
    /// The dtypes of all parameters.
    pub parameters: BTreeSet<String>,
    /// The dtypes of all gradients.
    pub gradients: BTreeSet<String>,
    /// The operators that drew random numbers in the forward pass.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub draws: BTreeSet<Drawn>,
}

/// A libtorch operator that drew random numbers in a forward pass. With the same seed, each dtype
/// gives different numbers, so runs that draw in different dtypes differ by more than rounding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Drawn {
    /// The dotted path of the innermost module that was running; empty for the model itself.
    pub module: String,
    /// The name of the operator, such as `randn_like`.
    pub operator: String,
    /// PyTorch's name of the dtype in which the numbers were drawn.
    pub dtype: String,
}

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { module, operator, dtype } = self;
        match module.as_str() {
            "" => write!(f, "`{operator}` in the model draws {dtype}"),
            module => write!(f, "`{operator}` in `{module}` draws {dtype}"),
        }
    }
}

impl From<&Draw<'_>> for Drawn {
    fn from(draw: &Draw<'_>) -> Self {
        let Draw { path, operator, kind } = *draw;
        let dtype = dtype_name(kind).to_owned();
        Self { module: path.to_owned(), operator: operator.to_owned(), dtype }
    }
}

impl Drawn {
    /// Compares the operators that drew random numbers in two runs, `all` and `others`. Returns the
    /// first operator of `all` that `others` contains with another dtype, and this other dtype.
    /// Even from the same seed, such an operator drew different numbers in the two runs.
    pub fn first_difference<'d>(
        all: &'d BTreeSet<Self>,
        others: &'d BTreeSet<Self>,
    ) -> Option<(&'d Self, &'d str)> {
        all.iter().filter(|drawn| !others.contains(*drawn)).find_map(|drawn| {
            let is_same = |other: &&Self| {
                (&other.module, &other.operator) == (&drawn.module, &drawn.operator)
            };
            Some((drawn, others.iter().find(is_same)?.dtype.as_str()))
        })
    }

    /// Returns the name of the function of [`Context`](crate::nn::Context) that should replace this
    /// operator. The function draws in f32 under every precision.
    pub fn replacement(&self) -> &'static str {
        match self.operator.as_str() {
            "rand_like" => "rand_like",
            "randn_like" => "randn_like",
            "rand" | "uniform" | "uniform_" => "rand",
            _ => "randn",
        }
    }

    /// Returns whether the numbers were drawn in a 16-bit dtype.
    pub fn is_narrow(&self) -> bool {
        [Kind::Half, Kind::BFloat16].iter().any(|kind| dtype_name(*kind) == self.dtype)
    }
}

impl Observed {
    /// Describes the first operator that drew random numbers in 16 bits, and names the function to
    /// use instead.
    pub(crate) fn narrow_draw(&self) -> Option<String> {
        let drawn = self.draws.iter().find(|drawn| drawn.is_narrow())?;
        Some(format!(
            "{drawn} numbers, which are coarser than the float32 numbers from the same seed and differ from \
             them; draw with `cx.{}`, which draws in float32 under every precision",
            drawn.replacement()
        ))
    }
}

/// Collects the expected and the observed dtype of each matrix product of a forward pass, and the
/// operators that drew random numbers.
#[derive(Debug, Default)]
pub(crate) struct Products {
    seen: RefCell<BTreeMap<Source, (Kind, Kind)>>,
    /// Maps the path of each module that ran to the dtypes that the run's precision and the
    /// module's precision region prescribe.
    ran: RefCell<BTreeMap<String, RegionPlan>>,
    draws: RefCell<BTreeSet<Drawn>>,
}

/// The source of a matrix product: the path of the module that computed it, and the name of the
/// operator. The name is `None` if only the output of the module was observed.
type Source = (String, Option<String>);

impl DtypeProbe for Products {
    fn module_output(&self, output: &ModuleOutput<'_>) {
        self.ran.borrow_mut().insert(output.path.to_owned(), output.plan);
        if output.op == Op::Matmul && is_floating(output.kind) {
            self.note(output.path, None, output.plan, output.kind);
        }
    }

    fn matrix_product(&self, product: &Product<'_>) {
        self.note(product.path, Some(product.operator), product.plan, product.kind);
    }

    fn draw(&self, draw: &Draw<'_>) {
        self.draws.borrow_mut().insert(draw.into());
    }
}

impl Products {
    /// Records the expected and observed dtype of a matrix product. For each operator in each
    /// module, keeps the first product with an unexpected dtype or, if there is none, the last
    /// product.
    fn note(&self, path: &str, operator: Option<&str>, plan: RegionPlan, kind: Kind) {
        let mut seen = self.seen.borrow_mut();
        let place = seen.entry((path.to_owned(), operator.map(str::to_owned)));
        let kinds = place.or_insert((plan.compute, kind));
        if kinds.0 == kinds.1 {
            *kinds = (plan.compute, kind);
        }
    }

    /// Checks that the precision regions had an effect. If a parameter of a region has a gradient,
    /// the parameter's module must have run with the region's dtypes. Checks nothing if no module
    /// was observed: the model then ran its forward passes with a `Context` that it created itself.
    ///
    /// # Errors
    /// When a region had no effect.
    pub(crate) fn regions_held(&self, within: &[(Parameter, RegionPlan)]) -> Result<()> {
        let ran = self.ran.borrow();
        if ran.is_empty() && self.seen.borrow().is_empty() {
            return Ok(());
        }
        for (Parameter { name, tensor }, plan) in within {
            if !tensor.f_grad()?.defined() {
                continue;
            }
            let module = name.rsplit_once('.').map_or("", |(module, _)| module);
            let mut path = module;
            let held = loop {
                match (ran.get(path), path.rsplit_once('.')) {
                    (Some(held), _) => break Some(held),
                    (None, Some((outer, _))) => path = outer,
                    (None, None) => break None,
                }
            };
            if held.is_none_or(|held| held.compute != plan.compute) {
                return Err(Error::Precision(format!(
                    "the precision region of `{module}` had no effect: the module was called \
                     through a reference without a path; call it as a field in a `#[forward]`, or \
                     through `nn::Child` or `cx.call`"
                )));
            }
        }
        Ok(())
    }

    /// Returns the observed dtypes. Must be called after the backward pass.
    ///
    /// # Errors
    /// When a dtype differs from the dtype that the precision prescribes.
    pub(crate) fn finish<'p>(
        &self,
        precision: Precision,
        loss: &Tensor,
        parameters: impl Iterator<Item = &'p Parameter>,
        has_overrides: bool,
    ) -> Result<Observed> {
        let name = |kind| dtype_name(kind).to_owned();
        let draws = self.draws.borrow().clone();
        let mut observed = Observed { loss: name(loss.kind()), draws, ..Default::default() };
        let mismatch = |what: &str, expected: Kind, seen: Kind, remedy: &str| {
            Error::Precision(format!(
                "the run does not compute in {precision}: {what} is {}, but the precision \
                 prescribes {}: {remedy}",
                dtype_name(seen),
                dtype_name(expected)
            ))
        };
        for ((path, operator), (expected, seen)) in self.seen.borrow().iter() {
            if expected != seen {
                let what = match (operator.as_deref(), path.as_str()) {
                    (None, path) => format!("the output of `{path}`"),
                    (Some(operator), "") => format!("the output of a `{operator}` in the model"),
                    (Some(operator), path) => {
                        format!("the output of a `{operator}` in `{path}`")
                    }
                };
                return Err(mismatch(&what, *expected, *seen, &product_remedy(*expected, *seen)));
            }
            observed.matmul.insert(name(*seen));
        }
        let mut plain = false;
        let mut first = None;
        for parameter in parameters {
            let kind = parameter.tensor.kind();
            first.get_or_insert(parameter);
            plain |= kind == precision.storage();
            observed.parameters.insert(name(kind));
            let grad = parameter.tensor.f_grad()?;
            if grad.defined() {
                observed.gradients.insert(name(grad.kind()));
            }
        }
        // At least one parameter must have the dtype in which the precision stores weights. This is
        // not checked if the user gave precision regions by module path, because such regions may
        // change the dtypes of all parameters.
        if let (false, false, Some(first)) = (plain, has_overrides, first) {
            let what = format!("the parameter `{}`", first.name);
            let remedy = "let the trainer convert the weights, and do not change their dtype";
            return Err(mismatch(&what, precision.storage(), first.tensor.kind(), remedy));
        }
        Ok(observed)
    }
}

/// Says how to compute a matrix product in the dtype `expected`, or how to declare that it is
/// computed in the dtype `seen`.
fn product_remedy(expected: Kind, seen: Kind) -> String {
    let convert = format!("convert its operands to {}", dtype_name(expected));
    let region = match seen {
        Kind::Float => Region::Fp32,
        Kind::Double => Region::Fp64,
        Kind::Half => Region::Fp16,
        Kind::BFloat16 => Region::Bf16,
        _ => return convert,
    };
    format!(
        "{convert}, or declare that it computes in {}: `#[precision({region})]` on a module, \
         `cx.region(Region::{region:?}, …)` in `forward`, \
         `step.context().region(Region::{region:?}, …)` in a training step",
        dtype_name(seen)
    )
}
