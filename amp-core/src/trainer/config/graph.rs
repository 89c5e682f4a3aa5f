//! Whether steps run as CUDA graphs.

use serde::{Deserialize, Serialize};

use crate::named::named;

/// Whether steps run as CUDA graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Graph {
    /// Where possible; a note says why not.
    #[default]
    Auto,
    /// Required; if it is not possible, an error says why.
    On,
    /// Never.
    Off,
}

named!(Graph, "graph mode", {
    Auto => "auto",
    On => "on",
    Off => "off",
});
