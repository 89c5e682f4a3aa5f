//! The names that attributes may use: layers, losses, metrics, optimizers and schedulers, each with
//! its arguments (keys).
//!
//! To add a layer, an optimizer or another entry, add a row here and its type in amp-core.

mod draws;
mod layer_options;
mod layers;
mod training;
mod values;

pub(crate) use draws::{DRAWS, Draw};
pub(crate) use layers::LAYERS;
pub(crate) use training::{OPTIMIZERS, SCHEDULERS};
pub(crate) use values::{LOSSES, METRICS};

use crate::symbol;

/// An argument of a layer, metric, optimizer or scheduler.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// The values that the argument may have.
    pub(crate) range: Range,
}

/// The values that an argument may have. The derive macro checks only literals, because it cannot
/// evaluate other expressions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    Any,
    /// A value `v`, or `Some(v)`, or `None`.
    Optional,
    /// A number that is greater than zero.
    Positive,
    /// A number that is zero or greater.
    NotNegative,
    /// A number from zero to one, both included.
    Fraction,
    /// One of these words, written without quotes. Each word is listed with the expression of
    /// amp-core that it stands for.
    Choice(&'static [(&'static str, &'static str)]),
    /// The name of a logged value, written without quotes.
    Logged,
    /// One number for all dimensions, or an array with one number for each. `Sizes(n)` accepts
    /// numbers of at least `n`.
    Sizes(i64),
    /// Like `Sizes(0)`, or the word `same`: the output then has the input's size.
    Padding,
    /// An expression whose value is a tensor, for example `self.weight`.
    Tensor,
    /// A list of positive numbers in ascending order.
    Rising,
}

impl Range {
    pub(crate) fn contains(self, value: f64) -> bool {
        match self {
            Self::Any
            | Self::Optional
            | Self::Choice(_)
            | Self::Logged
            | Self::Tensor
            | Self::Rising => true,
            Self::Positive => value > 0.0,
            Self::NotNegative | Self::Padding => value >= 0.0,
            Self::Sizes(least) => value >= least as f64,
            Self::Fraction => (0.0..=1.0).contains(&value),
        }
    }

    /// Returns the description of the range, which ends the sentence "takes a value …" in error
    /// messages.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Any
            | Self::Optional
            | Self::Choice(_)
            | Self::Logged
            | Self::Tensor
            | Self::Rising => "of any size",
            Self::Positive => "above 0",
            Self::NotNegative | Self::Padding | Self::Sizes(0) => "of at least 0",
            Self::Sizes(_) => "of at least 1",
            Self::Fraction => "between 0 and 1",
        }
    }
}

/// A row of a table: the name of a layer, loss, optimizer or other entry, and the keys that it
/// accepts.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The name by which attributes refer to the entry.
    pub(crate) name: &'static str,
    /// The name of the entry's type in amp-core.
    pub(crate) ty: &'static str,
    /// The required keys, in the order of the constructor's arguments.
    pub(crate) required: &'static [Key],
    /// The optional keys. Each of them has a default.
    pub(crate) options: &'static [Key],
}

impl Entry {
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'static Key> {
        self.required.iter().chain(self.options)
    }
}

/// How generated code constructs a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A unit struct.
    Unit,
    /// Calls `new(values…)`.
    Plain,
    /// Calls `new(config)`. The required keys are the arguments of the config's own `new`. The
    /// optional keys are fields of the config.
    Config,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) entry: Entry,
    pub(crate) form: Form,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) entry: Entry,
    /// The interval (step or epoch) at which the scheduler advances, unless the user gives another
    /// `interval`.
    pub(crate) interval: Interval,
}

/// The interval at which a scheduler changes the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interval {
    Step,
    Epoch,
}

/// A row of a table. Rows are found by their name.
pub(crate) trait Named {
    fn entry(&self) -> &Entry;
}

impl Named for Entry {
    fn entry(&self) -> &Entry {
        self
    }
}

impl Named for Layer {
    fn entry(&self) -> &Entry {
        &self.entry
    }
}

impl Named for Scheduler {
    fn entry(&self) -> &Entry {
        &self.entry
    }
}

/// Returns the row with the name `name`, if the table has one.
pub(crate) fn find<T: Named>(rows: &'static [T], name: &str) -> Option<&'static T> {
    rows.iter().find(|row| row.entry().name == name)
}

/// Returns the names of all rows of the table.
pub(crate) fn names<T: Named>(rows: &'static [T]) -> Vec<&'static str> {
    rows.iter().map(|row| row.entry().name).collect()
}

const fn any(name: &'static str) -> Key {
    Key { name, range: Range::Any }
}

const fn positive(name: &'static str) -> Key {
    Key { name, range: Range::Positive }
}

const fn not_negative(name: &'static str) -> Key {
    Key { name, range: Range::NotNegative }
}

const fn fraction(name: &'static str) -> Key {
    Key { name, range: Range::Fraction }
}

/// Creates a key whose value may also be `None` or `Some(…)`.
const fn optional(name: &'static str) -> Key {
    Key { name, range: Range::Optional }
}

const fn tensor(name: &'static str) -> Key {
    Key { name, range: Range::Tensor }
}

const fn choice(name: &'static str, words: &'static [(&'static str, &'static str)]) -> Key {
    Key { name, range: Range::Choice(words) }
}

/// Keyword arguments of PyTorch's layers, and the error message's advice for a layer of this
/// project that lacks the argument.
pub(crate) const NOT_NEEDED: &[(&str, &str)] = &[
    ("batch_first", "batches always have the batch dimension first: leave it out"),
    ("inplace", "layers never work in place: leave it out"),
    ("device", "the trainer moves the model to its device: leave it out"),
    ("dtype", "the trainer's precision sets it; for f32 in one field write `#[precision(fp32)]`"),
];

/// A hook of the training loop: its arguments, and the signature that a user's function for it must
/// have.
#[derive(Debug)]
pub(crate) struct Hook {
    pub(crate) name: &'static str,
    pub(crate) takes: &'static [HookArgument],
    pub(crate) signature: &'static str,
}

/// An argument that a hook gets after the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookArgument {
    Gradients,
    Loss,
    Outcome,
    Hook,
}

const fn hook(name: &'static str, takes: &'static [HookArgument], signature: &'static str) -> Hook {
    Hook { name, takes, signature }
}

const PLAIN: &str = "fn(&mut Self) -> Result<()>";
const WITH_HOOK: &str = "fn(&mut Self, &mut Hook<'_>) -> Result<()>";

pub(crate) const HOOKS: &[Hook] = &[
    hook(symbol::ON_TRAIN_START, &[], PLAIN),
    hook(symbol::ON_TRAIN_EPOCH_START, &[HookArgument::Hook], WITH_HOOK),
    hook(
        symbol::ON_BEFORE_OPTIMIZER_STEP,
        &[HookArgument::Gradients, HookArgument::Hook],
        "fn(&mut Self, &Gradients<Unscaled>, &mut Hook<'_>) -> Result<()>",
    ),
    hook(
        symbol::ON_TRAIN_BATCH_END,
        &[HookArgument::Loss, HookArgument::Outcome, HookArgument::Hook],
        "fn(&mut Self, &Tensor, Option<&StepOutcome>, &mut Hook<'_>) -> Result<()>",
    ),
    hook(symbol::ON_TRAIN_EPOCH_END, &[HookArgument::Hook], WITH_HOOK),
    hook(symbol::ON_VALIDATION_EPOCH_END, &[HookArgument::Hook], WITH_HOOK),
    hook(symbol::ON_TRAIN_END, &[], PLAIN),
];

#[cfg(test)]
mod tests;
