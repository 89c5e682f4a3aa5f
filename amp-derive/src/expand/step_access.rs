//! `LightningModule::step_access`: what the struct's own functions do to a step that might run as
//! a CUDA graph.

use proc_macro2::TokenStream;
use quote::quote;

use crate::model::{Lightning, Step};

pub(super) fn expand(lightning: &Lightning) -> TokenStream {
    let has = |name: &str| lightning.hooks.iter().any(|(hook, _)| hook.name == name);
    let access = if matches!(lightning.training, Step::Function(_)) {
        quote!(Within("the model's training step is a function of its own"))
    } else if has("on_before_optimizer_step") {
        quote!(Within("the model has an on_before_optimizer_step"))
    } else if has("on_train_batch_end") && !lightning.late {
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
