//! Optimizer steps: examples → forward and backward → unscale → clip → apply → report.
//!
//! [`Steps`] decides [how a step runs](eager_or_graph): [operator by operator](eager), as a CUDA
//! [graph], or as the model's [own step](manual). The first two give the same results. All three
//! share the code for the [state] between steps, the [forward and backward
//! passes](forward_backward) and the [optimization]. [Recovery](recovery) decides what follows a
//! step that is not finite. The [invariants] of training are checked in all of them.

mod direct;
mod eager;
mod eager_or_graph;
mod executor;
mod explain_non_finite;
mod first_gradients;
mod forward_backward;
mod graph;
mod invariants;
mod last_good;
mod lost_updates;
mod manual;
mod memory_budget;
mod micro_batches;
mod observers;
mod optimization;
mod profile;
mod recovery;
mod report;
mod rollback;
mod run_length;
mod sampled_elements;
mod state;
mod tensor_copies;
mod weight_average;

pub(super) use self::{
    eager_or_graph::Steps,
    executor::Ended,
    graph::step_access,
    invariants::{Invariants, Moment},
    memory_budget::{plan_memory, try_plan},
    micro_batches::{Examples, halves},
    observers::{Callbacks, Emit, Observers},
    optimization::{Optimization, full_gradients_note},
    rollback::StateBackup,
    run_length::Length,
    state::{Counts, StepState},
    weight_average::average_bytes,
};

pub use self::invariants::Invariant;
