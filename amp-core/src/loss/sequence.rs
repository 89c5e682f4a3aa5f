//! A loss for sequences of labels if the time step of each label is not known (CTC).

use tch::{Kind, Reduction, Tensor};

use super::{
    IGNORED, Loss, MeanOver,
    shapes::{are_log_probabilities, computed_in, misfit},
};
use crate::{
    Result, ffi,
    precision::{f32_or_f64, is_floating},
};

const NAME: &str = "ctc_loss";

/// Connectionist temporal classification (Graves et al. 2006). The output contains log
/// probabilities of shape `[N, T, C]` for N examples, T time steps and C classes. The target
/// contains int64 labels of shape `[N, S]`, without blanks. Rows with fewer than S labels are
/// padded at their end with -100.
///
/// As in torch, the mean divides the loss of each example by the example's number of labels, and
/// then averages over the examples. The log probabilities must come from a log softmax: as in
/// torch, the gradient is correct only for such probabilities. As in torch, second derivatives are
/// not supported.
///
/// On CUDA this crate's kernels read the lengths of outputs and labels on the device, so that steps
/// can run as CUDA graphs. With [`Kernels::Libtorch`](crate::precision::Kernels::Libtorch) the host
/// reads them, and steps run without CUDA graphs.
///
/// # Errors
/// When shapes or dtypes are invalid, a label is below 0, at least C or equal to `blank`, -100
/// precedes a label in the same row, or a length is not between 0 and T. On the CPU also when a log
/// probability is above 0.001: the output then contains logits, for which torch would return a
/// number without meaning.
///
/// In a step that runs as a CUDA graph, an invalid label or length makes the loss of its example
/// NaN. The trainer then repeats the step without a graph, and the repeated step reports the error.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ctc {
    /// The index of the blank class. The default is 0.
    pub blank: i64,
    /// Whether an infinite loss is replaced by 0 with a gradient of 0. The loss is infinite if an
    /// example has too few time steps for its labels.
    pub zero_infinity: bool,
}

impl Ctc {
    /// Computes the loss with the given reduction. `lengths` contains the number of time steps of
    /// each example, as int64 of shape `[N]` on the output's device. With `Reduction::None` the
    /// result is the loss of each example, of shape `[N]`.
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::{prelude::*, tch::Reduction};
    ///
    /// #[derive(Batch)]
    /// struct Utterances {
    ///     features: Tensor,
    ///     #[batch(ids)]
    ///     lengths: Tensor,
    ///     #[batch(ids)]
    ///     phonemes: Tensor,
    /// }
    ///
    /// /// For a model with `#[batch(Utterances, inputs(features), target = batch)]` and
    /// /// `#[loss(with = ctc, of = examples)]`.
    /// fn ctc(output: &Tensor, batch: &Utterances) -> Result<Tensor> {
    ///     loss::Ctc::default().reduced(output, &batch.phonemes, &batch.lengths, Reduction::Mean)
    /// }
    /// # fn main() { let _ = ctc; }
    /// ```
    ///
    /// # Errors
    /// When output, target or options are not as [`Ctc`] requires.
    pub fn reduced(
        &self,
        output: &Tensor,
        target: &Tensor,
        lengths: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor> {
        self.check(output, target, lengths)?;
        let counts = target.f_ne(IGNORED)?.f_sum_dim_intlist([1].as_slice(), false, Kind::Int64)?;
        let kind = f32_or_f64(output.kind());
        let each = self.each(&output.f_to_kind(kind)?, target, [lengths, &counts])?;
        let loss = match reduction {
            Reduction::Mean => each.f_div(&counts.f_clamp_min(1)?)?.f_mean(kind)?,
            Reduction::Sum => each.f_sum(kind)?,
            _ => each,
        };
        Ok(loss.f_to_kind(computed_in(output)?)?)
    }

    /// Computes the loss of each example.
    fn each(
        &self,
        output: &Tensor,
        target: &Tensor,
        [lengths, counts]: [&Tensor; 2],
    ) -> Result<Tensor> {
        let Self { blank, zero_infinity } = *self;
        if output.device().is_cuda()
            && ffi::own_kernels()
            && let Some(each) =
                ffi::ctc_loss(output, target, [lengths, counts], blank, zero_infinity)?
        {
            return Ok(each);
        }
        let labels = target.f_masked_fill(&target.f_eq(IGNORED)?, blank)?;
        Ok(Tensor::f_ctc_loss_tensor(
            &output.f_transpose(0, 1)?,
            &labels,
            lengths,
            counts,
            blank,
            Reduction::None,
            zero_infinity,
        )?)
    }

    fn check(&self, output: &Tensor, target: &Tensor, lengths: &Tensor) -> Result<()> {
        let (sizes, of) = (output.size(), target.size());
        let ([examples, steps, classes], [rows, _]) = (sizes.as_slice(), of.as_slice()) else {
            return Err(misfit(NAME, output, target, SHAPES));
        };
        let kinds = is_floating(output.kind()) && target.kind() == Kind::Int64;
        if examples != rows || !kinds {
            return Err(misfit(NAME, output, target, SHAPES));
        }
        if lengths.size() != [*examples] || lengths.kind() != Kind::Int64 {
            return Err(misfit(NAME, output, lengths, "lengths must be int64 [N]"));
        }
        let device = output.device();
        if [target, lengths].iter().any(|tensor| tensor.device() != device) {
            let why = format!("labels and lengths must be on the output's device, {device:?}");
            return Err(misfit(NAME, output, target, &why));
        }
        if !(0..*classes).contains(&self.blank) {
            let why = format!("the blank is class {}, but there are {classes} classes", self.blank);
            return Err(misfit(NAME, output, target, &why));
        }
        // While a step is captured as a CUDA graph, the host cannot read the values, so the kernels
        // check them.
        if ffi::is_capturing() {
            return Ok(());
        }
        are_log_probabilities(NAME, "the output", output, [output, target])?;
        let labels = target.f_ne(IGNORED)?;
        let outside = target.f_lt(0)?.f_logical_or(&target.f_ge(*classes)?)?;
        let after = labels.f_slice(1, 1, None, 1)?;
        let before = labels.f_slice(1, 0, -1, 1)?;
        let faults = [
            outside.f_logical_and(&labels)?.f_any()?,
            target.f_eq(self.blank)?.f_any()?,
            after.f_logical_and(&before.f_logical_not()?)?.f_any()?,
            lengths.f_lt(0)?.f_logical_or(&lengths.f_gt(*steps)?)?.f_any()?,
        ];
        let faults = Vec::<bool>::try_from(Tensor::f_stack(&faults, 0)?)?;
        let whys = [
            format!("a label is out of range: classes are numbered from 0 to {}", classes - 1),
            format!(
                "a label is {}, the class that is reserved for the blank; pad labels with -100",
                self.blank
            ),
            "-100 stands before a label, but may only pad the end of a row".to_owned(),
            format!("a length is not between 0 and the number of time steps, {steps}"),
        ];
        match faults.iter().position(|fault| *fault) {
            Some(at) => Err(misfit(NAME, output, target, &whys[at])),
            None => Ok(()),
        }
    }
}

const SHAPES: &str =
    "log probabilities must be [N, T, C], and labels int64 [N, S], padded with -100";

impl Loss for Ctc {
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        let sizes = output.size();
        let [examples, steps] = [0, 1].map(|at| sizes.get(at).copied().unwrap_or(0));
        let lengths = Tensor::f_full([examples], steps, (Kind::Int64, output.device()))?;
        self.reduced(output, target, &lengths, Reduction::Mean)
    }

    fn mean_over(&self) -> MeanOver<'_> {
        MeanOver::Examples
    }

    fn outside_graphs(&self) -> Option<&'static str> {
        let reason = "libtorch's ctc_loss reads the lengths of outputs and labels on the host";
        (!ffi::own_kernels()).then_some(reason)
    }
}
