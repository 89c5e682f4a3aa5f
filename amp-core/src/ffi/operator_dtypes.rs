//! Records the dtypes of operators' results, and rounds the results of a later forward pass to these
//! dtypes (`csrc/operator_dtypes.cpp`).

use std::{
    cell::Cell,
    ffi::{c_int, c_void},
    hash::{DefaultHasher, Hash, Hasher},
    marker::PhantomData,
};

use super::take_error;
use crate::Result;

unsafe extern "C" {
    fn amp_operators_new(out: *mut *mut c_void) -> c_int;
    fn amp_operators_free(freed: *mut c_void) -> c_int;
    fn amp_operators_start(of: *mut c_void, what: c_int) -> c_int;
    fn amp_operators_stop() -> c_int;
    fn amp_operators_enter(hash: u64, is_watched: c_int) -> c_int;
}

thread_local! {
    /// The module whose code runs, during a pass of this thread. `None` if there is no pass.
    static MODULE: Cell<Option<Running>> = const { Cell::new(None) };
}

/// The module whose code runs: the hash of its path, and whether its operators are watched.
type Running = (u64, bool);

/// The dtypes of the operators that a forward pass runs in the code of the user's modules. The
/// operators within this crate's layers are not included.
///
/// The gate (`cargo amp gate`) records the dtypes under a precision that computes in 16 bits. Then
/// it runs the model in 32-true, and rounds the result of each operator to the recorded dtype.
#[derive(Debug)]
pub struct OperatorDtypes(*mut c_void);

impl OperatorDtypes {
    /// Creates an empty record.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> Result<Self> {
        let mut table = std::ptr::null_mut();
        checked!(amp_operators_new(&mut table))?;
        Ok(Self(table))
    }

    /// Records the dtypes of this thread's operators until the returned guard is dropped.
    ///
    /// # Errors
    /// When libtorch does not accept a callback.
    pub fn record(&self) -> Result<OperatorPass<'_>> {
        self.start(0)
    }

    /// Counts this thread's operators until the returned guard is dropped. Only operators that ran
    /// as often as in the recorded pass are rounded later.
    ///
    /// # Errors
    /// When libtorch does not accept a callback.
    pub fn count(&self) -> Result<OperatorPass<'_>> {
        self.start(1)
    }

    /// Rounds the results of this thread's operators, and the gradients of these results, until the
    /// returned guard is dropped.
    ///
    /// # Errors
    /// When libtorch does not accept a callback.
    pub fn round(&self) -> Result<OperatorPass<'_>> {
        self.start(2)
    }

    fn start(&self, what: c_int) -> Result<OperatorPass<'_>> {
        checked!(amp_operators_start(self.0, what))?;
        MODULE.set(Some((0, true)));
        Ok(OperatorPass { _dtypes: PhantomData })
    }
}

impl Drop for OperatorDtypes {
    fn drop(&mut self) {
        // The call frees memory. Its error is ignored, because `drop` cannot return it.
        let _ = checked!(amp_operators_free(self.0));
    }
}

/// A guard. While it exists, the operators of this thread are recorded, counted or rounded. Only
/// one may exist at a time. It is not `Send`, because its callback belongs to the thread.
#[derive(Debug)]
#[must_use = "the operators are watched until this guard is dropped"]
pub struct OperatorPass<'d> {
    _dtypes: PhantomData<(&'d OperatorDtypes, *const ())>,
}

impl Drop for OperatorPass<'_> {
    fn drop(&mut self) {
        MODULE.set(None);
        // The call removes a callback. Its error is ignored, because `drop` cannot return it.
        let _ = checked!(amp_operators_stop());
    }
}

/// A guard. While it exists, this thread's operators belong to one module.
pub(crate) struct ModuleOfOperators(Option<Running>);

impl ModuleOfOperators {
    /// Enters the module at `path`, whose type has the full name `type_name`. Has no effect if the
    /// operators of this thread are not watched.
    #[inline]
    pub(crate) fn enter(path: &str, type_name: &str) -> Self {
        let outer = MODULE.get();
        if outer.is_some() {
            let mut hasher = DefaultHasher::new();
            path.hash(&mut hasher);
            let own = concat!(env!("CARGO_CRATE_NAME"), "::");
            set((hasher.finish(), !type_name.starts_with(own)));
        }
        Self(outer)
    }
}

impl Drop for ModuleOfOperators {
    fn drop(&mut self) {
        if let Some(outer) = self.0.take() {
            set(outer);
        }
    }
}

fn set(module: Running) {
    MODULE.set(Some(module));
    // The call only sets two variables of this thread.
    let _ = checked!(amp_operators_enter(module.0, c_int::from(module.1)));
}
