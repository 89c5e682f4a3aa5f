//! Losses of sequences whose alignment with the labels is not known.

use tch::{Kind, Reduction, Tensor};

use super::{IGNORED, Loss, MeanOver, shapes::misfit};
use crate::{Result, precision::is_floating};

/// Connectionist temporal classification (Graves et al. 2006). The output contains log
/// probabilities `[N, T, C]`, batch first. The target contains int64 labels `[N, S]` without
/// blanks; each row is padded at its end with -100. As in torch, the mean divides the loss of each
/// example by the example's number of labels, and then averages over the examples.
///
/// libtorch reads the lengths on the host, so a step with this loss cannot be recorded as a CUDA
/// graph. With [`Graph::Auto`](crate::trainer::Graph::Auto) the steps run without a graph, and a
/// note says why. With `Graph::On` this is an error. cuDNN has a kernel that reads the lengths on
/// the device, but it is not used, for two reasons. It supports only f32 and the blank 0. It reads
/// out of bounds if there are more labels than steps or at least 256 labels, which a recorded step
/// cannot check.
///
/// # Errors
/// When shapes or dtypes are invalid, or libtorch refuses a length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ctc {
    /// The number of the blank class. The default is 0.
    pub blank: i64,
    /// Whether an infinite loss, which occurs if there are more labels than steps, is replaced by 0
    /// with a gradient of 0.
    pub zero_infinity: bool,
}

impl Ctc {
    /// Computes the loss of outputs with these lengths (`[N]`, int64). With the reduction `None`,
    /// returns the loss of each example, `[N]`.
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
        const NAME: &str = "ctc_loss";
        let (sizes, of) = (output.size(), target.size());
        let fits = sizes.len() == 3 && of.len() == 2 && sizes[0] == of[0];
        if !fits || !is_floating(output.kind()) || target.kind() != Kind::Int64 {
            let why = "log probabilities are [N, T, C], and labels int64 [N, S], padded with -100";
            return Err(misfit(NAME, output, target, why));
        }
        if lengths.size() != [sizes[0]] || lengths.kind() != Kind::Int64 {
            return Err(misfit(NAME, output, lengths, "lengths are int64 [N]"));
        }
        let kept = target.f_ne(IGNORED)?;
        let labels = kept.f_sum_dim_intlist([1].as_slice(), false, Kind::Int64)?;
        let target = target.f_masked_fill(&kept.f_logical_not()?, self.blank)?;
        let steps_first = output.f_transpose(0, 1)?;
        Ok(Tensor::f_ctc_loss_tensor(
            &steps_first,
            &target,
            lengths,
            &labels,
            self.blank,
            reduction,
            self.zero_infinity,
        )?)
    }
}

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
        Some("ctc_loss reads the lengths of outputs and labels on the host")
    }
}
