//! Detects operators that combine a column `[N, 1]` with a vector `[N]` (`csrc/broadcasts.cpp`).

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int},
    marker::PhantomData,
};

use tch::Tensor;

use super::{Handle, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_broadcasts_start(of_training: c_int) -> c_int;
    fn amp_broadcasts_stop() -> c_int;
    fn amp_broadcasts_note_batch(tensor: Handle) -> c_int;
    fn amp_broadcasts_note_output(tensor: Handle) -> c_int;
    fn amp_broadcasts_seen(op: *mut *const c_char, operands: *mut *const c_char) -> c_int;
}

thread_local! {
    static WATCHES: Cell<bool> = const { Cell::new(false) };
}

/// The operators that are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    /// Those that record gradients: the forward pass of training, but not the optimizer.
    Training,
    /// All operators, because validation records no gradients.
    Validation,
}

/// Watches this thread for elementwise operators that combine shapes such as `[N, 1]` and `[N]`,
/// which libtorch broadcasts to `[N, N]`. One operand must be an output of the model, and the other
/// must be a target. The watch ends when it is dropped. The watch is not `Send`, because its
/// callback belongs to the thread.
pub(crate) struct WatchedBroadcasts {
    _thread: PhantomData<*const ()>,
}

/// An operator that broadcasts a column and a vector.
pub(crate) struct Broadcast {
    pub(crate) operator: String,
    /// The shapes of the two operands, such as `[8, 1] and [8]`.
    pub(crate) operands: String,
}

impl WatchedBroadcasts {
    /// Starts a watch. Returns `None` if this thread has a watch already, as in a run that another
    /// run's hook starts.
    pub(crate) fn start(watched: Watched) -> Result<Option<Self>> {
        if Self::is_on() {
            return Ok(None);
        }
        checked!(amp_broadcasts_start((watched == Watched::Training).into()))?;
        WATCHES.set(true);
        Ok(Some(Self { _thread: PhantomData }))
    }

    /// Returns whether a watch exists on this thread.
    pub(crate) fn is_on() -> bool {
        WATCHES.get()
    }

    /// Tells the watch of this thread, if there is one, that these tensors are the batch.
    pub(crate) fn note_batch<'t>(tensors: impl IntoIterator<Item = &'t Tensor>) -> Result<()> {
        if !Self::is_on() {
            return Ok(());
        }
        tensors.into_iter().try_for_each(|own| checked!(amp_broadcasts_note_batch(own.as_ptr())))
    }

    /// Tells the watch of this thread, if there is one, that this tensor is an output of the model.
    pub(crate) fn note_output(tensor: &Tensor) -> Result<()> {
        match Self::is_on() {
            true => checked!(amp_broadcasts_note_output(tensor.as_ptr())),
            false => Ok(()),
        }
    }

    /// Returns the first such operator that ran since the watch was started.
    pub(crate) fn first(&self) -> Result<Option<Broadcast>> {
        let (mut op, mut operands) = (std::ptr::null(), std::ptr::null());
        checked!(amp_broadcasts_seen(&mut op, &mut operands))?;
        if op.is_null() {
            return Ok(None);
        }
        // SAFETY: both pointers are C strings of the shim. They are valid until the next watch of
        // this thread starts, and they are copied here.
        let (op, operands) = unsafe { (CStr::from_ptr(op), CStr::from_ptr(operands)) };
        let operator = op.to_string_lossy().trim_start_matches("aten::").to_owned();
        Ok(Some(Broadcast { operator, operands: operands.to_string_lossy().into_owned() }))
    }
}

impl Drop for WatchedBroadcasts {
    fn drop(&mut self) {
        WATCHES.set(false);
        // The call removes a callback. Its error is ignored, because `drop` cannot return it.
        let _ = checked!(amp_broadcasts_stop());
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tch::{Device, Kind};

    use super::*;

    const FLOATS: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Returns an output of ones, which records gradients, and a target of ones.
    fn pair(output: &[i64], target: &[i64]) -> (Tensor, Tensor) {
        let weights = Tensor::ones(output, FLOATS).set_requires_grad(true);
        (&weights * 1.0, Tensor::ones(target, FLOATS))
    }

    /// Returns the first operator that a watch reports while `run` runs. The watch is told that
    /// `batch` is the batch.
    fn seen_in(watched: Watched, batch: &Tensor, run: impl FnOnce()) -> Option<String> {
        let watch = WatchedBroadcasts::start(watched).expect("a callback").expect("no other watch");
        WatchedBroadcasts::note_batch([batch]).expect("a note");
        run();
        let first = watch.first().expect("a look");
        first.map(|Broadcast { operator, operands }| format!("{operator} of {operands}"))
    }

    fn seen(batch: &Tensor, run: impl FnOnce()) -> Option<String> {
        seen_in(Watched::Training, batch, run)
    }

    #[rstest]
    #[case::output_is_a_column(&[8, 1], &[8], "sub of [8, 1] and [8]")]
    #[case::target_is_a_column(&[8], &[8, 1], "sub of [8] and [8, 1]")]
    #[case::square_sequences(&[4, 4, 1], &[4, 4], "sub of [4, 4, 1] and [4, 4]")]
    fn a_column_and_a_vector_are_seen(#[case] a: &[i64], #[case] b: &[i64], #[case] text: &str) {
        let (a, b) = pair(a, b);
        assert_eq!(seen(&b, || drop(&a - &b)).as_deref(), Some(text));
        assert!(seen(&b, || drop(a.f_mse_loss(&b, tch::Reduction::Mean))).is_some());
    }

    /// Checks that a target need not be the batch: it may be a constant, a detached output, or
    /// computed without gradients.
    #[test]
    fn a_target_is_what_has_no_gradient() {
        let (output, batch) = pair(&[8, 1], &[8]);
        let targets = [
            Tensor::ones([8], FLOATS),
            output.detach().squeeze_dim(1),
            tch::no_grad(|| (&batch - 1.0) / 2.0),
        ];
        for target in targets {
            assert!(seen(&batch, || drop(&output - &target)).is_some());
        }
    }

    /// Checks that other broadcasts are not reported: equal shapes, a scalar, a bias, explicit
    /// pairs, and batches of one example.
    #[rstest]
    #[case(&[8, 1], &[8, 1])]
    #[case(&[8, 1], &[])]
    #[case(&[8, 4], &[4])]
    #[case(&[8, 1], &[4])]
    #[case(&[8, 1], &[1, 8])]
    #[case(&[1, 1], &[1])]
    fn other_broadcasts_are_not(#[case] a: &[i64], #[case] b: &[i64]) {
        let (a, b) = pair(a, b);
        assert_eq!(seen(&b, || drop(&a - &b)), None);
    }

    /// Checks that tables of all pairs are not reported: of data, of outputs, of a batch and a
    /// parameter, of an output that the code made a column, and of `outer`.
    #[test]
    fn tables_of_all_pairs_are_not() {
        let (output, batch) = pair(&[8], &[8]);
        let centers = Tensor::ones([8], FLOATS).set_requires_grad(true);
        for (a, b) in [(&output, &output), (&batch, &batch), (&batch, &centers), (&output, &batch)]
        {
            assert_eq!(seen(&batch, || drop(a.unsqueeze(1) - b)), None);
        }
        let wide = || drop(output.unsqueeze(1).to_kind(Kind::Double) - &batch);
        assert_eq!(seen(&batch, wide), None);
        assert_eq!(seen(&batch, || drop(output.outer(&batch))), None);
        assert!(seen(&batch, || drop(batch.unsqueeze(1) - &output)).is_some());
    }

    /// Checks that without gradients, as in validation, a watch follows where a tensor comes from:
    /// through integers, views, operators in place, indices, and operators that read only the shape
    /// or the dtype of the output.
    #[test]
    fn origins_are_followed_without_gradients() {
        let _no_grad = tch::no_grad_guard();
        let batch = Tensor::ones([8, 3], FLOATS);
        let weights = Tensor::ones([2, 3], FLOATS).set_requires_grad(true);
        let kind = (Kind::Int64, Device::Cpu);
        let (labels, classes) = (Tensor::zeros([8], kind), Tensor::arange(2, kind));
        let compared = |pick: &dyn Fn(&Tensor) -> Tensor| {
            let watch = WatchedBroadcasts::start(Watched::Validation).expect("a callback");
            let watch = watch.expect("no other watch");
            WatchedBroadcasts::note_batch([&batch, &labels]).expect("a note");
            let predicted = batch.matmul(&weights.tr()).argmax(1, true);
            let predicted = classes.index(&[Some(predicted)]);
            let _ = predicted.eq_tensor(&pick(&predicted));
            watch.first().expect("a look").is_some()
        };
        assert!(compared(&|_| labels.shallow_clone()));
        assert!(compared(&|_| labels.to_kind(Kind::Int)));
        assert!(compared(&|predicted| labels.to_kind(Kind::Int).type_as(predicted)));
        assert!(compared(&|_| labels.unsqueeze(0).squeeze_dim(0)));
        assert!(compared(&|_| Tensor::zeros([8], kind).g_add_(&labels)));
        assert!(!compared(&|_| labels.unsqueeze(1)));
        assert!(!compared(&|_| Tensor::arange(8, kind)));
        assert!(!compared(&|predicted| predicted.squeeze_dim(1)));
        let run = || drop(batch.matmul(&weights.tr()).argmax(1, true).eq_tensor(&labels));
        assert_eq!(seen_in(Watched::Training, &labels, run), None);
    }

    /// Checks that an output is recognized even if the watch did not see its computation, and that
    /// a tensor of the batch still counts as a part of the batch if a module returns it.
    #[test]
    fn a_noted_output_is_recognized() {
        let (output, target) = (Tensor::ones([8, 1], FLOATS), Tensor::ones([8], FLOATS));
        let run = || drop(&output - &target);
        assert_eq!(seen_in(Watched::Validation, &target, run), None);
        let noted = || {
            WatchedBroadcasts::note_output(&output).expect("a note");
            run();
        };
        assert!(seen_in(Watched::Validation, &target, noted).is_some());
        let returned = || {
            WatchedBroadcasts::note_output(&target).expect("a note");
            drop(target.unsqueeze(0).tr() - &target);
        };
        assert_eq!(seen_in(Watched::Validation, &target, returned), None);
        WatchedBroadcasts::note_output(&output).expect("ignored without a watch");
    }

    /// Checks that a second watch of the thread does not end the first one.
    #[test]
    fn a_second_watch_is_none() {
        let (output, target) = pair(&[8, 1], &[8]);
        let run = || {
            let inner = WatchedBroadcasts::start(Watched::Validation).expect("a callback");
            assert!(inner.is_none());
            drop(inner);
            drop(&output - &target);
        };
        assert!(seen(&target, run).is_some());
    }
}
