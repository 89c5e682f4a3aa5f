//! The hooks of the training loop.

use crate::symbol;

/// A hook of the training loop: what it is given and what a function for it looks like.
#[derive(Debug)]
pub(crate) struct Hook {
    pub(crate) name: &'static str,
    pub(crate) takes: &'static [Given],
    pub(crate) signature: &'static str,
}

/// What a hook is given besides the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given {
    Gradients,
    Loss,
    Outcome,
    Hook,
}

const fn hook(name: &'static str, takes: &'static [Given], signature: &'static str) -> Hook {
    Hook { name, takes, signature }
}

const PLAIN: &str = "fn(&mut Self) -> Result<()>";
const WITH_HOOK: &str = "fn(&mut Self, &mut Hook<'_>) -> Result<()>";

pub(crate) const HOOKS: &[Hook] = &[
    hook(symbol::ON_TRAIN_START, &[], PLAIN),
    hook(symbol::ON_TRAIN_EPOCH_START, &[Given::Hook], WITH_HOOK),
    hook(
        symbol::ON_BEFORE_OPTIMIZER_STEP,
        &[Given::Gradients, Given::Hook],
        "fn(&mut Self, &Gradients<Unscaled>, &mut Hook<'_>) -> Result<()>",
    ),
    hook(
        symbol::ON_TRAIN_BATCH_END,
        &[Given::Loss, Given::Outcome, Given::Hook],
        "fn(&mut Self, &Tensor, Option<&StepOutcome>, &mut Hook<'_>) -> Result<()>",
    ),
    hook(symbol::ON_TRAIN_EPOCH_END, &[Given::Hook], WITH_HOOK),
    hook(symbol::ON_VALIDATION_EPOCH_END, &[Given::Hook], WITH_HOOK),
    hook(symbol::ON_TRAIN_END, &[], PLAIN),
];
