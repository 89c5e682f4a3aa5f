//! Generates empty implementations for a struct that has errors. Without them, rustc would also
//! report that the implementations are missing.
//!
//! The generated code consists of the trait implementations and the builder. Their signatures
//! follow from the attributes that have no errors. Their bodies never run, because the crate does
//! not compile.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, Path};

use crate::{
    expand::in_const,
    parse::builder_name,
    spec::{Derive, Field, Spec, named},
    symbol,
};

/// Generates empty implementations for a struct that has errors.
pub(crate) fn expand(
    input: &DeriveInput,
    spec: Option<&Spec>,
    derive: Derive,
    amp_core: &Path,
) -> TokenStream {
    let ident = &input.ident;
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    let lightning = (derive == Derive::LightningModule).then(|| {
        quote! {
            impl #impl_generics __amp::LightningModule for #ident #ty_generics #where_clause {
                fn name(&self) -> &'static __amp::str {
                    __amp::unreachable!()
                }
                fn hyperparameters(&self) -> __amp::Hyperparameters {
                    __amp::unreachable!()
                }
                fn training_step(
                    &mut self,
                    _: &__amp::AnyBatch,
                    _: &mut __amp::Step<'_>,
                ) -> __amp::Result<__amp::Tensor> {
                    __amp::unreachable!()
                }
                fn validation_step(
                    &mut self,
                    _: &__amp::AnyBatch,
                    _: &mut __amp::Step<'_>,
                ) -> __amp::Result<()> {
                    __amp::unreachable!()
                }
                fn configure_optimizers(
                    &self,
                    _: &__amp::TrainingPlan,
                ) -> __amp::Result<__amp::Optimizers> {
                    __amp::unreachable!()
                }
            }
        }
    });
    let builder = builder(input, spec, derive);
    in_const(
        amp_core,
        &quote! {
            impl #impl_generics __amp::Module for #ident #ty_generics #where_clause {
                fn forward(&self, _: &__amp::Tensor, _: &__amp::Context) -> __amp::Result<__amp::Tensor> {
                    __amp::unreachable!()
                }
            }
            impl #impl_generics __amp::Visit for #ident #ty_generics #where_clause {
                fn visit(&self, _: &mut dyn __amp::Visitor) {
                    __amp::unreachable!()
                }
            }
            #lightning
            #builder
        },
    )
}

fn builder(input: &DeriveInput, spec: Option<&Spec>, derive: Derive) -> TokenStream {
    let DeriveInput { ident, vis, generics, .. } = input;
    let name = builder_name(input);
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let fields = spec.map_or(&[][..], |spec| &spec.fields);
    let arguments = fields.iter().filter(|field| is_argument(field));
    let arguments = arguments.map(|Field { ty, .. }| quote!(_: #ty));
    let setters =
        fields.iter().filter(|field| has_setter(field)).map(|Field { ident, ty, .. }| {
            quote! {
                pub fn #ident(self, _: #ty) -> Self {
                    __amp::unreachable!()
                }
            }
        });
    let by_name = (derive == Derive::LightningModule).then(|| {
        quote! {
            pub fn hyperparameters(self, _: &__amp::Hyperparameters) -> __amp::Result<Self> {
                __amp::unreachable!()
            }
        }
    });
    quote! {
        #[allow(dead_code, missing_docs)]
        impl #impl_generics #ident #ty_generics #where_clause {
            #vis fn builder(#(#arguments),*) -> #name #ty_generics {
                __amp::unreachable!()
            }
        }

        #[allow(dead_code, missing_docs)]
        #vis struct #name #impl_generics (__amp::PhantomData<fn() -> #ident #ty_generics>)
        #where_clause;

        #[allow(dead_code, missing_docs)]
        impl #impl_generics #name #ty_generics #where_clause {
            #(#setters)*
            #by_name
            pub fn build(self) -> __amp::Result<#ident #ty_generics> {
                __amp::unreachable!()
            }
        }
    }
}

/// Returns whether `builder` takes a value for the field as an argument: whether the field has
/// `#[hparam]` or `#[layer]` without arguments.
fn is_argument(field: &Field) -> bool {
    [symbol::HPARAM, symbol::LAYER].iter().any(|name| {
        named(&field.attrs, name).any(|attr| attr.args.as_ref().is_some_and(Vec::is_empty))
    })
}

/// Returns whether the builder has a setter for the field: whether the field has an `#[hparam(…)]`
/// with arguments (a default), and no other method of the builder has the field's name.
fn has_setter(field: &Field) -> bool {
    let is_own = field.ident == "build" || field.ident == "hyperparameters";
    let mut hparams = named(&field.attrs, symbol::HPARAM);
    !is_own && hparams.any(|attr| attr.args.as_ref().is_none_or(|args| !args.is_empty()))
}
