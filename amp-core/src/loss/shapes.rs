//! Checks the shapes and dtypes of outputs and targets. An error names the two shapes.

use tch::{Device, Kind, Reduction, Tensor};

use crate::{
    Error, Result,
    ffi::PausedProducts,
    precision::{AutocastGuard, autocast_state, dtype_name, is_floating},
};

/// Formats the dtype and the shape of a tensor for error messages, such as `f32 [8, 10]`.
pub(super) fn describe(tensor: &Tensor) -> String {
    format!("{} {:?}", dtype_name(tensor.kind()), tensor.size())
}

/// Builds the error for an output and a target that do not fit together. `why` says what is
/// expected.
pub(crate) fn misfit(what: &str, output: &Tensor, target: &Tensor, why: &str) -> Error {
    let (output, target) = (describe(output), describe(target));
    Error::config(format!("{what}: the output is {output} and the target {target}: {why}"))
}

/// Checks on the CPU that `values` are log probabilities: at most 0, or up to 0.001 because of
/// rounding errors. The error calls the tensor `which`, and describes output and target (`given`)
/// of the loss `what`.
pub(super) fn are_log_probabilities(
    what: &str,
    which: &str,
    values: &Tensor,
    [output, target]: [&Tensor; 2],
) -> Result<()> {
    if values.device() != Device::Cpu || values.numel() == 0 {
        return Ok(());
    }
    let most = values.f_max()?.f_double_value(&[])?;
    if most > 1e-3 {
        let why = format!(
            "{which} must be log probabilities, which are at most 0, but reaches {most}: apply a log softmax"
        );
        return Err(misfit(what, output, target, &why));
    }
    Ok(())
}

/// The dimension of logits that holds the classes. The option matters only if by their shapes the
/// logits may have their classes in the second or in the last dimension, such as logits `[N, 5, 5]`
/// for targets `[N, 5]`.
///
/// ```
/// use amp_core::{loss::{ClassDim, CrossEntropy, Loss}, tch::{Device, Kind, Tensor}};
///
/// let logits = Tensor::randn([2, 5, 5], (Kind::Double, Device::Cpu));
/// let classes = Tensor::from_slice(&[0_i64, 1, 2, 3, 4, 4, 3, 2, 1, 0]).view([2, 5]);
/// let of = |classes| CrossEntropy { classes, ..Default::default() };
/// assert!(of(ClassDim::Either).compute(&logits, &classes).is_err());
/// let last = of(ClassDim::Last).compute(&logits, &classes)?;
/// let second = of(ClassDim::Second).compute(&logits.transpose(1, 2), &classes)?;
/// assert!((last - second).abs().double_value(&[]) < 1e-12);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClassDim {
    /// Found from the shapes. If both dimensions are possible, the loss is an error.
    #[default]
    Either,
    /// The second dimension, as in torch.
    Second,
    /// The last dimension.
    Last,
}

impl ClassDim {
    /// Reshapes the logits to `[M, C]` and the targets to `[M]` if by their shapes the classes may
    /// be in the second or in the last dimension and this option names one of the two. Otherwise
    /// returns both unchanged.
    pub(crate) fn resolve(self, output: &Tensor, target: &Tensor) -> Result<(Tensor, Tensor)> {
        let sizes = output.size();
        let is_ambiguous = target.kind() == Kind::Int64
            && sizes.len() > 2
            && classes_second(&sizes, &target.size())
            && classes_last(&sizes, &target.size());
        let rows = match self {
            Self::Second if is_ambiguous => output.f_movedim_int(1, -1)?,
            Self::Last if is_ambiguous => output.shallow_clone(),
            _ => return Ok((output.shallow_clone(), target.shallow_clone())),
        };
        Ok((rows.f_reshape([-1, sizes[sizes.len() - 1]])?, target.f_reshape([-1])?))
    }
}

/// Returns whether logits have the shape `[N, C, …]` and classes the shape `[N, …]`.
fn classes_second(of_logits: &[i64], of_target: &[i64]) -> bool {
    matches!(of_logits, [first, _, rest @ ..] if [&[*first], rest].concat() == of_target)
}

/// Returns whether logits have the shape `[…, C]` and classes the shape `[…]`.
fn classes_last(of_logits: &[i64], of_target: &[i64]) -> bool {
    matches!(of_logits, [rest @ .., _] if rest == of_target)
}

/// Checks logits of shape `[N, C, …]` and int64 classes of shape `[N, …]`. Logits with the classes
/// in the last dimension are accepted, too, and are reshaped to `[M, C]`.
///
/// # Errors
/// When the shapes do not match, when the classes could be in the second or in the last dimension,
/// or when a dtype is wrong.
pub(crate) fn classes(what: &str, output: &Tensor, target: &Tensor) -> Result<(Tensor, Tensor)> {
    let refused = |why: &str| Err(misfit(what, output, target, why));
    if !is_floating(output.kind()) {
        return refused("logits must be floating-point numbers");
    }
    if target.kind() != Kind::Int64 {
        return refused(match is_floating(target.kind()) {
            true => "classes must be int64, as `target.to_kind(Kind::Int64)` gives",
            false => "classes must be int64: convert them in the data",
        });
    }
    let (sizes, of_target) = (output.size(), target.size());
    let [_, second, rest @ ..] = sizes.as_slice() else {
        return refused("logits must have a dimension for examples and one for classes");
    };
    let (is_second, is_last) =
        (classes_second(&sizes, &of_target), classes_last(&sizes, &of_target));
    let (logits, of, count) = match (is_second, is_last) {
        (true, true) if !rest.is_empty() => {
            return refused(
                "with these shapes the classes may be in dimension 1, as in torch, or in the last \
                 dimension: choose one with `classes = second` or `classes = last` in the attribute \
                 of the loss or metric, or in Rust with `ClassDim`",
            );
        }
        (true, _) => (output.shallow_clone(), target.shallow_clone(), *second),
        (false, true) => {
            let count = sizes[sizes.len() - 1];
            (output.f_reshape([-1, count])?, target.f_reshape([-1])?, count)
        }
        (false, false) => {
            return refused(
                "logits must be [N, C, …] for classes [N, …], or have the classes in the last \
                 dimension, as [N, L, C] for classes [N, L]",
            );
        }
    };
    if count < 2 {
        return refused(
            "one logit for each example is a binary classification: use \
             binary_cross_entropy_with_logits, and binary_accuracy",
        );
    }
    Ok((logits, of))
}

/// Converts two tensors of the same shape to the wider of their dtypes, which must be
/// floating-point.
///
/// # Errors
/// When the shapes differ (libtorch would broadcast), or a dtype is not floating-point.
pub(crate) fn elementwise(
    what: &str,
    output: &Tensor,
    target: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let refused = |why: &str| Err(misfit(what, output, target, why));
    let (sizes, of_target) = (output.size(), target.size());
    if sizes != of_target {
        let without_ones = |sizes: &[i64]| -> Vec<i64> {
            sizes.iter().copied().filter(|size| *size != 1).collect()
        };
        return refused(&match without_ones(&sizes) == without_ones(&of_target) {
            true => format!(
                "both must have the same shape, as `output.view({of_target:?})` or `target.view({sizes:?})` \
                 gives; libtorch would broadcast them"
            ),
            false => "both must have the same shape".to_owned(),
        });
    }
    if !is_floating(output.kind()) || !is_floating(target.kind()) {
        return refused("both must be floating-point, as `target.to_kind(Kind::Float)` gives");
    }
    let wide = wider(output.kind(), target.kind());
    let cast = |tensor: &Tensor| match tensor.kind() == wide {
        true => Ok(tensor.shallow_clone()),
        false => tensor.f_to_kind(wide),
    };
    Ok((cast(output)?, cast(target)?))
}

/// Returns the smallest floating-point dtype that represents all values of the two dtypes.
fn wider(one: Kind, other: Kind) -> Kind {
    match (one, other) {
        (one, other) if one == other => one,
        (Kind::Double, _) | (_, Kind::Double) => Kind::Double,
        _ => Kind::Float,
    }
}

/// Returns an error if an option of a loss is out of range.
pub(super) fn option(what: &str, key: &str, value: f64, fits: bool, must: &str) -> Result<()> {
    match fits {
        true => Ok(()),
        false => Err(Error::config(format!("{what}: {key} is {value}, but must be {must}"))),
    }
}

/// Applies a reduction to a loss that has a value for each example or element.
pub(super) fn reduce(each: &Tensor, reduction: Reduction) -> Result<Tensor> {
    match reduction {
        Reduction::None => Ok(each.shallow_clone()),
        Reduction::Sum => Ok(each.f_sum(each.kind())?),
        Reduction::Mean | Reduction::Other(_) => Ok(each.f_mean(each.kind())?),
    }
}

/// Calls `compute` in the dtype in which torch computes losses. If autocast is on for the tensors'
/// device, 16-bit tensors are first converted to f32, and autocast is switched off during the call.
/// Probes that record the dtypes of matrix products then skip the products of the loss, because the
/// dtypes of these products do not depend on the model's precision.
pub(super) fn in_f32<const N: usize>(
    tensors: [&Tensor; N],
    compute: impl FnOnce([Tensor; N]) -> Result<Tensor>,
) -> Result<Tensor> {
    let device = tensors.first().map_or(Device::Cpu, |tensor| tensor.device());
    if !autocast_state(device)?.enabled {
        return compute(tensors.map(Tensor::shallow_clone));
    }
    let _off = AutocastGuard::off(device)?;
    let _apart = PausedProducts::pause();
    let wide = tensors.map(|tensor| match tensor.kind() {
        Kind::Half | Kind::BFloat16 => tensor.f_to_kind(Kind::Float),
        _ => Ok(tensor.shallow_clone()),
    });
    let mut all = Vec::with_capacity(N);
    for tensor in wide {
        all.push(tensor?);
    }
    compute(all.try_into().expect("all N tensors were converted"))
}

/// Checks weights and converts them to the dtype in which the loss is computed. Weights are a
/// single number, or have the shape of the output or of one example of it.
pub(super) fn of_one_example(
    what: &str,
    key: &str,
    weight: Option<&Tensor>,
    output: &Tensor,
) -> Result<Option<Tensor>> {
    let Some(weight) = weight else { return Ok(None) };
    let (sizes, of) = (weight.size(), output.size());
    let one = of.get(1..).unwrap_or_default();
    let fits = weight.numel() == 1
        || sizes == of
        || sizes.len() == one.len()
            && sizes.iter().zip(one).all(|(own, of)| own == of || *own == 1);
    if !fits || !is_floating(weight.kind()) {
        let output = describe(output);
        return Err(Error::config(format!(
            "{what}: `{key}` is {}, but the output is {output}: give a single floating-point \
             number, or a tensor with the shape of one example, {one:?}; a size may be 1 if the \
             whole dimension has the same weight",
            describe(weight)
        )));
    }
    Ok(Some(weight.f_to_device(output.device())?.f_to_kind(computed_in(output)?)?))
}

/// Returns the dtype in which torch computes a loss of this output. This is the output's dtype or,
/// under autocast, at least f32.
pub(super) fn computed_in(output: &Tensor) -> Result<Kind> {
    let half = matches!(output.kind(), Kind::Half | Kind::BFloat16);
    match half && autocast_state(output.device())?.enabled {
        true => Ok(Kind::Float),
        false => Ok(output.kind()),
    }
}
