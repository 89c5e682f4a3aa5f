//! Generates `LightningModule::configure_optimizers`.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote};
use syn::Expr;

use super::local;
use crate::{
    model::{Config, Group, Optimizer, Optimizers, Pair, Selection},
    symbol,
    table::Interval,
    tokens,
};

pub(super) fn expand(optimizers: &Optimizers) -> TokenStream {
    // The values of keys may mention `plan`, so this variable must have the hygiene of the user's
    // code.
    let plan = Ident::new(symbol::PLAN, Span::call_site());
    let (plan, all) = match optimizers {
        Optimizers::Function(function) => (plan.clone(), quote!(#function(self, #plan)?)),
        Optimizers::Generated(all) => {
            let used = all
                .iter()
                .flat_map(values)
                .map(ToTokens::to_token_stream)
                .any(|value| tokens::mentions(value, &plan));
            let plan = if used { plan } else { local("plan") };
            let configs = all.iter().map(optimizer);
            match all.len() {
                1 => (plan, quote!(#(#configs)*)),
                _ => (plan, quote!(__amp::vec![#(#configs),*])),
            }
        }
    };
    quote! {
        fn configure_optimizers(
            &self,
            #plan: &__amp::TrainingPlan,
        ) -> __amp::Result<__amp::Optimizers> {
            __amp::Ok(__amp::Into::into(#all))
        }
    }
}

fn values(optimizer: &Optimizer) -> impl Iterator<Item = &Expr> {
    let scheduler = optimizer.scheduler.iter().flat_map(|(config, _)| config.values());
    let groups = optimizer.groups.iter().flat_map(|group| &group.keys).map(|pair| &pair.value);
    optimizer.config.values().chain(groups).chain(scheduler)
}

fn optimizer(optimizer: &Optimizer) -> TokenStream {
    let Optimizer { config: base, params, groups, scheduler } = optimizer;
    let options = config(base);
    let built = match groups.is_empty() {
        true => quote!(__amp::OptimizerConfig::new(#options)),
        false => {
            let local = local("base");
            let groups = groups.iter().map(|Group { params, keys }| {
                let options = fields(base, keys, &quote!(__amp::Clone::clone(&#local)));
                let params = selection(params);
                quote!(.group(#params, #options))
            });
            quote! {{
                let #local = #options;
                __amp::OptimizerConfig::new(
                    __amp::ParamGroups::new(__amp::Clone::clone(&#local)) #(#groups)*
                )
            }}
        }
    };
    let params = params.as_ref().map(|params| {
        let params = selection(params);
        quote!(.params(#params))
    });
    let scheduler = scheduler.as_ref().map(|(scheduler, interval)| {
        let scheduler = config(scheduler);
        quote!(.with_scheduler(#scheduler, #interval))
    });
    quote!(#built #params #scheduler)
}

/// Generates the expression for a `Selection` of parameters.
fn selection(Selection { named, except, ndim }: &Selection) -> TokenStream {
    if except.is_empty() && ndim.is_none() {
        return quote!([#(#named),*]);
    }
    let chosen = match named.is_empty() {
        true => quote!(__amp::optim::Selection::all()),
        false => quote!(<__amp::optim::Selection as __amp::From<_>>::from([#(#named),*])),
    };
    let except = (!except.is_empty()).then(|| quote!(.except([#(#except),*])));
    let ndim = ndim.iter().map(|ndim| quote!(.ndim(#ndim)));
    quote!(#chosen #except #(#ndim)*)
}

fn config(config: &Config) -> TokenStream {
    let (Config::Known { keys, .. } | Config::Own { keys, .. }) = config else {
        return config.values().map(ToTokens::to_token_stream).collect();
    };
    fields(config, keys, &quote!(__amp::Default::default()))
}

/// Generates a struct of options with the given keys. `rest` is the expression from which all other
/// fields are taken.
fn fields(config: &Config, keys: &[Pair], rest: &TokenStream) -> TokenStream {
    // If every key is given, `..rest` would be superfluous.
    let whole = matches!(config, Config::Known { row, .. } if keys.len() == row.keys().count());
    let keys = keys.iter().map(|Pair { key, value }| quote!(#key: #value));
    let rest = (!whole).then(|| quote!(..#rest));
    match config {
        Config::Known { row, at, .. } => {
            let ty = Ident::new(row.ty, at.span());
            quote!(__amp::optim::#ty { #(#keys,)* #rest })
        }
        Config::Own { ty, .. } => {
            let options = local("options");
            quote! {{
                #[allow(clippy::needless_update, reason = "the macro does not know its fields")]
                let #options = #ty { #(#keys,)* #rest };
                #options
            }}
        }
        Config::Value(value) => quote!(#value),
    }
}

impl ToTokens for Interval {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.extend(match self {
            Self::Step => quote!(__amp::Interval::Step),
            Self::Epoch => quote!(__amp::Interval::Epoch),
        });
    }
}
