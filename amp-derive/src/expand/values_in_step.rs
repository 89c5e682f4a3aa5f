//! Generates `LightningModule::values_in_step`, which returns the state and the hyperparameters
//! that the training step reads. Hooks may change these values, but a CUDA graph keeps those with
//! which it was captured. Before the trainer runs the graph, it therefore compares the values with
//! those of the capture.

use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::ext::IdentExt;

use super::local;
use crate::{
    model::{Field, Forward, Kind, Loss, Measured, Metric, Model, Own, Step, Value},
    tokens,
};

pub(super) fn expand(model: &Model, training: &Step) -> TokenStream {
    let values = local("values");
    // The values of `#[transient]` fields are not serialized.
    let has_value = |field: &&Field| match field.kind {
        Kind::State { saved, .. } => saved,
        Kind::Hparam { .. } => true,
        Kind::Layer { .. } | Kind::Tensor { .. } => false,
    };
    let fields = may_read(model, training).into_iter().filter(has_value);
    let read = fields.map(|Field { ident, .. }| {
        let name = ident.unraw().to_string();
        quote!(__amp::State::put(#values, #name, &__amp::hparam::put(&self.#ident))?;)
    });
    quote! {
        fn values_in_step(&self, #values: &mut __amp::State) -> __amp::Result<()> {
            let _ = &#values;
            #(#read)*
            __amp::Ok(())
        }
    }
}

/// Returns whether the training step may read a `#[transient]` field. The value of such a field is
/// not serialized, so it cannot be compared with the value in an earlier step.
pub(super) fn may_read_transient(model: &Model, training: &Step) -> bool {
    let is_transient = |field: &&Field| matches!(field.kind, Kind::State { saved: false, .. });
    may_read(model, training).iter().any(is_transient)
}

/// Returns whether the training step may read a `#[state]` field.
pub(super) fn may_read_state(model: &Model, training: &Step) -> bool {
    let is_state = |field: &&Field| matches!(field.kind, Kind::State { saved: true, .. });
    may_read(model, training).iter().any(is_state)
}

/// Returns the fields that occur in the code of the step. Returns all fields if the user has written
/// the step, or if the code passes `self` to other code.
fn may_read<'m>(model: &'m Model, training: &Step) -> Vec<&'m Field> {
    let code = code_of_step(model, training);
    let names: Vec<&Ident> = model.fields.iter().map(|field| &field.ident).collect();
    let all =
        matches!(training, Step::Function { .. }) || tokens::passes_self_on(code.clone(), &names);
    let is_read = |field: &&Field| all || tokens::contains(code.clone(), &field.ident);
    model.fields.iter().filter(is_read).collect()
}

/// Returns the code that the user has written for the forward pass, the loss and the metrics of a
/// training step. If the step is a function of the user, returns only the code for the forward
/// pass.
fn code_of_step(model: &Model, training: &Step) -> TokenStream {
    let forward = match &model.forward {
        Forward::InOrder => None,
        Forward::Body(body) => {
            let body = &body.body;
            Some(quote!(#body))
        }
        // The function receives `self`, so it may read every field.
        Forward::Function(_) => Some(quote!(self)),
    };
    let Step::Generated { loss, metrics, .. } = training else {
        return forward.into_iter().collect();
    };
    let (loss, counts) = match loss {
        Loss::Value(value) => (code_of(value), None),
        Loss::Function(function, Own { counts, .. }) => (quote!(#function), counts.as_ref()),
        Loss::Closure(closure, Own { counts, .. }) => (quote!(#closure), counts.as_ref()),
    };
    let metrics = metrics.iter().map(|Metric { value, of: Measured { output, .. }, .. }| {
        let value = code_of(value);
        quote!(#value, #output)
    });
    quote!(#forward, #loss, #counts, #(#metrics),*)
}

fn code_of(value: &Value) -> TokenStream {
    match value {
        Value::Known { keys, .. } => {
            let values = keys.iter().map(|pair| &pair.value);
            quote!(#(#values),*)
        }
        Value::Rust(value) => quote!(#value),
    }
}
