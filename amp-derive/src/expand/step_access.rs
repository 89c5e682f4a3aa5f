//! `LightningModule::step_access`: whether the struct's own functions allow a step to run as a CUDA
//! graph.

use proc_macro2::TokenStream;
use quote::quote;

use crate::model::{Lightning, Step};

pub(super) fn expand(lightning: &Lightning) -> TokenStream {
    let own = |name: &str| lightning.hooks.iter().find(|own| own.hook.name == name);
    let access = if matches!(lightning.training, Step::Manual(_)) {
        quote!(Within("the model optimizes manually"))
    } else if matches!(lightning.training, Step::Function { captured: false, .. }) {
        quote!(Within("the model's training step is a function that does not say `captured`"))
    } else if own("on_before_optimizer_step").is_some() {
        quote!(Within("the model has an on_before_optimizer_step"))
    } else if own("on_train_batch_end").is_some_and(|own| !own.late) {
        quote!(EachStep)
    } else {
        quote!(Late)
    };
    quote! {
        fn step_access(&self) -> __amp::StepAccess {
            __amp::StepAccess::#access
        }
    }
}
