//! `LightningModule::configure_optimizers`.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote};

use super::local;
use crate::{
    model::{Config, Group, Optimizer, Optimizers, Pair},
    symbol,
    table::{Entry, Interval},
    tokens,
};

pub(super) fn expand(optimizers: &Optimizers) -> TokenStream {
    // The user's keys may name it, so it has the user's hygiene.
    let plan = Ident::new(symbol::PLAN, Span::call_site());
    let (plan, all) = match optimizers {
        Optimizers::Function(function) => (plan.clone(), quote!(#function(self, #plan)?)),
        Optimizers::Generated(all) => {
            let used = all
                .iter()
                .flat_map(pairs)
                .map(|pair| pair.value.to_token_stream())
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

fn pairs(optimizer: &Optimizer) -> impl Iterator<Item = &Pair> {
    let scheduler = optimizer.scheduler.iter().flat_map(|(config, _)| &config.keys);
    let groups = optimizer.groups.iter().flat_map(|group| &group.keys);
    optimizer.config.keys.iter().chain(groups).chain(scheduler)
}

fn optimizer(optimizer: &Optimizer) -> TokenStream {
    let Optimizer { config: base, params, groups, scheduler } = optimizer;
    let options = config(base);
    let built = match groups.is_empty() {
        true => quote!(__amp::OptimizerConfig::new(#options)),
        false => {
            let local = local("base");
            let groups = groups.iter().map(|Group { patterns, keys }| {
                let options = fields(base.row, &base.at, keys, &quote!(#local));
                quote!(.group([#(#patterns),*], #options))
            });
            quote! {{
                let #local = #options;
                __amp::OptimizerConfig::new(__amp::ParamGroups::new(#local) #(#groups)*)
            }}
        }
    };
    let params = (!params.is_empty()).then(|| quote!(.params([#(#params),*])));
    let scheduler = scheduler.as_ref().map(|(scheduler, interval)| {
        let scheduler = config(scheduler);
        quote!(.with_scheduler(#scheduler, #interval))
    });
    quote!(#built #params #scheduler)
}

fn config(config: &Config) -> TokenStream {
    fields(config.row, &config.at, &config.keys, &quote!(__amp::Default::default()))
}

/// A struct of these options, the others those of `rest`.
fn fields(row: &'static Entry, at: &Ident, keys: &[Pair], rest: &TokenStream) -> TokenStream {
    let ty = Ident::new(row.ty, at.span());
    // With every key given, the rest would be a needless update.
    let whole = keys.len() == row.keys().count();
    let keys = keys.iter().map(|Pair { key, value }| quote!(#key: #value));
    let rest = (!whole).then(|| quote!(..#rest));
    quote!(__amp::optim::#ty { #(#keys,)* #rest })
}

impl ToTokens for Interval {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.extend(match self {
            Self::Step => quote!(__amp::Interval::Step),
            Self::Epoch => quote!(__amp::Interval::Epoch),
        });
    }
}
