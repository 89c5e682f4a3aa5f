//! The cross entropy of a linear layer's outputs, computed without storing all outputs at once.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use super::{
    ClassDim, CrossEntropy, Loss,
    shapes::{describe, option},
};
use crate::{Error, Result, ffi, precision::autocast_state};

/// About the smallest number of rows in a chunk, unless such a chunk has more than `MOST_LOGITS`
/// logits. Small chunks are slow: each chunk reads and writes the gradient of the weight once more,
/// and matrix products with few rows do not use the whole device. On an H200, with 16384 rows,
/// 50304 classes and 768 features, the matrix products take 2 % longer in chunks of 8192 rows than
/// without chunks, 5 % longer in chunks of 4096 rows and 14 % longer in chunks of 2048 rows.
const ROWS: i64 = 8192;

/// About the smallest number of logits in a chunk. With fewer logits in all, no chunks are used.
const LOGITS: i64 = 1 << 27;

/// About the largest number of logits in a chunk. In 16 bits they take 1 GiB.
const MOST_LOGITS: i64 = 1 << 29;

thread_local! {
    static CHOSEN: Cell<Option<i64>> = const { Cell::new(None) };
}

/// A guard for tests, so that they can test chunks with a small layer. While it exists, the losses
/// on this thread compute linear output layers in chunks of the given number of rows, wherever
/// chunks are possible.
#[doc(hidden)]
#[derive(Debug)]
pub struct ChunksOf(());

impl ChunksOf {
    /// Sets the number of rows in a chunk.
    pub fn rows(rows: i64) -> Self {
        CHOSEN.set(Some(rows));
        Self(())
    }
}

impl Drop for ChunksOf {
    fn drop(&mut self) {
        CHOSEN.set(None);
    }
}

impl CrossEntropy {
    /// Computes the loss of the logits `input`·`weight`ᵀ + `bias`, without storing all logits at
    /// once. The logits are those of [`nn::linear`](crate::nn::linear). The input is treated as a
    /// matrix with one row for each element of the target, and the logits are computed for some of
    /// these rows (a chunk) at a time.
    ///
    /// If `rows` is given, each chunk has this number of rows. Without `rows`, a chunk has about
    /// 8192 rows: more if 8192 rows have fewer than 2²⁷ logits, and fewer if 8192 rows have more
    /// than 2²⁹ logits. If the input has less than one and a half times that number of rows, all
    /// logits are computed at once. Up to rounding, the loss and the gradients are the same as
    /// without chunks, because sums over chunks are f32 or wider.
    ///
    /// The forward pass already computes the gradients, for the sum of the losses without a loss
    /// scale. The backward pass only multiplies them by the gradient of the loss, which contains
    /// the loss scale and the division for a mean. The f16 gradients of the logits therefore depend
    /// neither on the loss scale nor on this division.
    ///
    /// | tensor | shape |
    /// | --- | --- |
    /// | `input` | `[…, in_features]` |
    /// | `weight` | `[classes, in_features]` |
    /// | `bias` | `[classes]` |
    /// | `target` | `[…]`, int64 |
    ///
    /// If there are class weights, if the targets are probabilities, or if the dtype of `weight`
    /// has 16 bits, all logits are computed at once. If second derivatives are needed, the backward
    /// pass computes all logits at once.
    ///
    /// # Errors
    /// When `rows` is below 1, or when output, target or options are not as [`CrossEntropy`]
    /// requires.
    ///
    /// ```
    /// use amp_core::{loss::{CrossEntropy, Loss}, nn, tch::{Device, Kind, Tensor}};
    ///
    /// # fn main() -> amp_core::Result<()> {
    /// let draw = |size: [i64; 2]| Tensor::randn(size, (Kind::Double, Device::Cpu));
    /// let (x, weight, target) = (draw([6, 4]), draw([10, 4]), Tensor::arange(6, (Kind::Int64, Device::Cpu)));
    /// let loss = CrossEntropy::default();
    /// let chunked = loss.of_linear(&x, &weight, None, &target, Some(2))?;
    /// let whole = loss.compute(&nn::linear(&x, &weight, None)?, &target)?;
    /// assert!((chunked - whole).abs().double_value(&[]) < 1e-12);
    /// # Ok(())
    /// # }
    /// ```
    pub fn of_linear(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        target: &Tensor,
        rows: Option<i64>,
    ) -> Result<Tensor> {
        match self.in_chunks(input, weight, bias, target, rows, None)? {
            Some(loss) => Ok(loss),
            None => {
                let logits = ffi::linear(input, weight, bias)?;
                let (rows, of_rows) = self.class_dim_of_linear().resolve(&logits, target)?;
                self.compute(&rows, &of_rows)
            }
        }
    }

    /// Returns which dimension of a linear layer's output holds the classes: the last one, unless
    /// the option `classes` is set.
    pub(crate) fn class_dim_of_linear(&self) -> ClassDim {
        match self.classes {
            ClassDim::Either => ClassDim::Last,
            chosen => chosen,
        }
    }

    /// Computes [`of_linear`](Self::of_linear) in chunks, and calls `each` with the logits of each
    /// chunk. Returns `None` if the loss cannot be computed in chunks, or if chunks would be too
    /// small.
    pub(crate) fn in_chunks(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        target: &Tensor,
        rows: Option<i64>,
        each: Option<&mut ffi::EachChunk<'_>>,
    ) -> Result<Option<Tensor>> {
        self.check_options()?;
        let given = rows.unwrap_or(1);
        option("cross_entropy", "rows", given as f64, given >= 1, "at least 1")?;
        let fits = self.weight.is_none()
            && computed_in_chunks(input, weight, bias)?.is_some()
            && self.are_classes_of(target, input, weight.size()[0]);
        let rows = rows.or_else(|| rows_of_chunk(input, weight)).filter(|_| fits);
        let Some(rows) = rows else { return Ok(None) };
        let options = ffi::LinearCrossEntropyOptions {
            smoothing: self.label_smoothing,
            left_out: self.ignore_index,
            z: self.z_loss,
            rows,
        };
        let loss = ffi::linear_cross_entropy(input, weight, bias, target, &options, each);
        loss.map(Some).map_err(|error| match &error {
            Error::Torch(text) if !error.is_out_of_memory() => Error::config(format!(
                "cross_entropy: the input of the output layer is {}, its weight {} and the target {}: {text} \
                 Classes are numbered from 0; the class {} is ignored",
                describe(input),
                describe(weight),
                describe(target),
                self.ignore_index
            )),
            _ => error,
        })
    }

    /// Returns whether the target contains a class for each row of the input.
    fn are_classes_of(&self, target: &Tensor, input: &Tensor, classes: i64) -> bool {
        let (sizes, of_target) = (input.size(), target.size());
        let leading = &sizes[..sizes.len() - 1];
        // With `ClassDim::Second`, logits `[N, L, C]` with L = C have their classes in dimension 1,
        // so a row does not contain the logits of one element.
        let is_second = self.classes == ClassDim::Second
            && leading.len() > 1
            && [&leading[2..], &[classes]].concat() == of_target[1..];
        target.kind() == Kind::Int64
            && target.device() == input.device()
            && of_target == leading
            && !is_second
    }
}

/// Returns the dtype in which the logits of this layer are computed in chunks. Returns `None` if
/// the layer cannot be computed in chunks, or if there would be less than one and a half chunks.
pub(crate) fn pays_in_chunks(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Option<Kind>> {
    let kind = computed_in_chunks(input, weight, bias)?;
    Ok(kind.filter(|_| rows_of_chunk(input, weight).is_some()))
}

/// Returns the number of rows in a chunk. All chunks have about the same size, which may be up to a
/// quarter below or above the size that the constants ask for. Returns `None` if there would be
/// less than one and a half chunks.
fn rows_of_chunk(input: &Tensor, weight: &Tensor) -> Option<i64> {
    if let Some(chosen) = CHOSEN.get() {
        return Some(chosen);
    }
    let (features, classes) = (*input.size().last()?, weight.size()[0]);
    let rows = input.numel() as i64 / features;
    let least = (LOGITS / classes).max(ROWS.min((MOST_LOGITS / classes).max(1)));
    let chunks = (rows + least / 2) / least;
    (chunks > 1).then(|| (rows + chunks - 1) / chunks)
}

/// Returns the dtype in which the logits of this layer would be computed in chunks. Returns `None`
/// if the layer cannot be computed in chunks.
fn computed_in_chunks(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Option<Kind>> {
    let device = input.device();
    let (sizes, of_weight) = (input.size(), weight.size());
    let (&[classes, features], [_, ..]) = (of_weight.as_slice(), &sizes[..sizes.len().max(1) - 1])
    else {
        return Ok(None);
    };
    let numbers = 2..=i64::from(i32::MAX);
    let rows = sizes[..sizes.len() - 1].iter().product::<i64>();
    let fits = matches!(device, Device::Cpu | Device::Cuda(_))
        && device == weight.device()
        && sizes.last() == Some(&features)
        && features > 0
        && rows > 0
        && rows <= *numbers.end()
        && numbers.contains(&classes)
        && bias.is_none_or(|bias| {
            bias.size() == [classes] && bias.device() == device && bias.kind() == weight.kind()
        });
    if !fits {
        return Ok(None);
    }
    let half = |kind: &Kind| matches!(kind, Kind::Half | Kind::BFloat16);
    let (of_input, own) = (input.kind(), weight.kind());
    let autocast = autocast_state(device)?;
    if autocast.enabled {
        let casts = own == Kind::Float && (of_input == Kind::Float || half(&of_input));
        return Ok(autocast.dtype.filter(|kind| half(kind) && casts));
    }
    let is_wide = of_input == own && matches!(own, Kind::Float | Kind::Double);
    Ok(is_wide.then_some(own))
}
