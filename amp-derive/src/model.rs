//! The struct after all checks. The types of this module can represent only structs for which code
//! can be generated.

#![expect(clippy::large_enum_variant, reason = "one model per derive: its size does not matter")]

use proc_macro2::Ident;
use syn::{
    Attribute, Expr, ExprClosure, ExprPath, Generics, LitInt, LitStr, Pat, Path, Type, Visibility,
};

use crate::table;

/// A struct for which code is generated.
pub(crate) struct Model {
    pub(crate) ident: Ident,
    /// The name of the builder's struct.
    pub(crate) builder: Ident,
    pub(crate) vis: Visibility,
    pub(crate) generics: Generics,
    pub(crate) allows: Vec<Attribute>,
    pub(crate) fields: Vec<Field>,
    pub(crate) forward: Forward,
    /// The type of the model's batches. `None` means that a batch is a pair of an input and a
    /// target.
    pub(crate) batch: Option<BatchOf>,
    /// Loss, steps, optimizers and hooks, which only `LightningModule` has. `None` for
    /// `derive(Module)`.
    pub(crate) lightning: Option<Lightning>,
}

impl Model {
    /// Returns the layer fields in order of declaration, each with its precision region.
    pub(crate) fn layers(&self) -> impl Iterator<Item = (&Field, Option<Region>)> {
        self.fields.iter().filter_map(|field| match &field.kind {
            Kind::Layer { region, .. } => Some((field, *region)),
            Kind::Hparam { .. } | Kind::Tensor { .. } | Kind::State { .. } => None,
        })
    }

    /// Returns the hyperparameters in order of declaration.
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
    /// A field that is a tensor, with the attribute `#[parameter]` or `#[buffer]`.
    Tensor {
        role: Role,
        initial: Initial,
    },
    State {
        /// The expression for the initial value. `None` means `Default::default()`.
        initial: Option<Expr>,
        /// Whether a checkpoint contains the field's value.
        saved: bool,
    },
}

/// Whether a tensor field is a parameter or a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A parameter: the optimizer trains it.
    Parameter,
    /// A buffer. It is saved, but the optimizer does not train it.
    Buffer,
}

/// Where the initial values of a tensor come from.
pub(crate) enum Initial {
    /// Values from an initializer such as `normal` or `zeros`, in the given shape.
    Drawn { drawn: Drawn, shape: Expr },
    /// A Rust expression whose type is `Tensor`.
    Rust(Expr),
}

/// An initializer of the table. `values` are the expressions for its required keys, in the table's
/// order.
pub(crate) struct Drawn {
    pub(crate) row: &'static table::Draw,
    pub(crate) values: Vec<Expr>,
    pub(crate) options: Vec<Pair>,
}

/// Where the default value of a hyperparameter comes from.
pub(crate) enum Default {
    /// There is no default, so `builder` takes the value as an argument.
    Required,
    /// The default value of the hyperparameter's type, `Default::default()`.
    OfType,
    Expr(Expr),
}

/// How the layer of a field is created.
pub(crate) enum Source {
    /// `builder` takes the layer as an argument.
    Argument,
    Built(Build),
}

/// How a layer is built.
pub(crate) enum Build {
    /// A Rust expression that the user has written.
    Rust(Expr),
    /// A layer of the table. `values` are the expressions for its required keys, in the table's
    /// order.
    Layer {
        row: &'static table::Layer,
        at: Ident,
        values: Vec<Expr>,
        options: Vec<Pair>,
        /// The parameters whose initializer the user has given, each with the initializer.
        redrawn: Vec<(Ident, Drawn)>,
    },
    Sequential(Vec<Build>),
    /// A `Vec` that contains `count` layers.
    Repeat {
        count: Expr,
        index: Pat,
        layer: Box<Build>,
    },
    /// A layer whose activations are recomputed in the backward pass.
    Checkpoint {
        enabled: Option<Expr>,
        layer: Box<Build>,
    },
    /// An `Option` that contains a layer if `condition` is true.
    Optional {
        condition: Expr,
        layer: Box<Build>,
    },
}

/// An argument of the form `key = value`.
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
    /// The layers run in the order of their declaration.
    InOrder,
    /// The user has written a closure that calls the layers by name.
    Body(Body),
    /// The user has written a function with the signature of `Module::forward`.
    Function(ExprPath),
}

impl Forward {
    /// Returns the closure of `#[forward]` if the trait `Module` does not support its inputs or its
    /// output.
    pub(crate) fn of_any_inputs(&self) -> Option<&Body> {
        match self {
            Self::Body(body) if !body.is_of_one_tensor() => Some(body),
            _ => None,
        }
    }
}

pub(crate) struct Body {
    /// The inputs of `forward`. There is at least one.
    pub(crate) inputs: Vec<Input>,
    /// The return type as the user wrote it, and the type inside its `Result`. `None` if the
    /// closure has no return type.
    pub(crate) output: Option<(Type, Type)>,
    pub(crate) body: Expr,
}

/// An input of the `forward` function.
pub(crate) struct Input {
    pub(crate) ident: Ident,
    /// The type as the user wrote it. `None` means `&Tensor`.
    pub(crate) ty: Option<Type>,
}

impl Body {
    fn is_of_one_tensor(&self) -> bool {
        let [input] = self.inputs.as_slice() else { return false };
        input.is_tensor() && self.output.as_ref().is_none_or(|(_, output)| is_tensor(output))
    }
}

impl Input {
    /// Returns whether the input is a `&Tensor`.
    pub(crate) fn is_tensor(&self) -> bool {
        self.ty.as_ref().is_none_or(
            |ty| matches!(ty, Type::Reference(ty) if ty.mutability.is_none() && is_tensor(&ty.elem)),
        )
    }
}

fn is_tensor(ty: &Type) -> bool {
    match ty {
        Type::Path(path) => path.path.segments.last().is_some_and(|last| last.ident == "Tensor"),
        _ => false,
    }
}

/// The fields of a batch that generated steps use.
pub(crate) struct BatchOf {
    pub(crate) ty: Path,
    pub(crate) inputs: Vec<Part>,
    pub(crate) target: Part,
}

/// What an input or a target may name: the whole batch, or one of its fields.
#[derive(Clone)]
pub(crate) enum Part {
    Whole,
    /// A field of the batch (`ids`), or a field of a batch inside the batch (`source.ids`).
    Field(Vec<Ident>),
}

pub(crate) struct Lightning {
    pub(crate) training: Step,
    /// The validation step. `None` for a model that has a `manual_step` but no loss.
    pub(crate) validation: Option<Step>,
    /// The path of the user's function for a test batch. `None` means that the test step computes
    /// what the validation step computes.
    pub(crate) test: Option<ExprPath>,
    /// The path of the user's function that returns the predictions for a batch. `None` means that
    /// the predictions are the output of `forward`.
    pub(crate) predict: Option<ExprPath>,
    pub(crate) optimizers: Optimizers,
    pub(crate) hooks: Vec<OwnHook>,
}

/// A hook of the training loop, and the function that the user has written for this hook.
pub(crate) struct OwnHook {
    pub(crate) hook: &'static table::Hook,
    pub(crate) path: ExprPath,
    /// Whether the trainer may call the hook for a step after it has started later steps.
    pub(crate) late: bool,
}

pub(crate) enum Step {
    Generated {
        loss: Loss,
        log: LogOptions,
        metrics: Vec<Metric>,
    },
    /// The path of a function that has the signature of the generated step.
    Function {
        path: ExprPath,
        /// Whether the step may run as a CUDA graph.
        captured: bool,
        /// The options `of` and `counts`, which describe the loss that the function returns.
        own: Own,
    },
    /// The path of a function that itself runs the backward passes and optimizer steps.
    Manual(ExprPath),
}

#[derive(Clone)]
pub(crate) enum Loss {
    /// A loss of the table with its options, or an expression for a loss.
    Value(Value),
    /// A function of output and target, such as `fn(&Tensor, &Tensor) -> Result<Tensor>`.
    Function(Expr, Own),
    Closure(ExprClosure, Own),
}

/// The options `of` and `counts`, which describe a loss that the user has written in `#[loss]` or
/// in `#[training_step]`.
#[derive(Clone)]
pub(crate) struct Own {
    pub(crate) scope: Scope,
    /// A function that computes the weight of a batch. Its argument is the batch's target in
    /// `#[loss]`, and the batch in `#[training_step]`.
    pub(crate) counts: Option<Expr>,
}

/// Whether a loss is a mean over the examples of a batch, as the option `of` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Examples,
    /// The loss compares the examples of a batch with each other, so it cannot be computed from a
    /// part of the batch.
    Batch,
    Unknown,
}

#[derive(Clone)]
pub(crate) struct Metric {
    /// The logged name, for example `val_accuracy`.
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) of: Measured,
    pub(crate) log: LogOptions,
}

/// The values from which a metric is computed.
#[derive(Clone, Default)]
pub(crate) struct Measured {
    /// An expression that contains `output`, the result of `forward`. The metric measures the value
    /// of this expression. `None` means that the metric measures `output` itself.
    pub(crate) output: Option<Expr>,
    /// The field of the batch with which the metric compares the output. `None` means the target of
    /// the loss.
    pub(crate) target: Option<Part>,
}

/// A loss or a metric: a type of amp-core or an expression.
#[derive(Clone)]
pub(crate) enum Value {
    /// A loss or metric type of amp-core.
    Known { row: &'static table::Entry, at: Ident, keys: Vec<Pair> },
    /// An expression whose type implements `Loss` or `Metric`.
    Rust(Expr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) on_step: bool,
    pub(crate) on_epoch: bool,
    pub(crate) prog_bar: bool,
}

pub(crate) enum Optimizers {
    /// Optimizers that the macro generates. There is at least one.
    Generated(Vec<Optimizer>),
    /// The path of a function whose result can be converted into `Optimizers`.
    Function(ExprPath),
}

pub(crate) struct Optimizer {
    pub(crate) config: Config,
    /// The parameters that this optimizer trains. `None` means all parameters that no other
    /// optimizer trains.
    pub(crate) params: Option<Selection>,
    pub(crate) groups: Vec<Group>,
    pub(crate) scheduler: Option<(Config, table::Interval)>,
}

/// The conditions that select some of the model's parameters.
#[derive(Default)]
pub(crate) struct Selection {
    /// Patterns for the names of parameters. An empty list means every name.
    pub(crate) named: Vec<LitStr>,
    pub(crate) except: Vec<LitStr>,
    pub(crate) ndim: Option<LitInt>,
}

/// A parameter group, which has options of its own within an optimizer.
pub(crate) struct Group {
    pub(crate) params: Selection,
    pub(crate) keys: Vec<Pair>,
}

/// The options of an optimizer or a scheduler.
pub(crate) enum Config {
    /// A struct in amp-core's module `optim`.
    Known { row: &'static table::Entry, at: Ident, keys: Vec<Pair> },
    /// A struct that the user has written.
    Own { ty: ExprPath, keys: Vec<Pair> },
    /// An expression whose value is an optimizer's or a scheduler's configuration.
    Value(Expr),
}

impl Config {
    /// Returns the values that the user wrote.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Expr> {
        let (keys, value) = match self {
            Self::Known { keys, .. } | Self::Own { keys, .. } => (keys.as_slice(), None),
            Self::Value(value) => ([].as_slice(), Some(value)),
        };
        keys.iter().map(|pair| &pair.value).chain(value)
    }
}
