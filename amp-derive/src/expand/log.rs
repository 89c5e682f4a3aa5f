//! Generates the code of a step that computes and logs losses and metrics.

use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::Expr;

use super::{batch, local, output};
use crate::model::{BatchOf, Body, LogOptions, Loss, Metric, Model, Own, Pair, Part, Scope, Value};

/// The names of the local variables in a generated step.
pub(super) struct Locals {
    pub(super) batch: Ident,
    pub(super) step: Ident,
    pub(super) output: Ident,
    pub(super) loss: Ident,
    /// The variable for the batch after its conversion to the model's type of batch.
    pub(super) examples: Ident,
    /// The variable for the batch as the step receives it, before its conversion.
    any: Ident,
    /// The variable for the weight that the batch's loss has in means over several batches.
    counted: Ident,
}

impl Locals {
    pub(super) fn new() -> Self {
        Self {
            batch: local("batch"),
            step: local("step"),
            output: local("output"),
            loss: local("loss"),
            examples: local("examples"),
            any: local("any"),
            counted: local("counted"),
        }
    }
}

/// Generates the code that runs the model, and that computes and logs the loss and the metrics.
pub(super) fn step(
    model: &Model,
    locals: &Locals,
    stage: &str,
    loss: &Loss,
    log: LogOptions,
    metrics: &[Metric],
) -> TokenStream {
    let Locals { batch, step, output, loss: value, any, counted, .. } = locals;
    let (taken, forward) = (batch::taken(model, locals), batch::forward(model, locals));
    let is_requested = output::is_requested(model, loss, metrics);
    let states: Vec<Ident> = (0..metrics.len()).map(|at| local(&format!("state_{at}"))).collect();
    let computed = match is_requested {
        true => compute_with_output(model, loss, metrics, &states, &forward, locals),
        false => {
            let computed = compute(model, loss, locals);
            quote! {
                let #output = #forward?;
                #computed
            }
        }
    };
    let (name, options) = (format!("{stage}_loss"), options(log));
    let metrics = metrics.iter().zip(&states).map(|(metric, state)| match is_requested {
        true => metric_of_state(metric, state, locals),
        false => self::metric(model, metric, locals),
    });
    let counts = counts(model, loss, locals).unwrap_or(quote!(#any.counted()?));
    quote! {
        let #any = #batch;
        #taken
        #computed
        let #counted = #counts;
        #step.log_loss(#name, &#value, &#counted, #options)?;
        #(#metrics)*
    }
}

/// Generates the weight that a batch's loss has in means over several batches. Returns `None` for
/// the usual weight: the number of examples, or the sum of the examples' weights.
fn counts(model: &Model, loss: &Loss, locals: &Locals) -> Option<TokenStream> {
    let any = &locals.any;
    match loss {
        Loss::Value(value) => {
            let target = batch::compared(model, None, locals);
            let loss = self::value(value, &quote!(loss));
            Some(quote!(#any.counted_over(&__amp::loss::Loss::mean_over(&#loss), #target)?))
        }
        Loss::Function(_, own) | Loss::Closure(_, own) => {
            let (counts, [_, ty]) = (own.counts.as_ref()?, given(model));
            Some(counted(counts, &ty, &batch::target(model, locals)))
        }
    }
}

/// Generates the weight that the user's function `counts` computes from `argument`, which is a
/// reference to a value of the type `ty`.
fn counted(counts: &Expr, ty: &TokenStream, argument: &TokenStream) -> TokenStream {
    let computed = match counts {
        Expr::Closure(closure) => {
            let (count, body) = (local("count"), &closure.body);
            let arguments = closure.inputs.iter().map(|pat| match pat {
                typed @ syn::Pat::Type(_) => quote!(#typed),
                pat => quote!(#pat: &#ty),
            });
            quote!({
                let #count = |#(#arguments),*| -> __amp::Result<__amp::Tensor> { #body };
                #count(#argument)?
            })
        }
        function => quote!((#function)(#argument)?),
    };
    quote!(__amp::loss::counted_as(&#computed)?)
}

/// Generates the methods `LightningModule::loss_weight` and `LightningModule::loss_scope`.
pub(super) fn loss_counts(model: &Model, loss: &Loss) -> TokenStream {
    let locals = Locals::new();
    let Locals { batch, any, .. } = &locals;
    let scope = match loss {
        Loss::Value(value) => {
            let loss = self::value(value, &quote!(loss));
            Some(quote!(of(&__amp::loss::Loss::mean_over(&#loss))))
        }
        Loss::Function(_, own) | Loss::Closure(_, own) => own_scope(own),
    };
    let scope = scope.map(|scope| loss_scope(&scope));
    let weight = counts(model, loss, &locals).map(|counts| {
        let taken = batch::taken(model, &locals);
        quote! {
            fn loss_weight(&self, #batch: &__amp::AnyBatch) -> __amp::Result<__amp::f64> {
                let #any = #batch;
                #taken
                #counts.read()
            }
        }
    });
    quote! { #scope #weight }
}

/// Generates the methods `LightningModule::loss_weight` and `LightningModule::loss_scope` of a model
/// whose training step the user has written.
pub(super) fn step_counts(model: &Model, own: &Own) -> TokenStream {
    let Locals { batch, examples, .. } = &Locals::new();
    let scope = own_scope(own).map(|scope| loss_scope(&scope));
    let weight = own.counts.as_ref().map(|counts| {
        let ty = match &model.batch {
            None => quote!(__amp::Batch),
            Some(BatchOf { ty, .. }) => quote!(#ty),
        };
        let counted = counted(counts, &ty, &quote!(&#examples));
        quote! {
            fn loss_weight(&self, #batch: &__amp::AnyBatch) -> __amp::Result<__amp::f64> {
                let #examples = <#ty as __amp::BatchType>::from_any(#batch)?;
                #counted.read()
            }
        }
    });
    quote! { #scope #weight }
}

/// Returns the variant of `LossScope` for the user's options `of` and `counts`, or `None` if both
/// are absent. `counts` without `of` means that the loss can be computed from a part of a batch.
fn own_scope(own: &Own) -> Option<TokenStream> {
    match own.scope {
        Scope::Examples => Some(quote!(Examples)),
        Scope::Batch => Some(quote!(Batch)),
        Scope::Unknown => own.counts.as_ref().map(|_| quote!(Examples)),
    }
}

fn loss_scope(scope: &TokenStream) -> TokenStream {
    quote! {
        fn loss_scope(&self) -> __amp::LossScope {
            __amp::LossScope::#scope
        }
    }
}

/// Generates the `StepAccess` of the loss, which says whether a step with this loss may run as a
/// CUDA graph. Returns `None` if the loss is a function or a closure, because only a type that
/// implements `Loss` declares a `StepAccess`.
pub(super) fn loss_access(loss: &Loss) -> Option<TokenStream> {
    match loss {
        Loss::Value(value) => {
            let loss = self::value(value, &quote!(loss));
            Some(quote!(__amp::StepAccess::of_loss(&#loss)))
        }
        Loss::Function(..) | Loss::Closure(..) => None,
    }
}

/// Generates the code that runs the model and computes the loss and the state of each metric. The
/// loss may run the output layer (the layer that computes the logits) itself.
fn compute_with_output(
    model: &Model,
    loss: &Loss,
    metrics: &[Metric],
    states: &[Ident],
    forward: &TokenStream,
    locals: &Locals,
) -> TokenStream {
    let Loss::Value(of) = loss else { unreachable!("only cross entropy runs the output layer") };
    let (value, target) = (&locals.loss, batch::compared(model, None, locals));
    let loss = self::value(of, &quote!(loss));
    if metrics.is_empty() {
        return quote! {
            let #value =
                __amp::nn::loss_of_output(self, &#loss, || #forward, #target)?;
        };
    }
    let metrics = metrics.iter().map(|metric| self::value(&metric.value, &quote!(metric)));
    quote! {
        let (#value, [#(#states),*]) = __amp::nn::loss_and_metrics_of_output(
            self,
            &#loss,
            [#(&#metrics),*],
            || #forward,
            #target,
        )?;
    }
}

fn compute(model: &Model, loss: &Loss, locals: &Locals) -> TokenStream {
    let Locals { output, loss: value, .. } = locals;
    match loss {
        Loss::Value(of) => {
            let target = batch::compared(model, None, locals);
            let loss = self::value(&output::with_class_dim(model, of), &quote!(loss));
            let call = quote!(__amp::loss::Loss::compute(&#loss, &#output, #target));
            let computed = match of {
                Value::Known { .. } => call,
                Value::Rust(_) => with_arguments(model, call, locals),
            };
            quote! { let #value = #computed?; }
        }
        Loss::Function(function, _) => {
            let target = batch::target(model, locals);
            let computed = with_arguments(model, quote!((#function)(&#output, #target)), locals);
            quote! { let #value = #computed?; }
        }
        Loss::Closure(closure, _) => {
            // The types of the closure's arguments are written out, because rustc cannot infer them
            // for a closure that is stored in a variable.
            let criterion = local("criterion");
            let types = given(model);
            let is_typed = matches!(closure.inputs.last(), Some(syn::Pat::Type(_)));
            let is_whole = matches!(&model.batch, Some(BatchOf { target: Part::Whole, .. }));
            let target = match is_typed || is_whole {
                true => batch::target(model, locals),
                false => batch::compared(model, None, locals),
            };
            let arguments = closure.inputs.iter().zip(types).map(|(pat, ty)| match pat {
                typed @ syn::Pat::Type(_) => quote!(#typed),
                pat => quote!(#pat: &#ty),
            });
            let body = &closure.body;
            let computed = with_arguments(model, quote!(#criterion(&#output, #target)), locals);
            quote! {
                let #criterion = |#(#arguments),*| -> __amp::Result<__amp::Tensor> { #body };
                let #value = #computed?;
            }
        }
    }
}

/// Generates a call of the user's loss function. If output and target are tensors, an error of the
/// loss function also states their shapes.
fn with_arguments(model: &Model, call: TokenStream, locals: &Locals) -> TokenStream {
    let of_tensors = model.batch.is_none() && model.forward.of_any_inputs().is_none();
    match of_tensors {
        true => {
            let (output, target) = (&locals.output, batch::target(model, locals));
            quote!(__amp::loss::own(#call, &#output, #target))
        }
        false => {
            let error = local("error");
            quote!(#call.map_err(|#error| #error.at("loss")))
        }
    }
}

/// Returns the types of the model's output and target, as the loss function receives them.
fn given(model: &Model) -> [TokenStream; 2] {
    let tensor = || quote!(__amp::Tensor);
    let output = match model.forward.of_any_inputs() {
        Some(Body { output: Some((_, output)), .. }) => quote!(#output),
        _ => tensor(),
    };
    let target = match &model.batch {
        Some(BatchOf { ty, target: Part::Whole, .. }) => quote!(#ty),
        _ => tensor(),
    };
    [output, target]
}

/// Generates `LightningModule::reduction`, which returns how the value of a training metric is
/// computed from its state.
pub(super) fn reductions(metrics: &[Metric]) -> Option<TokenStream> {
    if metrics.is_empty() {
        return None;
    }
    let asked = local("name");
    let arms = metrics.iter().map(|metric| {
        let (name, value) = (&metric.name, value(&metric.value, &quote!(metric)));
        quote!(#name => __amp::Some(__amp::metric::Metric::reduction(&#value)))
    });
    Some(quote! {
        fn reduction(&self, #asked: &__amp::str) -> __amp::Option<__amp::metric::Reduction> {
            match #asked {
                #(#arms,)*
                _ => __amp::None,
            }
        }
    })
}

fn metric(model: &Model, metric: &Metric, locals: &Locals) -> TokenStream {
    let step = &locals.step;
    let (name, options) = (&metric.name, options(metric.log));
    let value = match &metric.of.output {
        None => value(&output::with_class_dim(model, &metric.value), &quote!(metric)),
        Some(_) => value(&metric.value, &quote!(metric)),
    };
    let target = batch::compared(model, metric.of.target.as_ref(), locals);
    let logged = batch::measured(
        metric.of.output.as_ref(),
        locals,
        |output| quote!(#step.metric(#name, &#value, #output, #target, #options)?),
    );
    quote!(#logged;)
}

fn metric_of_state(metric: &Metric, state: &Ident, locals: &Locals) -> TokenStream {
    let step = &locals.step;
    let (name, options) = (&metric.name, options(metric.log));
    let value = value(&metric.value, &quote!(metric));
    quote! { #step.metric_state(#name, &#value, #state, #options)?; }
}

/// Generates the expression that creates a loss or a metric with its options. `module` is the module
/// of amp-core that contains its type.
pub(super) fn value(value: &Value, module: &TokenStream) -> TokenStream {
    let (row, at, keys) = match value {
        Value::Known { row, at, keys } => (row, at, keys),
        Value::Rust(expr) => return quote!(#expr),
    };
    let ty = Ident::new(row.ty, at.span());
    let (fields, read): (Vec<&Pair>, Vec<&Pair>) =
        keys.iter().partition(|pair| row.has_field(&pair.key.to_string()));
    let count = row.keys().filter(|key| row.has_field(key.name)).count();
    let pair = |Pair { key, value }: &Pair| quote!(#key: #value);
    let value = match count {
        0 => quote!(__amp::#module::#ty),
        _ => {
            // If every field is given, `..Default::default()` would be superfluous.
            let rest = (fields.len() < count).then(|| quote!(..__amp::Default::default()));
            let fields = fields.into_iter().map(pair);
            quote!(__amp::#module::#ty { #(#fields,)* #rest })
        }
    };
    if read.is_empty() {
        return value;
    }
    let read = read.into_iter().map(pair);
    quote!(__amp::metric::ReadAs { #(#read,)* ..__amp::metric::ReadAs::from(#value) })
}

fn options(LogOptions { on_step, on_epoch, prog_bar }: LogOptions) -> TokenStream {
    quote! {
        __amp::LogOptions { on_step: #on_step, on_epoch: #on_epoch, prog_bar: #prog_bar }
    }
}
