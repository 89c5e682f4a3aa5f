//! Generates the trait bounds that are added to the bounds of the struct.

use proc_macro2::Ident;
use syn::{
    GenericArgument, Generics, PathArguments, Type, TypeParamBound, WherePredicate, parse_quote,
};

use crate::model::Model;

/// Containers of amp-core and std that are modules if their elements are.
const CONTAINERS: &[&str] = &["Option", "Vec", "Box", "Arc", "Checkpoint"];

/// Returns the struct's generics. Adds the bound `M: Module` for every type parameter `M` that is
/// the type of a layer, unless the struct already has a bound `M: Forward<…>`.
pub(super) fn with_modules(model: &Model) -> Generics {
    let mut generics = model.generics.clone();
    let mut modules: Vec<Ident> = Vec::new();
    for (field, _) in model.layers() {
        if let Some(held) = held(&field.ty)
            && model.generics.type_params().any(|param| param.ident == *held)
            && !modules.contains(held)
            && !is_forward(&model.generics, held)
        {
            modules.push(held.clone());
        }
    }
    for module in modules {
        let predicate: WherePredicate = parse_quote!(#module: __amp::Module);
        generics.make_where_clause().predicates.push(predicate);
    }
    generics
}

/// Returns whether the struct declares the bound `param: Forward<…>`.
fn is_forward(generics: &Generics, param: &Ident) -> bool {
    let names = |bound: &TypeParamBound| match bound {
        TypeParamBound::Trait(bound) => {
            bound.path.segments.last().is_some_and(|last| last.ident == "Forward")
        }
        _ => false,
    };
    let mut params = generics.type_params().filter(|found| found.ident == *param);
    let clauses = generics.where_clause.iter().flat_map(|clause| &clause.predicates);
    params.any(|param| param.bounds.iter().any(names))
        || clauses.into_iter().any(|predicate| match predicate {
            WherePredicate::Type(bound) => {
                held(&bound.bounded_ty) == Some(param) && bound.bounds.iter().any(names)
            }
            _ => false,
        })
}

/// Returns the type inside nested containers: `M` for `M`, `Vec<M>` and `Option<Box<M>>`.
fn held(ty: &Type) -> Option<&Ident> {
    let Type::Path(path) = ty else {
        return None;
    };
    let last = path.path.segments.last()?;
    match &last.arguments {
        PathArguments::None => path.path.get_ident(),
        PathArguments::AngleBracketed(arguments)
            if CONTAINERS.iter().any(|container| last.ident == container) =>
        {
            arguments.args.iter().find_map(|argument| match argument {
                GenericArgument::Type(ty) => held(ty),
                _ => None,
            })
        }
        _ => None,
    }
}
