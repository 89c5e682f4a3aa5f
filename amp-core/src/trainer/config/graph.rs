//! Whether steps run as CUDA graphs.

use serde::{Deserialize, Serialize};

use crate::named::named;

/// Whether steps run as CUDA graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Graph {
    /// Steps run as graphs if possible; otherwise a note gives the reason.
    #[default]
    Auto,
    /// Steps must run as graphs; if that is impossible, an error gives the reason.
    On,
    /// Steps never run as graphs.
    Off,
}

named!(Graph, "graph mode", {
    Auto => "auto",
    On => "on",
    Off => "off",
});
