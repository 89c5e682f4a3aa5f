use std::borrow::Cow;

use tch::Tensor;

use super::{AnyBatch, FieldRole};
use crate::{Error, Result};

/// A struct of tensors that is a model's batch, in training and evaluation. Derive this trait with
/// [`derive(Batch)`](derive@crate::Batch). For a batch of one input and one target, use
/// [`Batch`](super::Batch).
pub trait BatchType: Sized {
    /// Returns the struct's tensors with their names. The tensors share memory with the struct.
    ///
    /// # Errors
    /// When the tensors differ in their numbers of examples (dimension 0), or a tensor's dtype does
    /// not fit the tensor's role.
    fn to_any(&self) -> Result<AnyBatch>;

    /// Makes the struct from the tensors of `batch`, and shares memory with them. Tensors of
    /// `batch` for which the struct has no field are ignored.
    ///
    /// # Errors
    /// When the batch lacks the tensor of a field.
    fn from_any(batch: &AnyBatch) -> Result<Self>;
}

impl BatchType for AnyBatch {
    fn to_any(&self) -> Result<AnyBatch> {
        Ok(self.shallow_clone())
    }

    fn from_any(batch: &AnyBatch) -> Result<Self> {
        Ok(batch.shallow_clone())
    }
}

/// Converts `batch` to the model's batch type and calls `run` with the result.
#[doc(hidden)]
pub fn with_batch<B: BatchType, T>(
    batch: &AnyBatch,
    run: impl FnOnce(&B) -> Result<T>,
) -> Result<T> {
    run(&B::from_any(batch)?)
}

/// Makes a batch from the output of a forward pass, to return the output as predictions.
#[doc(hidden)]
pub fn predictions(output: &impl BatchField) -> Result<AnyBatch> {
    let mut predictions = AnyBatch::new("predictions");
    output.put("output".into(), FieldRole::Value, &mut predictions).map_err(|error| {
        Error::config(format!(
            "{error}: write a `#[predict_step]` that returns only tensors with a row for each example"
        ))
    })?;
    Ok(predictions)
}

/// Makes the field with this dotted name from the tensors of `batch`. `of` is never called: it only
/// tells the compiler the type of the field.
#[doc(hidden)]
pub fn take_field<B, F: BatchField>(
    name: &str,
    batch: &AnyBatch,
    of: impl Fn(&B) -> &F,
) -> Result<F> {
    let _ = of;
    F::take(name, batch)
}

/// Returns the dotted name of a field in a nested batch: `parent.name`, or `name` if `parent` is
/// empty.
#[doc(hidden)]
pub fn field_name(parent: &str, field: &str) -> String {
    match parent {
        "" => field.to_owned(),
        _ => format!("{parent}.{field}"),
    }
}

/// A type that can be the target of a loss or a metric that compares the output with a tensor.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a target of the type `{Self}`, but this loss or metric compares the output with a `Tensor`",
    label = "this target is not a `Tensor`",
    note = "give the field the type `Tensor`, or name another field, as in `target = labels`",
    note = "for an `Option` or several fields write `target = batch` and `#[loss(with = |output, batch| …)]`"
)]
pub trait Compared {
    /// Returns the tensor.
    fn tensor(&self) -> &Tensor;
}

impl Compared for Tensor {
    fn tensor(&self) -> &Tensor {
        self
    }
}

/// A type that can be an input of `forward` if this input must be a tensor.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "an input of the type `{Self}`, but this input of `forward` must be a `Tensor`",
    label = "this input is not a `Tensor`",
    note = "give the field the type `Tensor`, or name another field, as in `inputs(ids)`",
    note = "for an input of another type write its type, as in `#[forward(|x, mask: Option<&Tensor>| …)]`"
)]
pub trait TensorInput {
    /// Returns the tensor.
    fn tensor(&self) -> &Tensor;
}

impl TensorInput for Tensor {
    fn tensor(&self) -> &Tensor {
        self
    }
}

/// The type of a field of a batch: a tensor, an option, a list or tuple of fields, or a struct of
/// such fields.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a field of a batch",
    note = "fields are tensors, options, lists and tuples of fields, and structs that derive `Batch`"
)]
pub trait BatchField: Sized {
    /// The type of the argument that a forward pass gets for this field.
    type Ref<'a>
    where
        Self: 'a;

    /// Returns the argument of a forward pass: `&Tensor` for a tensor, `Option<&Tensor>` for an
    /// option.
    fn borrow(&self) -> Self::Ref<'_>;

    /// Adds the field's tensors to `batch` under `name`.
    ///
    /// # Errors
    /// When [`AnyBatch::push`] refuses a tensor.
    fn put(&self, name: Cow<'static, str>, role: FieldRole, batch: &mut AnyBatch) -> Result<()>;

    /// Makes the field from the tensors of `batch` that belong to it: the tensor `name`, or the
    /// tensors whose names begin with `name.`.
    ///
    /// # Errors
    /// When a tensor is missing.
    fn take(name: &str, batch: &AnyBatch) -> Result<Self>;

    /// Returns whether `batch` has at least one tensor that belongs to the field `name`.
    fn is_in(name: &str, batch: &AnyBatch) -> bool {
        batch.tensors().any(|(found, _)| {
            let rest = found.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

impl BatchField for Tensor {
    type Ref<'a> = &'a Self;

    fn borrow(&self) -> &Self {
        self
    }

    fn put(&self, name: Cow<'static, str>, role: FieldRole, batch: &mut AnyBatch) -> Result<()> {
        batch.push(name, self, role)
    }

    fn take(name: &str, batch: &AnyBatch) -> Result<Self> {
        Ok(batch.required(name)?.shallow_clone())
    }
}

/// An optional field.
impl<F: BatchField> BatchField for Option<F> {
    type Ref<'a>
        = Option<F::Ref<'a>>
    where
        F: 'a;

    fn borrow(&self) -> Option<F::Ref<'_>> {
        self.as_ref().map(F::borrow)
    }

    fn put(&self, name: Cow<'static, str>, role: FieldRole, batch: &mut AnyBatch) -> Result<()> {
        self.as_ref().map_or(Ok(()), |field| field.put(name, role, batch))
    }

    fn take(name: &str, batch: &AnyBatch) -> Result<Self> {
        F::is_in(name, batch).then(|| F::take(name, batch)).transpose()
    }
}

/// A field that is a list. The tensors of its items get the names `name.0`, `name.1` and so on.
impl<F: BatchField> BatchField for Vec<F> {
    type Ref<'a>
        = &'a [F]
    where
        F: 'a;

    fn borrow(&self) -> &[F] {
        self
    }

    fn put(&self, name: Cow<'static, str>, role: FieldRole, batch: &mut AnyBatch) -> Result<()> {
        let mut fields = self.iter().enumerate();
        fields.try_for_each(|(at, field)| field.put(format!("{name}.{at}").into(), role, batch))
    }

    fn take(name: &str, batch: &AnyBatch) -> Result<Self> {
        let names = (0..).map(|at| format!("{name}.{at}"));
        names.take_while(|name| F::is_in(name, batch)).map(|name| F::take(&name, batch)).collect()
    }
}

/// Implements [`BatchField`] for tuples. The tensors of a tuple's elements get the names `name.0`,
/// `name.1` and so on.
macro_rules! tuple {
    ($($field:ident $at:tt),+) => {
        impl<$($field: BatchField),+> BatchField for ($($field,)+) {
            type Ref<'a>
                = ($($field::Ref<'a>,)+)
            where
                Self: 'a;

            fn borrow(&self) -> Self::Ref<'_> {
                ($(self.$at.borrow(),)+)
            }

            fn put(
                &self,
                name: Cow<'static, str>,
                role: FieldRole,
                batch: &mut AnyBatch,
            ) -> Result<()> {
                $(self.$at.put(format!("{name}.{}", $at).into(), role, batch)?;)+
                Ok(())
            }

            fn take(name: &str, batch: &AnyBatch) -> Result<Self> {
                Ok(($($field::take(&format!("{name}.{}", $at), batch)?,)+))
            }
        }
    };
}

tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
