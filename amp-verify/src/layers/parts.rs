//! Divides a model's layers into parts. The layers of one part are measured together, because the
//! tensors of all layers may not fit into memory.

use std::ops::Range;

use amp_core::{Result, memory::cuda_free, tch::Device};

use super::pass::Ran;

/// The number of f64 values that are kept for each element of a layer's input and output: one value
/// and one gradient from each of four steps and up to eight separate runs of the layer.
const COPIES: usize = 24;
/// The number of f64 values that are kept for each element of a layer's parameters: one gradient
/// from each of four steps and up to eight separate runs of the layer.
const OF_PARAMETERS: usize = 12;

/// The default of `Options::budget`, in bytes.
pub(super) const BUDGET: usize = 4 << 30;
/// On a GPU, the budget is the free memory divided by this number, if the quotient is more than the
/// requested budget.
const SHARE: usize = 2;

/// Returns how many bytes of layers' tensors may be kept at once. `wanted` is `Options::budget`. On
/// a GPU, returns half of the free memory if this is more than `wanted`, so that the layers are
/// divided into few parts, for each of which the whole step runs again. A `wanted` below the
/// default is returned unchanged.
pub(super) fn budget(device: Device, wanted: usize) -> Result<usize> {
    if !device.is_cuda() || wanted < BUDGET {
        return Ok(wanted);
    }
    let free = usize::try_from(cuda_free(device)?).unwrap_or(wanted);
    Ok(wanted.max(free / SHARE))
}

fn bytes(call: &Ran) -> usize {
    let (values, parameters) = call.numbers;
    8 * (COPIES * values + OF_PARAMETERS * parameters)
}

/// Divides the layers into ranges of consecutive layers, such that the tensors of each range fit
/// into `budget` bytes.
pub(super) fn parts(calls: &[Ran], budget: usize) -> Vec<Range<usize>> {
    let (mut parts, mut start, mut sum) = (Vec::new(), 0, 0);
    for (at, call) in calls.iter().enumerate() {
        if sum > 0 && sum + bytes(call) > budget {
            parts.push(start..at);
            (start, sum) = (at, 0);
        }
        sum += bytes(call);
    }
    if start < calls.len() {
        parts.push(start..calls.len());
    }
    parts
}

/// Returns how many of `all` examples are used, so that the tensors of the largest layer fit into
/// `budget` bytes: at least 2 if there are 2, because batch statistics need two examples.
pub(super) fn examples(calls: &[Ran], all: i64, budget: usize) -> i64 {
    let largest = calls.iter().map(bytes).max().unwrap_or_default();
    match largest > budget {
        true => ((all as f64 * budget as f64 / largest as f64) as i64).clamp(2.min(all), all),
        false => all,
    }
}

#[cfg(test)]
mod tests {
    use amp_core::{
        nn::Op,
        tch::{Device, Kind, Tensor},
    };

    use super::*;

    /// Creates a layer with `values` elements in its input and output and `parameters` elements in
    /// its parameters. Measuring it takes 192 bytes for each of the former and 96 bytes for each of
    /// the latter.
    fn layer(values: usize, parameters: usize) -> Ran {
        let empty = || Tensor::zeros([0], (Kind::Float, Device::Cpu));
        Ran {
            path: String::new(),
            op: Op::Other,
            numbers: (values, parameters),
            input: empty(),
            output: empty(),
            output_gradient: None,
            input_gradient: None,
            reruns: Vec::new(),
        }
    }

    #[test]
    fn consecutive_layers_share_a_part_within_the_budget() {
        let calls = [layer(1, 0), layer(1, 0), layer(0, 2), layer(9, 0), layer(1, 0)];
        assert_eq!(parts(&calls, 600), [0..3, 3..4, 4..5]);
        assert_eq!(parts(&calls, usize::MAX), vec![0..calls.len()]);
        // A layer that does not fit into the budget becomes a part of its own.
        assert_eq!(parts(&calls, 1), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert!(parts(&[], 1).is_empty());
    }

    #[test]
    fn a_layer_beyond_the_budget_takes_fewer_examples() {
        let calls = [layer(10, 0), layer(1, 0)];
        assert_eq!(examples(&calls, 16, 1920), 16);
        assert_eq!(examples(&calls, 16, 480), 4);
        assert_eq!(examples(&calls, 16, 1), 2);
        assert_eq!(examples(&calls, 1, 1), 1);
    }
}
