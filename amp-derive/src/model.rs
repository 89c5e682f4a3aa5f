//! The checked struct. What generated code cannot be written for cannot be said here.

#![expect(clippy::large_enum_variant, reason = "there is one model for each derive")]

use proc_macro2::Ident;
use syn::{
    Attribute, Expr, ExprClosure, ExprPath, Generics, LitInt, LitStr, Pat, Path, Type, Visibility,
};

use crate::table;

/// A struct that code is generated for.
pub(crate) struct Model {
    pub(crate) ident: Ident,
    /// What its builder is called.
    pub(crate) builder: Ident,
    pub(crate) vis: Visibility,
    pub(crate) generics: Generics,
    pub(crate) allows: Vec<Attribute>,
    pub(crate) fields: Vec<Field>,
    pub(crate) forward: Forward,
    /// The type of the batches, unless they are pairs of input and target.
    pub(crate) batch: Option<BatchOf>,
    /// What `LightningModule` has and `Module` has not.
    pub(crate) lightning: Option<Lightning>,
}

impl Model {
    /// The layer fields in order of declaration.
    pub(crate) fn layers(&self) -> impl Iterator<Item = (&Field, Option<Region>)> {
        self.fields.iter().filter_map(|field| match &field.kind {
            Kind::Layer { region, .. } => Some((field, *region)),
            Kind::Hparam { .. } | Kind::Tensor { .. } | Kind::State { .. } => None,
        })
    }

    /// The hyperparameters in order of declaration.
    pub(crate) fn hparams(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| matches!(field.kind, Kind::Hparam { .. }))
    }
}

pub(crate) struct Field {
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
    pub(crate) docs: Vec<Attribute>,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Hparam {
        default: Default,
    },
    Layer {
        source: Source,
        region: Option<Region>,
    },
    /// A tensor of the module's own.
    Tensor {
        role: Role,
        initial: Initial,
    },
    State {
        /// `None` starts from `Default::default()`.
        initial: Option<Expr>,
        /// Whether a checkpoint holds it.
        saved: bool,
    },
}

/// What a tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Trained.
    Parameter,
    /// Kept, but not trained.
    Buffer,
}

/// A tensor's first values.
pub(crate) enum Initial {
    /// Drawn in this shape.
    Drawn { drawn: Drawn, shape: Expr },
    /// A Rust expression of the user's, which is a tensor.
    Rust(Expr),
}

/// A row of the table of ways to draw; `values` are its required keys in order.
pub(crate) struct Drawn {
    pub(crate) row: &'static table::Draw,
    pub(crate) values: Vec<Expr>,
    pub(crate) options: Vec<Pair>,
}

/// Where a hyperparameter's value comes from unless a setter gives it.
pub(crate) enum Default {
    /// An argument of `builder`.
    Required,
    /// `Default::default()`.
    OfType,
    Expr(Expr),
}

/// Where a layer comes from.
pub(crate) enum Source {
    /// An argument of `builder`.
    Given,
    Built(Build),
}

/// How a layer is built.
pub(crate) enum Build {
    /// A Rust expression of the user's.
    Rust(Expr),
    /// A row of the table; `values` are its required keys in order.
    Layer {
        row: &'static table::Layer,
        at: Ident,
        values: Vec<Expr>,
        options: Vec<Pair>,
        /// Parameters by name, which are drawn in another way than the layer's.
        redrawn: Vec<(Ident, Drawn)>,
    },
    Sequential(Vec<Build>),
    /// `Vec` of `count` layers.
    Repeat {
        count: Expr,
        index: Pat,
        layer: Box<Build>,
    },
    /// A layer whose activations are not kept.
    Checkpoint {
        enabled: Option<Expr>,
        layer: Box<Build>,
    },
    /// `Option` of a layer.
    Optional {
        condition: Expr,
        layer: Box<Build>,
    },
}

/// `key = value`.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) key: Ident,
    pub(crate) value: Expr,
}

/// A precision region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Region {
    Fp32,
    Fp16,
    Bf16,
    Fp64,
    AutocastOff,
}

pub(crate) enum Forward {
    /// Every layer in order of declaration.
    InOrder,
    /// A body in which layers are called by name.
    Body(Body),
    /// A function with `Module::forward`'s signature.
    Function(ExprPath),
}

impl Forward {
    /// The body, where `Module` cannot say what it takes or returns.
    pub(crate) fn of_any_inputs(&self) -> Option<&Body> {
        match self {
            Self::Body(body) if !body.is_of_one_tensor() => Some(body),
            _ => None,
        }
    }
}

pub(crate) struct Body {
    /// At least one.
    pub(crate) inputs: Vec<Input>,
    /// As written, and what is in its `Result`.
    pub(crate) output: Option<(Type, Type)>,
    pub(crate) body: Expr,
}

/// An input of `forward`.
pub(crate) struct Input {
    pub(crate) ident: Ident,
    /// `&Tensor` unless it is written.
    pub(crate) ty: Option<Type>,
}

impl Body {
    fn is_of_one_tensor(&self) -> bool {
        let is_tensor = |ty: &Type| match ty {
            Type::Path(path) => {
                path.path.segments.last().is_some_and(|last| last.ident == "Tensor")
            }
            _ => false,
        };
        let [Input { ty, .. }] = self.inputs.as_slice() else { return false };
        let takes_one = ty.as_ref().is_none_or(
            |ty| matches!(ty, Type::Reference(ty) if ty.mutability.is_none() && is_tensor(&ty.elem)),
        );
        takes_one && self.output.as_ref().is_none_or(|(_, output)| is_tensor(output))
    }
}

/// What generated steps take of which batch.
pub(crate) struct BatchOf {
    pub(crate) ty: Path,
    pub(crate) inputs: Vec<Part>,
    pub(crate) target: Part,
}

/// A part of a batch.
#[derive(Clone)]
pub(crate) enum Part {
    Whole,
    /// A field, perhaps of a nested batch.
    Field(Vec<Ident>),
}

pub(crate) struct Lightning {
    pub(crate) training: Step,
    /// `None` for a model that optimizes manually and has no loss.
    pub(crate) validation: Option<Step>,
    pub(crate) optimizers: Optimizers,
    pub(crate) hooks: Vec<OwnHook>,
}

/// A hook that the user gives a function for.
pub(crate) struct OwnHook {
    pub(crate) hook: &'static table::Hook,
    pub(crate) path: ExprPath,
    /// Whether it may be called when later steps are under way.
    pub(crate) late: bool,
}

pub(crate) enum Step {
    Generated {
        loss: Loss,
        log: LogOptions,
        metrics: Vec<Metric>,
    },
    /// A function with the step's signature.
    Function {
        path: ExprPath,
        /// Whether it may run as a CUDA graph.
        captured: bool,
    },
    /// A function that runs backward passes and updates itself.
    Manual(ExprPath),
}

#[derive(Clone)]
pub(crate) enum Loss {
    /// One with its options.
    Value(Value),
    /// `fn(&Tensor, &Tensor) -> Result<Tensor>`.
    Function(Expr, Own),
    Closure(ExprClosure, Own),
}

/// What is said of a loss of the user's own.
#[derive(Clone)]
pub(crate) struct Own {
    pub(crate) scope: Scope,
    /// A function from the target to what a batch counts.
    pub(crate) counts: Option<Expr>,
}

/// What a loss is a mean over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Examples,
    /// Nothing smaller than the batch.
    Batch,
    Unknown,
}

#[derive(Clone)]
pub(crate) struct Metric {
    /// The logged name, with its stage.
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) of: Measured,
    pub(crate) log: LogOptions,
}

/// What a metric is computed of.
#[derive(Clone, Default)]
pub(crate) struct Measured {
    /// An expression in which `output` is what `forward` returned; all of it unless it is given.
    pub(crate) output: Option<Expr>,
    /// A part of the batch; the target unless it is given.
    pub(crate) target: Option<Part>,
}

/// A loss or a metric as a value.
#[derive(Clone)]
pub(crate) enum Value {
    /// One of amp-core's.
    Known { row: &'static table::Entry, at: Ident, keys: Vec<Pair> },
    /// A value that implements `Loss` or `Metric`.
    Rust(Expr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) on_step: bool,
    pub(crate) on_epoch: bool,
    pub(crate) prog_bar: bool,
}

pub(crate) enum Optimizers {
    /// At least one.
    Generated(Vec<Optimizer>),
    /// A function that returns what `Optimizers` is made from.
    Function(ExprPath),
}

pub(crate) struct Optimizer {
    pub(crate) config: Config,
    /// The parameters it trains; `None` where it takes the rest.
    pub(crate) params: Option<Selection>,
    pub(crate) groups: Vec<Group>,
    pub(crate) scheduler: Option<(Config, table::Interval)>,
}

/// Which parameters.
#[derive(Default)]
pub(crate) struct Selection {
    /// Patterns of their names; all where there are none.
    pub(crate) named: Vec<LitStr>,
    pub(crate) except: Vec<LitStr>,
    pub(crate) ndim: Option<LitInt>,
}

/// Parameters with options of their own.
pub(crate) struct Group {
    pub(crate) params: Selection,
    pub(crate) keys: Vec<Pair>,
}

/// An optimizer's or a scheduler's options.
pub(crate) enum Config {
    /// A struct of amp-core's `optim`.
    Known { row: &'static table::Entry, at: Ident, keys: Vec<Pair> },
    /// A struct of the user's.
    Own { ty: ExprPath, keys: Vec<Pair> },
    /// A value of any type.
    Value(Expr),
}

impl Config {
    /// The values that the user wrote.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Expr> {
        let (keys, value) = match self {
            Self::Known { keys, .. } | Self::Own { keys, .. } => (keys.as_slice(), None),
            Self::Value(value) => ([].as_slice(), Some(value)),
        };
        keys.iter().map(|pair| &pair.value).chain(value)
    }
}
