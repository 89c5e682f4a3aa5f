//! Generates the builder, which takes hyperparameters and builds the model.

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;
use syn::ext::IdentExt;

use super::{key, layer, local, tensor};
use crate::{
    model::{Default, Field, Kind, Model, Source},
    tokens,
};

/// Generates the method `builder()`, the builder's struct with its setters, and the builder's
/// `build`.
pub(super) fn expand(model: &Model) -> TokenStream {
    let (ident, name, vis) = (&model.ident, &model.builder, &model.vis);
    let (impl_generics, ty_generics, where_clause) = model.generics.split_for_impl();
    let inputs: Vec<&Field> = model.fields.iter().filter(|field| is_input(field)).collect();

    let declared = inputs.iter().map(|Field { ident, ty, .. }| quote!(#ident: #ty));
    let arguments = inputs.iter().filter(|field| is_argument(field));
    let arguments = arguments.map(|Field { ident, ty, .. }| quote!(#ident: #ty));
    let starts = inputs.iter().map(|field| start(field));
    let docs = format!(" Starts a [`{}`] from its default hyperparameters.", ident.unraw());
    let builder_docs = format!(" Sets hyperparameters and builds a [`{}`].", ident.unraw());
    let marker = has_marker(model).then(|| marker(&inputs));
    let mark = marker.as_ref().map(|marker| quote!(#marker: __amp::PhantomData));
    let marker = marker.map(|m| quote!(#m: __amp::PhantomData<fn() -> #ident #ty_generics>));

    let setters = model.fields.iter().filter_map(setter);
    let by_name = model.lightning.as_ref().map(|_| by_name(model));
    let from_checkpoint = from_checkpoint(model, &inputs);
    let build = build(model, &inputs);
    quote! {
        #[automatically_derived]
        impl #impl_generics #ident #ty_generics #where_clause {
            #[doc = #docs]
            #vis fn builder(#(#arguments),*) -> #name #ty_generics {
                #name { #(#starts,)* #mark }
            }
            #from_checkpoint
        }

        #[doc = #builder_docs]
        #[must_use = "the builder creates no model until `build` is called"]
        #vis struct #name #impl_generics #where_clause {
            #(#declared,)*
            #marker
        }

        impl #impl_generics #name #ty_generics #where_clause {
            #(#setters)*
            #by_name

            /// Builds the layers; their initial weights come from libtorch's generator.
            ///
            /// # Errors
            /// When a layer refuses its arguments.
            pub fn build(self) -> __amp::Result<#ident #ty_generics> {
                __amp::TryFrom::try_from(self)
            }
        }

        #build
    }
}

/// Generates `from_checkpoint` for a model that needs no arguments except hyperparameters.
fn from_checkpoint(model: &Model, inputs: &[&Field]) -> Option<TokenStream> {
    let from_hyperparameters = inputs.iter().all(|field| matches!(field.kind, Kind::Hparam { .. }));
    if model.lightning.is_none() || !from_hyperparameters {
        return None;
    }
    let (path, file, saved, own) = (local("path"), local("file"), local("saved"), local("own"));
    let (vis, name) = (&model.vis, model.ident.unraw().to_string());
    let arguments = inputs.iter().filter(|field| is_argument(field)).map(|field| {
        let key = key(&field.ident);
        quote!(__amp::hparam::required(#key, &#saved)?)
    });
    Some(quote! {
        /// Builds the model that was saved in a checkpoint or a file of weights, on the CPU, with
        /// its hyperparameters, weights and state. The path is a file, a folder (its newest
        /// checkpoint is used), `FOLDER/best` or `FOLDER/last`.
        ///
        /// # Errors
        /// When there is no such file, or the file has another model.
        #[allow(dead_code)]
        #vis fn from_checkpoint(#path: impl __amp::AsRef<__amp::Path>) -> __amp::Result<Self> {
            let (#file, #saved) = __amp::checkpoint::of_model(#name, #path.as_ref())?;
            let mut #own = Self::builder(#(#arguments),*).hyperparameters(&#saved)?.build()?;
            __amp::checkpoint::restore(&mut #own, &#file)?;
            __amp::Ok(#own)
        }
    })
}

/// Generates code that reads every hyperparameter of a block (a struct with `derive(Module)`).
/// Otherwise rustc would warn about a hyperparameter that is used only to build layers, because no
/// code reads its field.
pub(super) fn reads(model: &Model) -> Option<TokenStream> {
    let (ident, block) = (&model.ident, local("block"));
    let (impl_generics, ty_generics, where_clause) = model.generics.split_for_impl();
    let reads: Vec<TokenStream> =
        model.hparams().map(|Field { ident, .. }| quote!(let _ = &#block.#ident;)).collect();
    (!reads.is_empty()).then(|| {
        // The function is inside `const _`, so that the user's code cannot call it.
        quote! {
            const _: () = {
                #[allow(dead_code)]
                fn __reads #impl_generics (#block: &#ident #ty_generics) #where_clause {
                    #(#reads)*
                }
            };
        }
    })
}

/// Returns whether the builder needs a marker field (`PhantomData`). A builder with generic
/// parameters needs it, because rustc refuses a struct with an unused generic parameter.
fn has_marker(model: &Model) -> bool {
    !model.generics.params.is_empty()
}

/// Returns a name for the marker field that no other field has.
fn marker(inputs: &[&Field]) -> Ident {
    let fields = inputs.iter().map(|field| &field.ident);
    tokens::free("__model", quote!(#(#fields)*), Span::call_site())
}

/// Returns whether the builder has a field with the name of the model's field `field`.
fn is_input(field: &Field) -> bool {
    match &field.kind {
        Kind::Hparam { .. } => true,
        Kind::Layer { source, .. } => matches!(source, Source::Argument),
        Kind::Tensor { .. } | Kind::State { .. } => false,
    }
}

/// Returns whether `builder` takes the field as an argument.
fn is_argument(field: &Field) -> bool {
    match &field.kind {
        Kind::Hparam { default } => matches!(default, Default::Required),
        Kind::Layer { source, .. } => matches!(source, Source::Argument),
        Kind::Tensor { .. } | Kind::State { .. } => false,
    }
}

/// Generates the initial value of a field of the builder.
fn start(field: &Field) -> TokenStream {
    let ident = &field.ident;
    match &field.kind {
        Kind::Hparam { default: Default::Expr(value) } => quote!(#ident: #value),
        Kind::Hparam { default: Default::OfType } => quote!(#ident: __amp::Default::default()),
        _ => quote!(#ident),
    }
}

fn setter(field: &Field) -> Option<TokenStream> {
    let Kind::Hparam { default: Default::OfType | Default::Expr(_) } = &field.kind else {
        return None;
    };
    let Field { ident, ty, docs, .. } = field;
    let fallback = format!(" Sets `{}`.", ident.unraw());
    let fallback = docs.is_empty().then(|| quote!(#[doc = #fallback]));
    Some(quote! {
        #(#docs)*
        #fallback
        pub fn #ident(mut self, #ident: #ty) -> Self {
            self.#ident = #ident;
            self
        }
    })
}

/// Generates the builder's method `hyperparameters`, which sets hyperparameters by name. The names
/// and values are those that `LightningModule::hyperparameters` has saved.
fn by_name(model: &Model) -> TokenStream {
    let (values, name, value) = (local("values"), local("name"), local("value"));
    let keys: Vec<String> = model.hparams().map(|field| key(&field.ident)).collect();
    let arms = model.hparams().zip(&keys).map(|(Field { ident, .. }, key)| {
        quote!(#key => self.#ident = __amp::hparam::get(#name, #value)?,)
    });
    let (body, receiver) = if keys.is_empty() {
        let body = quote! {
            match __amp::Iterator::next(&mut #values.keys()) {
                __amp::Some(#name) => __amp::Err(__amp::hparam::unknown(#name, &[])),
                __amp::None => __amp::Ok(self),
            }
        };
        (body, quote!(self))
    } else {
        let body = quote! {
            for (#name, #value) in #values {
                match #name.as_str() {
                    #(#arms)*
                    _ => return __amp::Err(__amp::hparam::unknown(#name, &[#(#keys),*])),
                }
            }
            __amp::Ok(self)
        };
        (body, quote!(mut self))
    };
    quote! {
        /// Sets hyperparameters by name.
        ///
        /// # Errors
        /// If no hyperparameter has a given name, or a value has another type.
        pub fn hyperparameters(
            #receiver,
            #values: &__amp::Hyperparameters,
        ) -> __amp::Result<Self> {
            #body
        }
    }
}

/// Generates the code that builds the model from its builder. The code is a method of the model, so
/// that `Self` in the user's code means the model.
fn build(model: &Model, inputs: &[&Field]) -> TokenStream {
    let (ident, name) = (&model.ident, &model.builder);
    let (impl_generics, ty_generics, where_clause) = model.generics.split_for_impl();
    let builder = local("builder");
    let taken = inputs.iter().map(|field| &field.ident);
    let rest = has_marker(model).then(|| quote!(..));
    let taken = (!inputs.is_empty()).then(|| quote!(let #name { #(#taken,)* #rest } = #builder;));
    // Fields are created in the order of their declaration. The initial weights are therefore drawn
    // in this order, and each expression can use the fields above it.
    let made = model.fields.iter().filter_map(|Field { ident, kind, .. }| {
        let value = match kind {
            Kind::Layer { source: Source::Built(build), .. } => layer::expand(build),
            Kind::Tensor { role, initial } => tensor::expand(ident, *role, initial),
            Kind::State { initial: Some(value), .. } => quote!(#value),
            Kind::State { initial: None, .. } => quote!(__amp::Default::default()),
            Kind::Hparam { .. } | Kind::Layer { source: Source::Argument, .. } => return None,
        };
        Some(quote!(let #ident = #value;))
    });
    let fields = model.fields.iter().map(|field| &field.ident);
    quote! {
        #[automatically_derived]
        impl #impl_generics __amp::TryFrom<#name #ty_generics> for #ident #ty_generics
        #where_clause
        {
            type Error = __amp::Error;

            fn try_from(#builder: #name #ty_generics) -> __amp::Result<Self> {
                #taken
                #(#made)*
                __amp::Ok(Self { #(#fields),* })
            }
        }
    }
}
