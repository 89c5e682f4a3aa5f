//! Whether training steps run as CUDA graphs.

use serde::{Deserialize, Serialize};

use crate::named::named;

/// Whether training steps run as CUDA graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Graph {
    /// Steps run as CUDA graphs if possible, and otherwise without. If they cannot run as CUDA
    /// graphs on a CUDA device, a note gives the reason.
    #[default]
    Auto,
    /// Steps must run as CUDA graphs. If that is not possible, the run ends with an error that
    /// gives the reason.
    On,
    /// Steps never run as CUDA graphs.
    Off,
}

named!(Graph, "graph mode", {
    Auto => "auto",
    On => "on",
    Off => "off",
});
