//! The engines that a benchmark compares, and the measurements of an engine.

use serde::{Deserialize, Serialize};

/// A program that trains in a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// This library's trainer without CUDA graphs: the host launches the kernels of each operator
    /// one after the other.
    Eager,
    /// This library's trainer. The device runs each whole step as a CUDA graph.
    Graph,
    /// This library's trainer, with CUDA graphs and with the gradients of linear layers rounded to
    /// 16 bits, as PyTorch does in mixed precision.
    #[serde(rename = "graph-16-bit")]
    Graph16Bit,
    /// The same as `Graph16Bit`, with the optimizer's state in 8 bits.
    GraphLean,
    /// This library's trainer, with CUDA graphs, but without the checks of the training invariants.
    GraphUnchecked,
    /// PyTorch Lightning.
    Lightning,
    /// A training loop in PyTorch, without Lightning.
    TorchLoop,
    /// The PyTorch loop, with the fused implementation of AdamW.
    TorchFused,
    /// The PyTorch loop with fused AdamW, compiled by torch.compile with mode reduce-overhead.
    TorchCompile,
    /// The PyTorch loop with fused AdamW, compiled by torch.compile in its default mode.
    TorchCompileDefault,
    /// The PyTorch loop with fused AdamW, compiled by torch.compile with mode
    /// max-autotune-no-cudagraphs.
    TorchCompileAutotuned,
}

impl Engine {
    /// The peers: the PyTorch engines with which this library's trainer is compared, in the order
    /// in which tables list them. A Python program runs them.
    pub const PEERS: [Self; 6] = [
        Self::Lightning,
        Self::TorchLoop,
        Self::TorchFused,
        Self::TorchCompile,
        Self::TorchCompileDefault,
        Self::TorchCompileAutotuned,
    ];

    /// Returns the name of the engine in tables and in the arguments of the Python program that
    /// runs the peers.
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

    /// Returns whether the engine is a variant of this library's trainer.
    pub fn is_ours(self) -> bool {
        self == Self::Eager || self.is_graph()
    }

    /// Returns whether the engine is a variant of this library's trainer with CUDA graphs.
    pub fn is_graph(self) -> bool {
        matches!(self, Self::Graph | Self::Graph16Bit | Self::GraphLean | Self::GraphUnchecked)
    }
}

/// What was measured for one engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// The engine that was measured.
    pub engine: Engine,
    /// The speed in each round, in steps per second.
    pub rates: Vec<f64>,
    /// The largest number of bytes that tensors occupied at one time, over all rounds.
    pub peak_memory_bytes: Option<u64>,
    /// The time in seconds from building the model to the end of the first training step. `None` if
    /// it is not measured.
    pub first_step_seconds: Option<f64>,
    /// The reason why the engine was not measured. `None` if the engine was measured.
    pub failure: Option<String>,
}
