//! Generates the code that reads the batch in a step.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::{Expr, ext::IdentExt, spanned::Spanned};

use super::{local, located_at, log::Locals};
use crate::{
    model::{BatchOf, Input, Model, Part},
    symbol,
};

/// Generates the statement that converts the step's batch to the batch type of the model.
pub(super) fn taken(model: &Model, Locals { batch, examples, .. }: &Locals) -> TokenStream {
    match &model.batch {
        None => quote! { let #batch = <__amp::Batch as __amp::BatchType>::from_any(#batch)?; },
        Some(BatchOf { ty, .. }) => {
            quote! { let #examples = <#ty as __amp::BatchType>::from_any(#batch)?; }
        }
    }
}

/// Generates the call of the model on the converted batch. Its value is a `Result`.
pub(super) fn forward(model: &Model, locals: &Locals) -> TokenStream {
    let Locals { batch, step, .. } = locals;
    let inputs = match &model.batch {
        None => vec![quote!(&#batch.input)],
        Some(BatchOf { inputs, .. }) => {
            inputs.iter().enumerate().map(|(at, part)| input(model, at, part, locals)).collect()
        }
    };
    run(model, &inputs, step)
}

fn run(model: &Model, inputs: &[TokenStream], step: &Ident) -> TokenStream {
    match model.forward.of_any_inputs() {
        None => quote!(__amp::Module::forward(self, #(#inputs,)* #step.context())),
        Some(_) => {
            quote!(__amp::nn::Forward::forward_with(self, (#(#inputs,)*), #step.context()))
        }
    }
}

/// Generates the expression for input number `at` (from 0) of `forward`.
fn input(model: &Model, at: usize, part: &Part, locals: &Locals) -> TokenStream {
    let examples = &locals.examples;
    match part {
        Part::Whole => quote!(&#examples),
        Part::Field(names) => borrowed(model, at, &quote!(#examples #(.#names)*), span_of(names)),
    }
}

/// Generates input number `at` of `forward` from `field`, a field of the batch. If `forward` takes
/// a tensor but the field is not a tensor, rustc reports the error at `span`, where the user named
/// the field.
fn borrowed(model: &Model, at: usize, field: &TokenStream, span: Span) -> TokenStream {
    let takes_tensor = match model.forward.of_any_inputs() {
        None => true,
        Some(body) => body.inputs.get(at).is_some_and(Input::is_tensor),
    };
    match takes_tensor {
        true => quote_spanned!(span=> __amp::TensorInput::tensor(&#field)),
        false => quote_spanned!(span=> __amp::BatchField::borrow(&#field)),
    }
}

/// Returns the span of the last name in the path of a field, such as `ids` in `source.ids`.
fn span_of(names: &[Ident]) -> Span {
    names.last().map_or_else(Span::call_site, |name| located_at(name.span()))
}

/// Generates the expression for the target, which the loss and the metrics read.
pub(super) fn target(model: &Model, locals: &Locals) -> TokenStream {
    let batch = &locals.batch;
    match &model.batch {
        None => quote!(&#batch.target),
        Some(BatchOf { target, .. }) => part(target, locals),
    }
}

/// Generates the expression for the target of a loss or a metric that needs a tensor as its target.
/// `of` is the metric's own target, if it has one. If the field that the user named as the target
/// is not a tensor, rustc reports an error at this name.
pub(super) fn compared(model: &Model, of: Option<&Part>, locals: &Locals) -> TokenStream {
    let examples = &locals.examples;
    let Some(BatchOf { target, .. }) = &model.batch else { return self::target(model, locals) };
    let (value, span) = match of.unwrap_or(target) {
        Part::Whole => (quote!(#examples), Span::call_site()),
        Part::Field(names) => (quote!(#examples #(.#names)*), span_of(names)),
    };
    quote_spanned!(span=> __amp::Compared::tensor(&#value))
}

/// Generates the expression for the value that a metric measures. This value is the model's output,
/// or the value that the user's expression computes from this output.
pub(super) fn measured(
    output: Option<&Expr>,
    locals: &Locals,
    of: impl FnOnce(&TokenStream) -> TokenStream,
) -> TokenStream {
    let given = &locals.output;
    let Some(expr) = output else { return of(&quote!(&#given)) };
    // The user's expression mentions `output`, so this variable must have the hygiene of the user's
    // code. The `match` keeps the temporary values of the user's expression alive until the metric
    // is computed.
    let name = Ident::new(symbol::OUTPUT, Span::call_site());
    let computed = of(&quote!(&#expr));
    quote!(match &#given { #name => #computed })
}

/// Generates the expression for a field of the batch, or for the whole batch.
pub(super) fn part(part: &Part, Locals { examples, .. }: &Locals) -> TokenStream {
    match part {
        Part::Whole => quote!(&#examples),
        Part::Field(names) => quote!(__amp::BatchField::borrow(&#examples #(.#names)*)),
    }
}

/// Generates the call of the model on the inputs of a batch, which may have no target. Returns
/// `None` if `forward` has several inputs, but no `#[batch]` names the fields of the batch for
/// them.
pub(super) fn predicted(model: &Model, locals: &Locals) -> Option<TokenStream> {
    let Locals { batch, step, output, examples, .. } = locals;
    let Some(BatchOf { ty, inputs, .. }) = &model.batch else {
        let one = |body: &crate::model::Body| body.inputs.len() == 1;
        if !model.forward.of_any_inputs().is_none_or(one) {
            return None;
        }
        let run = run(model, &[quote!(#batch.required("input")?)], step);
        return Some(quote! { let #output = #run?; });
    };
    let (mut taken, mut given) = (Vec::new(), Vec::new());
    for (at, input) in inputs.iter().enumerate() {
        match input {
            Part::Whole => {
                taken
                    .push(quote! { let #examples = <#ty as __amp::BatchType>::from_any(#batch)?; });
                given.push(quote!(&#examples));
            }
            Part::Field(names) => {
                let (value, of) = (local(&format!("input_{at}")), local("of"));
                let key: Vec<String> = names.iter().map(|name| name.unraw().to_string()).collect();
                let key = key.join(".");
                let span = names.first().map_or_else(|| ty.span(), Ident::span);
                taken.push(quote_spanned! { located_at(span)=>
                    let #value = __amp::take_field(#key, #batch, |#of: &#ty| &#of #(.#names)*)?;
                });
                given.push(borrowed(model, at, &quote!(#value), span_of(names)));
            }
        }
    }
    let run = run(model, &given, step);
    Some(quote! {
        #(#taken)*
        let #output = #run?;
    })
}
