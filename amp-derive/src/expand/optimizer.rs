//! `LightningModule::configure_optimizers`.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote};

use super::local;
use crate::{
    model::{Config, Optimizers, Pair},
    symbol,
    table::Interval,
    tokens,
};

pub(super) fn expand(optimizers: &Optimizers) -> TokenStream {
    // The user's keys may name it, so it has the user's hygiene.
    let plan = Ident::new(symbol::PLAN, Span::call_site());
    let (plan, body) = match optimizers {
        Optimizers::Function(function) => (plan.clone(), quote!(#function(self, #plan))),
        Optimizers::Generated { optimizer, scheduler } => {
            let pairs = optimizer.keys.iter().chain(scheduler.iter().flat_map(|(c, _)| &c.keys));
            let used = pairs
                .map(|pair| pair.value.to_token_stream())
                .any(|value| tokens::mentions(value, &plan));
            let optimizer = config(optimizer);
            let scheduler = scheduler.as_ref().map(|(scheduler, interval)| {
                let scheduler = config(scheduler);
                quote!(.with_scheduler(#scheduler, #interval))
            });
            let body = quote!(__amp::Ok(__amp::OptimizerConfig::new(#optimizer) #scheduler));
            (if used { plan } else { local("_plan") }, body)
        }
    };
    quote! {
        fn configure_optimizers(
            &self,
            #plan: &__amp::TrainingPlan,
        ) -> __amp::Result<__amp::OptimizerConfig> {
            #body
        }
    }
}

fn config(config: &Config) -> TokenStream {
    let ty = Ident::new(config.row.ty, config.at.span());
    let keys = config.keys.iter().map(|Pair { key, value }| quote!(#key: #value));
    // With every key given, the rest would be a needless update.
    let whole = config.keys.len() == config.row.keys().count();
    let rest = (!whole).then(|| quote!(..__amp::Default::default()));
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
