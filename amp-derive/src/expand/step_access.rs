//! Generates `LightningModule::step_access`, which says whether the user's functions allow a step
//! to run as a CUDA graph.

use proc_macro2::TokenStream;
use quote::quote;

use super::{log, values_in_step};
use crate::model::{Lightning, Model, Step};

pub(super) fn expand(model: &Model, lightning: &Lightning) -> TokenStream {
    let own = |name: &str| lightning.hooks.iter().find(|own| own.hook.name == name);
    // Later steps may start before a hook marked `late` runs. But the hook may change a `#[state]`
    // field. If the training step reads such a field, the hook must run before the next step.
    let reads_values = values_in_step::may_read_state(model, &lightning.training);
    let access = if matches!(lightning.training, Step::Manual(_)) {
        quote!(InStep("the model optimizes manually"))
    } else if matches!(lightning.training, Step::Function { captured: false, .. }) {
        quote!(InStep("the model's training step is a function that is not marked `captured`"))
    } else if own("on_before_optimizer_step").is_some() {
        quote!(InStep("the model has the hook on_before_optimizer_step"))
    } else if values_in_step::may_read_transient(model, &lightning.training) {
        quote!(InStep("the model's training step may read a #[transient] field"))
    } else if own("on_train_batch_end").is_some_and(|own| !own.late || reads_values) {
        quote!(PerStep)
    } else {
        quote!(Deferred)
    };
    let of_loss = match &lightning.training {
        Step::Generated { loss, .. } => log::loss_access(loss),
        Step::Function { .. } | Step::Manual(_) => None,
    };
    let of_loss = of_loss.map(|access| quote!(.and(#access)));
    quote! {
        fn step_access(&self) -> __amp::StepAccess {
            __amp::StepAccess::#access #of_loss
        }
    }
}
