use std::{borrow::Cow, cell::OnceCell, fmt::Write as _};

use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    loss::{Counted, IGNORED, MeanOver},
    memory::tensor_bytes,
    precision::{Policy, Precision, is_floating},
};

/// The role of a tensor in a batch. The role decides whether the tensor is cast, selected and
/// split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FieldRole {
    /// Values such as inputs, with one row per example in dimension 0. The loader casts
    /// floating-point values to the precision's dtype. It does not cast integers and booleans.
    #[default]
    Value,
    /// Integer indices, for example of tokens or classes. The loader does not cast them.
    Ids,
    /// A mask. The loader does not cast it. A boolean or integer mask says which elements exist; a
    /// floating-point mask is added to attention scores.
    Mask,
    /// The weight of each target in the loss, floating-point or boolean. The loader does not cast
    /// it. If several batches are accumulated into one step, each batch counts in proportion to the
    /// sum of its weights, not to its number of examples.
    Weights,
    /// Values of the whole batch. The loader casts floating-point values to the precision's dtype,
    /// but does not select or split the tensor by example.
    Shared,
}

/// A tensor of a batch, with its name and role.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: Cow<'static, str>,
    pub(super) tensor: Tensor,
    pub(super) role: FieldRole,
}

/// A batch as the loader and the trainer handle it: tensors with names. This type is the same for
/// every model. A model converts it to the model's [batch type](super::BatchType) with
/// [`BatchType::from_any`](super::BatchType::from_any).
#[derive(Debug)]
pub struct AnyBatch {
    /// The name of the type from which the batch was made.
    of: &'static str,
    pub(super) fields: Vec<Field>,
    /// The sum of the batch's weights. The sum is computed when it is first requested. If the
    /// tensors are moved from the CPU to a device, the sum is computed before the move, because
    /// reading it later would wait for the device.
    pub(super) weight: OnceCell<f64>,
    /// Whether a check has shown that no target is -100, the class that losses ignore.
    pub(super) complete: bool,
    /// Whether this is a single example, whose tensors have no batch dimension.
    single: bool,
    /// Whether every part of a divided batch is known to need the same shared tensors
    /// ([`FieldRole::Shared`]), unchanged.
    pub(super) common: bool,
}

impl AnyBatch {
    /// Creates a batch without tensors. `of` is the name of the batch type, for error messages.
    pub fn new(of: &'static str) -> Self {
        let (complete, single, common) = (false, false, false);
        Self { of, fields: Vec::new(), weight: OnceCell::new(), complete, single, common }
    }

    /// Creates a single example without tensors. `of` is the name of the example's type.
    pub(in crate::data) fn single(of: &'static str) -> Self {
        Self { single: true, ..Self::new(of) }
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// When the batch already has a tensor of this name, the dtype does not fit the role, or the
    /// number of examples (dimension 0) differs from that of the batch's other tensors.
    pub fn push(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        tensor: &Tensor,
        role: FieldRole,
    ) -> Result<()> {
        let (name, of) = (name.into(), self.of);
        let refused = |why: String| Err(Error::config(format!("the batch `{of}`: {why}")));
        if !tensor.defined() {
            return refused(format!("`{name}` is an undefined tensor: give it values"));
        }
        let kind = tensor.kind();
        if self.tensor(&name).is_some() {
            return refused(format!("two tensors are called `{name}`"));
        }
        let wanted = match role {
            FieldRole::Ids if is_floating(kind) || kind == Kind::Bool => "integers",
            FieldRole::Weights if !is_floating(kind) && kind != Kind::Bool => {
                "floating-point numbers or booleans"
            }
            _ => "",
        };
        if !wanted.is_empty() {
            return refused(format!("`{name}` is {kind:?}, but its role requires {wanted}"));
        }
        if role == FieldRole::Weights && self.weights().is_some() {
            return refused(format!("`{name}` is a second tensor of weights: only one is allowed"));
        }
        if role != FieldRole::Shared && !self.single {
            let Some(&count) = tensor.size().first() else {
                return refused(format!(
                    "`{name}` is a scalar, but must have one row per example in its first dimension"
                ));
            };
            if let Some(first) = self.per_example().next()
                && first.tensor.size()[0] != count
            {
                let (other, there) = (&first.name, first.tensor.size()[0]);
                return refused(format!("{there} examples in `{other}`, but {count} in `{name}`"));
            }
        }
        // A new shared tensor may contain rows of all examples, for example the nodes of all
        // graphs. Then a part of the batch needs only some of the rows.
        self.common &= role != FieldRole::Shared;
        self.fields.push(Field { name, tensor: tensor.shallow_clone(), role });
        Ok(())
    }

    /// Returns the tensor of this name, or `None` if the batch has no such tensor.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.fields.iter().find(|field| field.name == name).map(|field| &field.tensor)
    }

    /// Returns the tensor of this name, which must exist.
    ///
    /// # Errors
    /// When the batch has no tensor of this name.
    pub fn required(&self, name: &str) -> Result<&Tensor> {
        self.tensor(name).ok_or_else(|| {
            let mut has = String::new();
            for field in &self.fields {
                let separator = if has.is_empty() { "" } else { ", " };
                let _ = write!(has, "{separator}{}", field.name);
            }
            Error::config(format!(
                "the model takes the field `{name}`, but the batches are `{}` with the fields {has}: \
                 use data with this field, or a model for these batches",
                self.of
            ))
        })
    }

    /// Returns the batch's tensors by name, in order of declaration.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.fields.iter().map(|field| (&*field.name, &field.tensor))
    }

    /// Returns the batch's tensors with their roles.
    pub(in crate::data) fn fields(&self) -> impl Iterator<Item = (&str, &Tensor, FieldRole)> {
        self.fields.iter().map(|field| (&*field.name, &field.tensor, field.role))
    }

    /// Returns the name of the type from which the batch was made.
    pub(in crate::data) fn of(&self) -> &'static str {
        self.of
    }

    /// Returns the tensors that must be finite: all tensors except masks, which may contain
    /// infinities on purpose.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let fields = self.fields.iter().filter(|field| field.role != FieldRole::Mask);
        fields.map(|field| (&*field.name, &field.tensor))
    }

    /// Returns the tensors whose role is [`FieldRole::Value`].
    pub(super) fn values(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let fields = self.fields.iter().filter(|field| field.role == FieldRole::Value);
        fields.map(|field| (&*field.name, &field.tensor))
    }

    /// Returns the number of examples; 0 for a batch without tensors.
    pub fn len(&self) -> i64 {
        self.per_example().next().map_or(0, |field| field.tensor.size()[0])
    }

    /// Returns whether the batch has no example.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the factor by which this batch counts in an average over batches: the sum of its
    /// weights or, if it has no weights, its number of examples.
    ///
    /// # Errors
    /// When weights cannot be read from the device.
    pub fn weight(&self) -> Result<f64> {
        let Some(weights) = self.weights() else { return Ok(self.len() as f64) };
        if let Some(known) = self.weight.get() {
            return Ok(*known);
        }
        let sum = weights.tensor.f_sum(Kind::Double)?.f_double_value(&[])?;
        Ok(*self.weight.get_or_init(|| sum))
    }

    /// Returns whether the batch has a tensor of weights.
    pub(crate) fn has_weights(&self) -> bool {
        self.weights().is_some()
    }

    /// Returns the same number as [`weight`](Self::weight) without reading it from the device: a
    /// sum of weights stays a tensor on the device.
    ///
    /// # Errors
    /// When weights cannot be added up.
    pub fn counted(&self) -> Result<Counted> {
        match self.weights() {
            Some(weights) => Ok(Counted::OnDevice(weights.tensor.f_sum(Kind::Double)?)),
            None => Ok(Counted::Examples(self.len() as f64)),
        }
    }

    /// Returns the weight of this batch in an average of losses. `over` says over which elements
    /// the loss takes its mean, and `target` contains the targets of the loss. Does not read from
    /// the device.
    ///
    /// # Errors
    /// When targets cannot be counted.
    pub fn counted_over(&self, over: &MeanOver<'_>, target: &Tensor) -> Result<Counted> {
        let own = matches!(over, MeanOver::Weights(_));
        if (own || !self.has_weights())
            && let Some(counted) = over.counts(target, self.complete)?
        {
            return Ok(counted);
        }
        self.counted()
    }

    /// Returns whether a check has shown that no target is -100, the class that losses ignore. If
    /// so, a loss need not count the ignored targets.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Checks whether an int64 tensor of the batch contains -100, the class that losses ignore, and
    /// stores the result. Waits for the device.
    pub(crate) fn noting_ignored(mut self) -> Result<Self> {
        let mut complete = true;
        for field in self.per_example() {
            let classes = field.role != FieldRole::Mask && field.tensor.kind() == Kind::Int64;
            if classes && field.tensor.f_eq(IGNORED)?.f_any()?.f_int64_value(&[])? != 0 {
                complete = false;
            }
        }
        self.complete = complete;
        Ok(self)
    }

    /// Returns a copy of the batch on the policy's device, with floating-point values cast to the
    /// policy's dtype.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn place(&self, policy: Policy) -> Result<Self> {
        if self.weights().is_some_and(|field| field.tensor.device() == Device::Cpu) {
            // The sum is read before the move, because a later read would wait for the device.
            let _ = self.weight()?;
        }
        let placed = self.with(|field| {
            let kind = field.placed_kind(policy.precision);
            Ok(field.tensor.f_to_device_(policy.device, kind, false, false)?)
        })?;
        Ok(Self { weight: self.weight.clone(), ..placed })
    }

    /// Returns this batch with other tensors. `tensors` replaces the tensors of all fields, in the
    /// order of the fields.
    pub(crate) fn with_tensors(&self, tensors: Vec<Tensor>) -> Self {
        debug_assert_eq!(tensors.len(), self.fields.len());
        let fields = self.fields.iter().zip(tensors);
        Self {
            of: self.of,
            fields: fields.map(|(field, tensor)| field.of(tensor)).collect(),
            weight: self.weight.clone(),
            complete: self.complete,
            single: self.single,
            common: self.common,
        }
    }

    /// Returns the number of bytes that [`AnyBatch::place`] allocates on another device.
    pub(crate) fn placed_bytes(&self, precision: Precision) -> u64 {
        let bytes = |field: &Field| {
            field.tensor.numel() as u64 * field.placed_kind(precision).elt_size_in_bytes() as u64
        };
        self.fields.iter().map(bytes).sum()
    }

    /// Returns whether all tensors of the batch are on `device`.
    pub(crate) fn is_on(&self, device: Device) -> bool {
        self.fields.iter().all(|field| field.tensor.device() == device)
    }

    /// Returns the device of the batch's tensors, or `None` if it has no tensors.
    pub(crate) fn device(&self) -> Option<Device> {
        self.fields.first().map(|field| field.tensor.device())
    }

    /// Returns the number of bytes of the batch's tensors.
    pub fn bytes(&self) -> u64 {
        self.fields.iter().map(|field| tensor_bytes(&field.tensor)).sum()
    }

    /// Returns the number of bytes of the batch's tensors, except those that share memory with the
    /// tensor of the same field in `other`.
    pub(crate) fn bytes_not_shared_with(&self, other: Option<&Self>) -> u64 {
        let Some(other) = other else { return self.bytes() };
        let pairs = self.fields.iter().zip(&other.fields);
        let own = pairs.filter(|(own, other)| own.tensor.data_ptr() != other.tensor.data_ptr());
        own.map(|(own, _)| tensor_bytes(&own.tensor)).sum()
    }

    /// Returns the examples with the indices in `index`, an int64 tensor on the batch's device.
    pub(crate) fn select(&self, index: &Tensor) -> Result<Self> {
        self.each_example(|tensor| Ok(tensor.f_index_select(0, index)?))
    }

    /// Returns the `length` examples from `start` on. The result shares memory with this batch.
    ///
    /// # Errors
    /// When the batch has fewer than `start + length` examples.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Self> {
        self.each_example(|tensor| Ok(tensor.f_narrow(0, start, length)?))
    }

    /// Returns a copy of the batch that shares no memory with this batch.
    pub(crate) fn copied(&self) -> Result<Self> {
        let copied = self.with(|field| Ok(field.tensor.f_detach_copy()?))?;
        Ok(Self { weight: self.weight.clone(), ..copied })
    }

    /// Returns a second handle of the batch. The tensors share memory with this batch's tensors.
    pub(crate) fn shallow_clone(&self) -> Self {
        self.with_tensors(self.fields.iter().map(|field| field.tensor.shallow_clone()).collect())
    }

    /// Returns whether the two batches have tensors of the same names, shapes and dtypes in the
    /// same order, and give the same answer to [`is_complete`](Self::is_complete).
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let alike = |own: &Field, other: &Field| {
            own.name == other.name
                && own.tensor.kind() == other.tensor.kind()
                && own.tensor.size() == other.tensor.size()
        };
        self.complete == other.complete
            && self.fields.len() == other.fields.len()
            && self.fields.iter().zip(&other.fields).all(|(own, other)| alike(own, other))
    }

    fn per_example(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| field.role != FieldRole::Shared)
    }

    fn weights(&self) -> Option<&Field> {
        self.fields.iter().find(|field| field.role == FieldRole::Weights)
    }

    fn each_example(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        self.with(|field| match field.role {
            FieldRole::Shared => Ok(field.tensor.shallow_clone()),
            _ => change(&field.tensor),
        })
    }

    /// Returns the batch in which the tensor of each field is replaced by the result of `change`.
    fn with(&self, change: impl Fn(&Field) -> Result<Tensor>) -> Result<Self> {
        let fields = self.fields.iter().map(|field| Ok(field.of(change(field)?)));
        let fields = fields.collect::<Result<_>>()?;
        let Self { of, complete, single, common, .. } = *self;
        Ok(Self { of, fields, weight: OnceCell::new(), complete, single, common })
    }
}

impl Field {
    /// Returns a field with this tensor, and with the name and the role of this field.
    fn of(&self, tensor: Tensor) -> Self {
        Self { name: self.name.clone(), tensor, role: self.role }
    }

    fn placed_kind(&self, precision: Precision) -> Kind {
        match (self.role, self.tensor.kind()) {
            (FieldRole::Value | FieldRole::Shared, kind) if is_floating(kind) => {
                precision.storage()
            }
            (_, kind) => kind,
        }
    }
}
