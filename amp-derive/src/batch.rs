//! `derive(Batch)`: implements amp-core's batch traits for a struct of tensors, so that a model can
//! train on batches of this type.

#[cfg(test)]
mod tests;

use proc_macro2::{Ident, TokenStream};
use quote::{quote, quote_spanned};
use syn::{
    Data, DeriveInput, Fields, Generics, Path, Type, ext::IdentExt, parse_quote, spanned::Spanned,
};

use crate::{
    check::{self, only},
    diag::Diagnostics,
    expand::{in_const, located_at},
    fragments,
    manifest::Manifest,
    parse,
    spec::{Arg, Attr},
    suggest, symbol,
};

/// What the tensors of a field contain. The loader and the trainer treat each role differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Value,
    Ids,
    Mask,
    Weights,
    Shared,
}

const ROLES: &[(&str, Role)] = &[
    ("value", Role::Value),
    ("ids", Role::Ids),
    ("mask", Role::Mask),
    ("weights", Role::Weights),
    ("shared", Role::Shared),
];

struct Field {
    ident: Ident,
    ty: Type,
    /// The role that the attribute `#[batch(…)]` gives the field. `None` means `Value`, or the role
    /// of the outer field if this batch is a field of another batch.
    role: Option<Role>,
}

/// Expands the derive macro. Input and output are tokens of the crate proc_macro2, so that tests
/// can call this function outside rustc.
pub(crate) fn derive(input: TokenStream, manifest: fn() -> Manifest) -> TokenStream {
    let input: DeriveInput = match syn::parse2(fragments::written_out(input)) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let diag = Diagnostics::new();
    check::amp_core::alias_is_free(&input, &diag);
    let attrs = parse::attributes(&input, &diag);
    let amp_core = check::amp_core::path(&attrs, manifest, &diag);
    let fields = fields(&input, &attrs, &diag);
    match diag.finish(fields.zip(amp_core.clone())) {
        Ok(((fields, amp_core), _)) => expand(&input, &fields, &amp_core),
        Err(errors) => {
            let mut tokens = errors.into_compile_error();
            if let Some(amp_core) = amp_core {
                tokens.extend(stubs(&input, &amp_core));
            }
            tokens
        }
    }
}

/// Checks the rule: a batch is a struct with at least one named field, and at most one of its
/// fields contains the weights of the examples.
fn fields(input: &DeriveInput, attrs: &[Attr], diag: &Diagnostics) -> Option<Vec<Field>> {
    for attr in attrs.iter().filter(|attr| attr.is(symbol::BATCH)) {
        diag.error(&attr.path, "`#[batch]` belongs on a field of the batch, not on the struct");
    }
    let Data::Struct(data) = &input.data else {
        diag.error(&input.ident, "only structs can derive `Batch`: put the tensors into a struct");
        return None;
    };
    let named = match &data.fields {
        Fields::Named(fields) if !fields.named.is_empty() => &fields.named,
        Fields::Unnamed(fields) => {
            diag.error(
                &fields.unnamed,
                "name the fields, as in `{ ids: Tensor }`: tensors are named after them",
            );
            return None;
        }
        _ => {
            let name = &input.ident;
            diag.error(
                name,
                format!("`{name}` has no tensors: give it a field such as `ids: Tensor`"),
            );
            return None;
        }
    };
    // Collecting directly into an `Option` would stop at the first error, and the others would not
    // be reported.
    let fields: Vec<Option<Field>> = named.iter().map(|found| field(found, diag)).collect();
    let fields: Vec<Field> = fields.into_iter().collect::<Option<_>>()?;
    let mut weights = fields.iter().filter(|field| field.role == Some(Role::Weights));
    if let (Some(first), Some(second)) = (weights.next(), weights.next()) {
        let first = &first.ident;
        diag.error(
            &second.ident,
            format!(
                "`{first}` is already the field with the weights: mark only one field as `weights`"
            ),
        );
        return None;
    }
    Some(fields)
}

fn field(field: &syn::Field, diag: &Diagnostics) -> Option<Field> {
    let attrs = parse::own_attributes(&field.attrs, diag);
    let role = match only(&attrs, symbol::BATCH, diag) {
        None => None,
        Some(attr) => Some(role(attr, diag)?),
    };
    Some(Field { ident: field.ident.clone()?, ty: field.ty.clone(), role })
}

/// Reads the role of a field. Checks the rule: the attribute, as in `#[batch(ids)]`, gives exactly
/// one role.
fn role(attr: &Attr, diag: &Diagnostics) -> Option<Role> {
    let names: Vec<&str> = ROLES.iter().map(|(name, _)| *name).collect();
    match attr.args.as_deref()? {
        [only] => match Arg::from(only) {
            Arg::Word(word) => {
                let found = ROLES.iter().find(|(name, _)| word == name);
                if found.is_none() {
                    diag.error(word, suggest::unknown("role", &word.to_string(), &names));
                }
                found.map(|(_, role)| *role)
            }
            Arg::Pair(..) | Arg::Other(_) => {
                diag.error(only, format!("expected {}", suggest::one_of(&names)));
                None
            }
        },
        [] => {
            diag.error(&attr.path, format!("name the role: {}", suggest::one_of(&names)));
            None
        }
        [_, second, ..] => {
            diag.error(second, "a field has one role: keep one");
            None
        }
    }
}

fn expand(input: &DeriveInput, fields: &[Field], amp_core: &Path) -> TokenStream {
    let (ident, generics) = (&input.ident, bounded(&input.generics));
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let of = ident.unraw().to_string();
    let names: Vec<&Ident> = fields.iter().map(|field| &field.ident).collect();
    let keys: Vec<String> = names.iter().map(|name| name.unraw().to_string()).collect();
    // The generated calls get the span of the field. If the field's type cannot hold tensors, rustc
    // then underlines this type.
    let calls = |trait_: TokenStream, method: TokenStream| -> Vec<TokenStream> {
        let call = |field: &Field| {
            let ty = &field.ty;
            quote_spanned!(located_at(ty.span())=> <#ty as #trait_>::#method)
        };
        fields.iter().map(call).collect()
    };
    let puts = calls(quote!(__amp::BatchField), quote!(put));
    let takes = calls(quote!(__amp::BatchField), quote!(take));
    let each = calls(quote!(__amp::nn::Tensors), quote!(each));
    let roles = fields.iter().map(|field| declared(field.role, &quote!(__amp::FieldRole::Value)));
    let nested = fields.iter().map(|field| declared(field.role, &quote!(__role)));
    in_const(
        amp_core,
        &quote! {
            #[automatically_derived]
            impl #impl_generics __amp::BatchType for #ident #ty_generics #where_clause {
                fn to_any(&self) -> __amp::Result<__amp::AnyBatch> {
                    let mut __batch = __amp::AnyBatch::new(#of);
                    #(#puts(&self.#names, __amp::From::from(#keys), #roles, &mut __batch)?;)*
                    __amp::Ok(__batch)
                }

                fn from_any(__batch: &__amp::AnyBatch) -> __amp::Result<Self> {
                    __amp::Ok(Self { #(#names: #takes(#keys, __batch)?,)* })
                }
            }

            #[automatically_derived]
            impl #impl_generics __amp::BatchField for #ident #ty_generics #where_clause {
                type Ref<'__batch> = &'__batch Self where Self: '__batch;

                fn borrow(&self) -> &Self {
                    self
                }

                fn put(
                    &self,
                    __name: __amp::Cow<'static, __amp::str>,
                    __role: __amp::FieldRole,
                    __batch: &mut __amp::AnyBatch,
                ) -> __amp::Result<()> {
                    #(#puts(
                        &self.#names,
                        __amp::From::from(__amp::field_name(&__name, #keys)),
                        #nested,
                        __batch,
                    )?;)*
                    __amp::Ok(())
                }

                fn take(__name: &__amp::str, __batch: &__amp::AnyBatch) -> __amp::Result<Self> {
                    __amp::Ok(Self {
                        #(#names: #takes(&__amp::field_name(__name, #keys), __batch)?,)*
                    })
                }
            }

            #[automatically_derived]
            impl #impl_generics __amp::nn::Tensors for #ident #ty_generics #where_clause {
                fn each(
                    &self,
                    __change: &mut dyn __amp::FnMut(&__amp::Tensor) -> __amp::Result<__amp::Tensor>,
                ) -> __amp::Result<Self> {
                    __amp::Ok(Self { #(#names: #each(&self.#names, __change)?,)* })
                }
            }
        },
    )
}

fn declared(role: Option<Role>, otherwise: &TokenStream) -> TokenStream {
    match role {
        None => otherwise.clone(),
        Some(Role::Value) => quote!(__amp::FieldRole::Value),
        Some(Role::Ids) => quote!(__amp::FieldRole::Ids),
        Some(Role::Mask) => quote!(__amp::FieldRole::Mask),
        Some(Role::Weights) => quote!(__amp::FieldRole::Weights),
        Some(Role::Shared) => quote!(__amp::FieldRole::Shared),
    }
}

/// Returns the generics of the struct, with the bounds `BatchField` and `Tensors` on each type
/// parameter. The derived implementations need these bounds, because a field may have the type of a
/// type parameter.
fn bounded(generics: &Generics) -> Generics {
    let mut generics = generics.clone();
    for param in generics.type_params_mut() {
        param.bounds.push(parse_quote!(__amp::BatchField));
        param.bounds.push(parse_quote!(__amp::nn::Tensors));
    }
    generics
}

/// Returns empty implementations of the traits. The derive macro emits them together with the
/// errors, so that rustc does not also report missing implementations.
fn stubs(input: &DeriveInput, amp_core: &Path) -> TokenStream {
    let ident = &input.ident;
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    in_const(
        amp_core,
        &quote! {
            impl #impl_generics __amp::BatchType for #ident #ty_generics #where_clause {
                fn to_any(&self) -> __amp::Result<__amp::AnyBatch> {
                    __amp::unreachable!()
                }
                fn from_any(_: &__amp::AnyBatch) -> __amp::Result<Self> {
                    __amp::unreachable!()
                }
            }
            impl #impl_generics __amp::BatchField for #ident #ty_generics #where_clause {
                type Ref<'__batch> = &'__batch Self where Self: '__batch;
                fn borrow(&self) -> &Self {
                    __amp::unreachable!()
                }
                fn put(
                    &self,
                    _: __amp::Cow<'static, __amp::str>,
                    _: __amp::FieldRole,
                    _: &mut __amp::AnyBatch,
                ) -> __amp::Result<()> {
                    __amp::unreachable!()
                }
                fn take(_: &__amp::str, _: &__amp::AnyBatch) -> __amp::Result<Self> {
                    __amp::unreachable!()
                }
            }
            impl #impl_generics __amp::nn::Tensors for #ident #ty_generics #where_clause {
                fn each(
                    &self,
                    _: &mut dyn __amp::FnMut(&__amp::Tensor) -> __amp::Result<__amp::Tensor>,
                ) -> __amp::Result<Self> {
                    __amp::unreachable!()
                }
            }
        },
    )
}
