//! The engines, and the speed of each.

use serde::{Deserialize, Serialize};

/// A program that trains in a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// This trainer, operator by operator.
    Eager,
    /// This trainer, with whole steps as CUDA graphs.
    Graph,
    /// The same with gradients in 16 bits, rounded as by the peers.
    #[serde(rename = "graph-16-bit")]
    Graph16Bit,
    /// The same, and the optimizer's state in 8 bits.
    GraphLean,
    /// This trainer's CUDA graphs without the invariants of training, which it checks by default.
    GraphUnchecked,
    /// Lightning.
    Lightning,
    /// A handwritten loop in PyTorch.
    TorchLoop,
    /// The same with fused AdamW.
    TorchFused,
    /// The same compiled by torch.compile with mode reduce-overhead.
    TorchCompile,
    /// The same in torch.compile's default mode.
    TorchCompileDefault,
    /// The same with mode max-autotune-no-cudagraphs.
    TorchCompileAutotuned,
}

impl Engine {
    /// The engines of the peers' program, in the tables' order.
    pub const PEERS: [Self; 6] = [
        Self::Lightning,
        Self::TorchLoop,
        Self::TorchFused,
        Self::TorchCompile,
        Self::TorchCompileDefault,
        Self::TorchCompileAutotuned,
    ];

    /// Its name in tables and in the peers' protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Graph => "graph",
            Self::Graph16Bit => "graph-16-bit",
            Self::GraphLean => "graph-lean",
            Self::GraphUnchecked => "graph-unchecked",
            Self::Lightning => "lightning",
            Self::TorchLoop => "torch-loop",
            Self::TorchFused => "torch-fused",
            Self::TorchCompile => "torch-compile",
            Self::TorchCompileDefault => "torch-compile-default",
            Self::TorchCompileAutotuned => "torch-compile-autotuned",
        }
    }

    /// Whether it belongs to this workspace.
    pub fn is_ours(self) -> bool {
        self == Self::Eager || self.is_graph()
    }

    /// Whether it is this trainer with CUDA graphs.
    pub fn is_graph(self) -> bool {
        matches!(self, Self::Graph | Self::Graph16Bit | Self::GraphLean | Self::GraphUnchecked)
    }
}

/// The measurements of one candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Who.
    pub engine: Engine,
    /// Steps per second in each round.
    pub rates: Vec<f64>,
    /// The most tensor bytes at once, over all rounds.
    pub peak_memory_bytes: Option<u64>,
    /// Seconds from building the model to the end of its first step.
    pub first_step_seconds: Option<f64>,
    /// The reason why it was left out.
    pub failure: Option<String>,
}
