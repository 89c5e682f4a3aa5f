//! Generates the Rust code for a [`Model`].
//!
//! Three measures prevent the generated code from clashing with the user's names. All generated
//! code is inside `const _`. The generated code refers to amp-core only as `__amp`. Its local
//! variables have the hygiene of the derive macro ([`local`]), so that the user's code cannot see
//! these variables. Names that the user's code may use (`self`, hyperparameters, layers, `cx`,
//! `plan`) have the hygiene of the user's code.

mod batch;
mod bounds;
mod builder;
mod checkpoint;
mod children;
mod forward;
mod hooks;
mod layer;
mod log;
mod metric_mode;
mod optimizer;
mod output;
mod parts;
mod step_access;
mod tensor;
mod train;
mod validate;
mod values_in_step;
mod visit;

#[cfg(test)]
mod tests;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{Path, ext::IdentExt, spanned::Spanned};

use crate::{
    diag::Warning,
    model::{Field, Lightning, Model, Region},
};

/// Generates the trait implementations, the builder and the warnings for a model.
pub(crate) fn expand(mut model: Model, amp_core: &Path, warnings: &[Warning]) -> TokenStream {
    model.generics = bounds::with_modules(&model);
    let model = &model;
    let module = module(model);
    let lightning = model.lightning.as_ref().map(|lightning| lightning_module(model, lightning));
    let builder = builder::expand(model);
    let reads = model.lightning.is_none().then(|| builder::reads(model)).flatten();
    let warnings = warnings.iter().map(|warning| advice(model, warning));
    let items = in_const(amp_core, &quote! { #module #lightning #builder #reads });
    quote! { #items #(#warnings)* }
}

/// Puts `items` into a scope in which amp-core is called `__amp`, so that no generated name is
/// visible in the user's module.
pub(crate) fn in_const(amp_core: &Path, items: &TokenStream) -> TokenStream {
    // The import gets the span of the user's path. If the path does not exist, rustc then
    // underlines it in the user's code.
    let span = located_at(amp_core.span());
    let import = quote_spanned!(span=> use #amp_core::__private as __amp;);
    quote! {
        const _: () = {
            #import
            #items
        };
    }
}

fn module(model: &Model) -> TokenStream {
    let visit = impl_for(model, &quote!(__amp::Visit), &visit::expand(model));
    let forward = forward::expand(model);
    quote! { #visit #forward }
}

fn lightning_module(model: &Model, lightning: &Lightning) -> TokenStream {
    let name = model.ident.unraw().to_string();
    let hyperparameters = hyperparameters(model);
    let train = train::expand(model, &lightning.training);
    let validate = validate::expand(model, lightning);
    let metric_mode = metric_mode::expand(lightning);
    let optimizers = optimizer::expand(&lightning.optimizers);
    let hooks = lightning.hooks.iter().map(hooks::expand);
    let checkpoint = checkpoint::expand(model);
    let step_access = step_access::expand(model, lightning);
    let values_in_step = values_in_step::expand(model, &lightning.training);
    let items = quote! {
        fn name(&self) -> &'static __amp::str {
            #name
        }
        #hyperparameters
        #train
        #validate
        #metric_mode
        #optimizers
        #step_access
        #values_in_step
        #(#hooks)*
        #checkpoint
    };
    impl_for(model, &quote!(__amp::LightningModule), &items)
}

fn impl_for(model: &Model, of: &TokenStream, items: &TokenStream) -> TokenStream {
    let ident = &model.ident;
    let (impl_generics, ty_generics, where_clause) = model.generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics #of for #ident #ty_generics #where_clause {
            #items
        }
    }
}

fn hyperparameters(model: &Model) -> TokenStream {
    let values = local("values");
    let mut puts = model
        .hparams()
        .map(|field| {
            let (ident, key) = (&field.ident, key(&field.ident));
            quote! { #values.insert(__amp::ToString::to_string(#key), __amp::hparam::put(&self.#ident)); }
        })
        .peekable();
    let body = match puts.peek() {
        None => quote!(__amp::Hyperparameters::new()),
        Some(_) => quote! {
            let mut #values = __amp::Hyperparameters::new();
            #(#puts)*
            #values
        },
    };
    quote! {
        fn hyperparameters(&self) -> __amp::Hyperparameters {
            #body
        }
    }
}

/// Generates a warning. A derive macro cannot emit a warning directly, so the generated code uses a
/// constant that is marked as deprecated.
fn advice(model: &Model, warning: &Warning) -> TokenStream {
    let Warning { at, rule, note } = warning;
    let allows = &model.allows;
    let (defined, used) = (format_ident!("{rule}"), Ident::new(rule, *at));
    quote! {
        const _: () = {
            #[deprecated(note = #note)]
            const #defined: () = ();
            #(#allows)*
            const _: () = #used;
        };
    }
}

/// Returns a variable that the user's code can neither use nor shadow. The underscores keep its
/// name different from the user's constants, statics and unit structs: a `let` with the name of a
/// constant would not declare a variable, but compare with the constant.
fn local(name: &str) -> Ident {
    format_ident!("__{name}", span = Span::mixed_site())
}

/// Returns a field's name as a string, for parameter paths and saved hyperparameters.
fn key(ident: &Ident) -> String {
    ident.unraw().to_string()
}

impl ToTokens for Region {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.extend(match self {
            Self::Fp32 => quote!(__amp::Region::Fp32),
            Self::Fp16 => quote!(__amp::Region::Fp16),
            Self::Bf16 => quote!(__amp::Region::Bf16),
            Self::Fp64 => quote!(__amp::Region::Fp64),
            Self::AutocastOff => quote!(__amp::Region::AutocastOff),
        });
    }
}

/// Returns the expression that borrows a layer's field. The expression has the span of the field.
/// If the field's type is not a `Module`, rustc then underlines the field.
fn layer_of_self(field: &Field) -> TokenStream {
    let ident = &field.ident;
    quote_spanned!(located_at(ident.span())=> &self.#ident)
}

/// Returns a span that points to a position in the user's code, but has the hygiene of the derive
/// macro.
pub(crate) fn located_at(span: Span) -> Span {
    Span::call_site().located_at(span)
}

/// Formats a precision region, or `None`, as an argument of a generated call.
fn region(region: Option<Region>) -> TokenStream {
    match region {
        None => quote!(__amp::None),
        Some(region) => quote!(__amp::Some(#region)),
    }
}
