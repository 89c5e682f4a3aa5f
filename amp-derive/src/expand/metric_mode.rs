//! Generates `LightningModule::metric_mode`.

use proc_macro2::TokenStream;
use quote::quote;

use super::{local, log::value};
use crate::model::{Lightning, Metric, Step};

/// Generates `metric_mode`, which returns whether smaller or larger values of a declared metric are
/// better. Returns `None` for a model without declared metrics.
pub(super) fn expand(lightning: &Lightning) -> Option<TokenStream> {
    let steps = std::iter::once(&lightning.training).chain(&lightning.validation);
    let metrics = steps.filter_map(|step| match step {
        Step::Generated { metrics, .. } => Some(metrics),
        Step::Function { .. } | Step::Manual(_) => None,
    });
    let arms: Vec<TokenStream> = metrics.flatten().map(arm).collect();
    if arms.is_empty() {
        return None;
    }
    let asked = local("name");
    Some(quote! {
        fn metric_mode(&self, #asked: &__amp::str) -> __amp::Option<__amp::Mode> {
            match #asked {
                #(#arms,)*
                _ => __amp::None,
            }
        }
    })
}

fn arm(metric: &Metric) -> TokenStream {
    let (name, value) = (&metric.name, value(&metric.value, &quote!(metric)));
    quote!(#name => __amp::metric::Metric::mode(&#value))
}
