//! Finds the output layer, which computes the model's logits, so that the cross-entropy loss can
//! run this layer itself. If there are many logits, the loss computes a few of their rows (examples
//! or tokens) at a time, so that the logits are never in memory all at once. This is possible only
//! if all metrics of the step can also be computed from a few rows at a time.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{Expr, Stmt, Type, parse_quote};

use super::{key, layer_of_self, local};
use crate::{
    model::{Build, Field, Forward, Kind, Loss, Metric, Model, Pair, Source, Step, Value},
    symbol,
};

/// Returns whether the loss runs the output layer (the layer that computes the logits) in a step
/// with this loss and these metrics.
pub(super) fn is_requested(model: &Model, loss: &Loss, metrics: &[Metric]) -> bool {
    let is_cross_entropy =
        matches!(loss, Loss::Value(Value::Known { row, .. }) if row.ty == "CrossEntropy");
    is_cross_entropy && metrics.iter().all(is_of_rows) && is_known(model)
}

/// Metrics of logits and classes that can be computed from chunks of rows. For these metrics, the
/// state for a batch is the sum of the states for its chunks.
const OF_ROWS: &[&str] = &[
    "accuracy",
    "top_k",
    "f1",
    "precision",
    "recall",
    "specificity",
    "jaccard",
    "f_beta",
    "confusion_matrix",
    "perplexity",
];

/// Returns whether a metric can be computed from a few rows of the model's output at a time.
fn is_of_rows(metric: &Metric) -> bool {
    let is_known = matches!(&metric.value, Value::Known { row, .. } if OF_ROWS.contains(&row.name));
    is_known && metric.of.output.is_none() && metric.of.target.is_none()
}

/// Adds the option `classes` (the dimension of the classes) to a classification loss or metric, if
/// the user has not given it and the layer that computes the model's output determines it.
pub(super) fn with_class_dim(model: &Model, value: &Value) -> Value {
    let mut value = value.clone();
    if let Value::Known { row, at, keys } = &mut value
        && let Some(dim) = class_dim(model)
        && row.keys().any(|key| key.name == symbol::CLASSES)
        && keys.iter().all(|pair| pair.key != symbol::CLASSES)
    {
        let key = Ident::new(symbol::CLASSES, at.span());
        let dim = Ident::new(dim, at.span());
        keys.push(Pair { key, value: parse_quote!(__amp::loss::ClassDim::#dim) });
    }
    value
}

/// Returns the variant of `ClassDim` for the layer that computes the model's output: a linear layer
/// has the classes in the last dimension, a convolution in the second one.
fn class_dim(model: &Model) -> Option<&'static str> {
    let field = match &model.forward {
        Forward::InOrder => model.layers().last()?.0,
        Forward::Function(_) => return None,
        Forward::Body(body) => {
            let statements = super::forward::statements(&body.body);
            let Some(Stmt::Expr(Expr::Call(call), None)) = statements.last() else { return None };
            let Expr::Path(function) = &*call.func else { return None };
            let names: Vec<String> =
                function.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            if names.ends_with(&["nn".to_owned(), "linear".to_owned()]) {
                return Some("Last");
            }
            let name = function.path.get_ident()?;
            // If the body mentions the name twice, the name may be a variable (`let head = …`) and
            // not the layer, so the layer is unknown.
            let tokens: TokenStream = statements.iter().map(ToTokens::to_token_stream).collect();
            let mut layers = model.layers().map(|(field, _)| field);
            layers.find(|field| field.ident == *name && occurrences(tokens.clone(), name) == 1)?
        }
    };
    match &field.kind {
        Kind::Layer { source: Source::Built(build), .. } => class_dim_of(build),
        _ => None,
    }
}

fn class_dim_of(build: &Build) -> Option<&'static str> {
    match build {
        Build::Layer { row, .. } => match row.entry.name {
            "linear" => Some("Last"),
            name if name.starts_with("conv") => Some("Second"),
            _ => None,
        },
        Build::Sequential(layers) => layers.last().and_then(class_dim_of),
        Build::Checkpoint { layer, .. } => class_dim_of(layer),
        Build::Rust(_) | Build::Repeat { .. } | Build::Optional { .. } => None,
    }
}

/// Returns whether the loss runs the output layer (the layer that computes the logits) in a step of
/// the model.
fn has_request(model: &Model) -> bool {
    let Some(lightning) = &model.lightning else { return false };
    [Some(&lightning.training), lightning.validation.as_ref()].into_iter().flatten().any(|step| {
        match step {
            Step::Generated { loss, metrics, .. } => is_requested(model, loss, metrics),
            Step::Function { .. } | Step::Manual(_) => false,
        }
    })
}

/// Returns whether the derive macro can tell from the code which layer is the output layer.
fn is_known(model: &Model) -> bool {
    match &model.forward {
        Forward::InOrder => last_in_order(model).is_some(),
        Forward::Function(_) => false,
        Forward::Body(body) => {
            let is_tensor = body.output.as_ref().is_none_or(|(_, output)| is_tensor(output));
            let mut statements = super::forward::statements(&body.body);
            is_tensor && last_call(model, &mut statements).is_some()
        }
    }
}

fn is_tensor(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Tensor"))
}

/// Returns the last layer if the model runs its layers in order and the loss runs this layer in a
/// step.
pub(super) fn of_layers(model: &Model) -> Option<&Field> {
    last_in_order(model).filter(|_| has_request(model))
}

fn last_in_order(model: &Model) -> Option<&Field> {
    let (field, region) = model.layers().last()?;
    (is_linear(field) && region.is_none()).then_some(field)
}

fn is_linear(field: &Field) -> bool {
    matches!(&field.kind,
        Kind::Layer { source: Source::Built(Build::Layer { row, .. }), .. } if row.entry.name == "linear")
}

/// The call that computes the model's output.
enum Call<'m> {
    /// A call of a layer of the struct.
    Layer(&'m Field),
    /// A call of `nn::linear`, if the path refers to amp-core's function.
    Function,
}

/// Finds the call that computes the model's output in the statements of a `#[forward]`. If the loss
/// runs the output layer in a step, changes this call so that it can leave the computation to the
/// loss. Returns the declarations that the changed statements need.
pub(super) fn mark(model: &Model, statements: &mut [Stmt]) -> Option<TokenStream> {
    let (call, expr) = last_call(model, statements).filter(|_| has_request(model))?;
    let Expr::Call(called) = &*expr else { return None };
    let (cx, arguments) = (Ident::new(symbol::CX, Span::call_site()), &called.args);
    let (marked, declared) = match call {
        Call::Layer(field) => {
            let (layer, name, of_self) =
                (local("output_layer"), key(&field.ident), layer_of_self(field));
            let marked = quote!(#cx.call_output(self, #name, #layer, #arguments));
            (marked, quote!(let #layer = #of_self;))
        }
        Call::Function => {
            let function = &called.func;
            let names: Vec<Ident> =
                (0..arguments.len()).map(|at| local(&format!("argument_{at}"))).collect();
            let (given, guard) = (arguments.iter(), local("at_output"));
            let marked = quote! {
                match (#(#given,)*) {
                    (#(#names,)*) => {
                        let #guard = #cx.at_output(self, &#function);
                        #function(#(#names,)*)
                    }
                }
            };
            (marked, TokenStream::new())
        }
    };
    *expr = syn::parse2(marked).expect("an expression");
    Some(declared)
}

/// Returns the call that computes the result of the body, if the body ends with such a call.
fn last_call<'m, 's>(
    model: &'m Model,
    statements: &'s mut [Stmt],
) -> Option<(Call<'m>, &'s mut Expr)> {
    let tokens: TokenStream = statements.iter().map(ToTokens::to_token_stream).collect();
    let Some(Stmt::Expr(expr, None)) = statements.last_mut() else { return None };
    let Expr::Call(call) = &*expr else { return None };
    let Expr::Path(function) = &*call.func else { return None };
    if let Some(name) = function.path.get_ident() {
        // If the body mentions the name twice, the name may be a variable (`let head = …`) and not
        // the layer, so the layer is unknown.
        let is_once = occurrences(tokens, name) == 1 && call.args.len() == 1;
        let named = |(field, region): &(&Field, Option<_>)| {
            field.ident == *name && region.is_none() && is_linear(field)
        };
        let (field, _) = model.layers().find(named).filter(|_| is_once)?;
        return Some((Call::Layer(field), expr));
    }
    let names: Vec<String> =
        function.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    let is_function = names.ends_with(&["nn".to_owned(), "linear".to_owned()]);
    (is_function && call.args.len() == 3).then_some((Call::Function, expr))
}

fn occurrences(tokens: TokenStream, name: &Ident) -> usize {
    tokens
        .into_iter()
        .map(|token| match token {
            TokenTree::Ident(ident) => usize::from(ident == *name),
            TokenTree::Group(group) => occurrences(group.stream(), name),
            _ => 0,
        })
        .sum()
}
