//! Combines single examples into a batch (PyTorch's `collate_fn`).

use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    data::{AnyBatch, BatchField, FieldRole},
};

/// Combines examples into a batch. Tensors of one shape are stacked along a new first dimension.
/// Sequences of different lengths are padded if padding is declared for their field.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     Batch, Result,
///     data::{AnyBatch, Collate, MapDataset, Pad},
///     random::Rng,
///     tch::Tensor,
/// };
///
/// #[derive(Batch)]
/// struct Sentence {
///     #[batch(ids)]
///     tokens: Tensor,
///     /// Only batches have this field: `collate` adds it.
///     #[batch(mask)]
///     mask: Option<Tensor>,
///     class: Tensor,
/// }
///
/// struct Sentences(Vec<(Vec<i64>, i64)>);
///
/// impl MapDataset for Sentences {
///     type Example = Sentence;
///
///     fn len(&self) -> i64 {
///         self.0.len() as i64
///     }
///
///     fn get(&self, index: i64, _: &mut Rng) -> Result<Sentence> {
///         let (tokens, class) = &self.0[index as usize];
///         let (tokens, class) = (Tensor::f_from_slice(tokens)?, Tensor::from(*class));
///         Ok(Sentence { tokens, mask: None, class })
///     }
///
///     fn collate(&self, examples: &[(i64, Sentence)], _: &mut Rng) -> Result<AnyBatch> {
///         Collate::new().pad(Pad::new("tokens", 0.0).attention_mask("mask")).batch(examples)
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let data = Sentences(vec![(vec![5, 6, 7], 1), (vec![8], 0)]).shared();
/// // [[5, 6, 7], [8, 0, 0]] and [[true, true, true], [true, false, false]].
/// let batch = data.gather(&[0, 1])?;
/// assert_eq!(batch.required("tokens")?.size(), [2, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Collate {
    padded: Vec<Pad>,
}

/// How a field is padded if its lengths (dimension 0) differ between the examples of a batch. The
/// padding comes after the values.
#[derive(Debug, Clone)]
pub struct Pad {
    field: String,
    value: f64,
    multiple: i64,
    length: Option<i64>,
    attention_mask: Option<String>,
    key_padding_mask: Option<String>,
    lengths: Option<String>,
}

impl Pad {
    /// Pads the field of this name with `value`, up to the length of the batch's longest example. A
    /// field of a nested struct has a dotted name, such as `source.ids`.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::data::{Collate, Pad};
    ///
    /// // Pads `ids` with 0 and adds a mask of the real elements.
    /// let collate = Collate::new().pad(Pad::new("ids", 0.0).attention_mask("mask"));
    /// # let _ = collate;
    /// ```
    pub fn new(field: impl Into<String>, value: f64) -> Self {
        Self {
            field: field.into(),
            value,
            multiple: 1,
            length: None,
            attention_mask: None,
            key_padding_mask: None,
            lengths: None,
        }
    }

    /// Pads every batch to the next multiple of this length. Tensor cores are faster if lengths are
    /// multiples of 8.
    #[must_use]
    pub fn multiple_of(mut self, length: i64) -> Self {
        self.multiple = length;
        self
    }

    /// Pads every batch to this length instead of the length of its longest example. An example
    /// longer than this length is an error.
    #[must_use]
    pub fn to(mut self, length: i64) -> Self {
        self.length = Some(length);
        self
    }

    /// Adds a field of this name that contains a boolean mask of shape `[N, L]`. It is true where
    /// the example has an element and false where there is padding, as in Hugging Face's models.
    #[must_use]
    pub fn attention_mask(mut self, name: impl Into<String>) -> Self {
        self.attention_mask = Some(name.into());
        self
    }

    /// Adds a field of this name that contains a boolean mask of shape `[N, L]`. It is true where
    /// there is padding, as [`AttentionMask::padding`](crate::nn::AttentionMask::padding) requires.
    #[must_use]
    pub fn key_padding_mask(mut self, name: impl Into<String>) -> Self {
        self.key_padding_mask = Some(name.into());
        self
    }

    /// Adds a field of this name that contains the lengths of the examples without padding, as
    /// int64 of shape `[N]`.
    #[must_use]
    pub fn lengths(mut self, name: impl Into<String>) -> Self {
        self.lengths = Some(name.into());
        self
    }
}

impl Collate {
    /// Creates a `Collate` that stacks every field and pads none.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares how a field is padded. In a field without such a declaration, all examples must
    /// have the same shape.
    #[must_use]
    pub fn pad(mut self, field: Pad) -> Self {
        self.padded.push(field);
        self
    }

    /// Combines examples into a batch. Each element of `examples` is an example's index in the data
    /// set, for error messages, and the example.
    ///
    /// # Errors
    /// When there is no example. When the examples differ in their fields or dtypes, or in the
    /// shape of a field without padding. When no example has a field for which padding is declared.
    /// When an example is longer than the length to which its field is padded. When the dtype of a
    /// padded field cannot represent the padding value.
    pub fn batch<E: BatchField>(&self, examples: &[(i64, E)]) -> Result<AnyBatch> {
        let name = std::any::type_name::<E>().split('<').next().unwrap_or_default();
        let of = name.rsplit("::").next().unwrap_or_default();
        let mut read = Vec::with_capacity(examples.len());
        for (index, example) in examples {
            let mut single = AnyBatch::single(of);
            let put = example.put("".into(), FieldRole::Value, &mut single);
            put.map_err(|error| error.of_example(*index))?;
            read.push((*index, single));
        }
        Ok(self.stack(&read)?.with_common())
    }

    fn stack(&self, examples: &[(i64, AnyBatch)]) -> Result<AnyBatch> {
        let Some((first, model)) = examples.first() else {
            return Err(Error::config("a batch needs at least one example"));
        };
        for pad in &self.padded {
            if model.tensor(&pad.field).is_none() {
                let names: Vec<&str> = model.tensors().map(|(name, _)| name).collect();
                let (field, names) = (&pad.field, names.join(", "));
                return Err(Error::config(format!(
                    "Pad names the field `{field}`, but the examples have the fields {names}: name \
                     one of these"
                )));
            }
        }
        for (index, example) in examples {
            same_fields((*first, model), (*index, example))?;
            same_fields((*index, example), (*first, model))?;
        }
        let mut batch = AnyBatch::new(model.of());
        for (name, _, role) in model.fields() {
            let mut tensors = Vec::with_capacity(examples.len());
            for (index, example) in examples {
                tensors.push((*index, example.required(name)?));
            }
            self.field(name, role, &tensors, &mut batch)?;
        }
        Ok(batch)
    }

    /// Adds one field to the batch, from the field's tensors in all examples.
    fn field(
        &self,
        name: &str,
        role: FieldRole,
        tensors: &[(i64, &Tensor)],
        batch: &mut AnyBatch,
    ) -> Result<()> {
        let (first, model) = tensors[0];
        let differs = |what: &str, index: i64, here: String, there: String, fix: &str| {
            Error::config(format!(
                "`{name}` has {what} {here} in example {first}, but {there} in example {index}: {fix}"
            ))
        };
        let kind = model.kind();
        for (index, tensor) in tensors {
            let own = tensor.kind();
            if own != kind {
                let (here, there) = (format!("{kind:?}"), format!("{own:?}"));
                return Err(differs("dtype", *index, here, there, "give both the same dtype"));
            }
        }
        let pad = self.padded.iter().find(|pad| pad.field == name);
        // Returns the sizes that must be equal in all examples: all sizes of the tensor or, if the
        // field is padded, all except the first. A scalar cannot be padded.
        let fixed = |tensor: &Tensor| match pad {
            Some(_) => tensor.size().get(1..).map(<[i64]>::to_vec),
            None => Some(tensor.size()),
        };
        let of_model = fixed(model);
        for (index, tensor) in tensors {
            let shapes = || (format!("{:?}", model.size()), format!("{:?}", tensor.size()));
            let own = fixed(tensor);
            if own.is_none() {
                let text = format!(
                    "`{name}` of example {index} is a scalar, which has no length to pad: leave out its Pad"
                );
                return Err(Error::config(text));
            }
            if own != of_model {
                let (here, there) = shapes();
                let fix = match pad {
                    Some(_) => {
                        "padding changes only the first dimension: make the other dimensions equal"
                    }
                    None => "make the shapes equal, or declare padding with Collate::pad",
                };
                return Err(differs("shape", *index, here, there, fix));
            }
            if role == FieldRole::Shared && !tensor.f_equal(model)? {
                let text = format!(
                    "`{name}` is shared by the batch, but examples {first} and {index} have different \
                     values: make them equal, or give the field another role"
                );
                return Err(Error::config(text));
            }
        }
        if role == FieldRole::Shared {
            return batch.push(name.to_owned(), model, role);
        }
        let Some(pad) = pad else {
            let all: Vec<&Tensor> = tensors.iter().map(|(_, tensor)| *tensor).collect();
            return batch.push(name.to_owned(), &Tensor::f_stack(&all, 0)?, role);
        };
        let (padded, lengths) = pad.together(tensors)?;
        batch.push(name.to_owned(), &padded, role)?;
        let places = Tensor::f_arange(padded.size()[1], (Kind::Int64, Device::Cpu))?;
        let present = places.f_unsqueeze(0)?.f_lt_tensor(&lengths.f_unsqueeze(1)?)?;
        if let Some(name) = &pad.attention_mask {
            batch.push(name.clone(), &present, FieldRole::Mask)?;
        }
        if let Some(name) = &pad.key_padding_mask {
            batch.push(name.clone(), &present.f_logical_not()?, FieldRole::Mask)?;
        }
        match &pad.lengths {
            Some(name) => batch.push(name.clone(), &lengths, FieldRole::Ids),
            None => Ok(()),
        }
    }
}

/// Returns an error if the first example has a field that the second example lacks.
fn same_fields((one, has): (i64, &AnyBatch), (two, lacks): (i64, &AnyBatch)) -> Result<()> {
    match has.tensors().find(|(name, _)| lacks.tensor(name).is_none()) {
        Some((name, _)) => Err(Error::config(format!(
            "example {one} has `{name}`, but example {two} does not: give both the same fields"
        ))),
        None => Ok(()),
    }
}

impl Pad {
    /// Returns the padded sequences, of shape `[N, L, …]`, and their lengths before padding.
    fn together(&self, tensors: &[(i64, &Tensor)]) -> Result<(Tensor, Tensor)> {
        let Self { field, value, multiple, .. } = self;
        let (_, model) = tensors[0];
        if *multiple < 1 || self.length.is_some_and(|length| length < 1) {
            return Err(Error::config(format!("`{field}` cannot be padded to a length below 1")));
        }
        let lengths: Vec<i64> = tensors.iter().map(|(_, tensor)| tensor.size()[0]).collect();
        let longest = lengths.iter().copied().max().unwrap_or_default();
        let length = self.length.unwrap_or((longest + multiple - 1) / multiple * multiple);
        if let Some(at) = lengths.iter().position(|own| *own > length) {
            return Err(Error::config(format!(
                "`{field}` of example {} has length {}, but batches are padded to {length}: \
                 truncate it, or pad to a larger length",
                tensors[at].0, lengths[at]
            )));
        }
        let kind = model.kind();
        let given = Tensor::from(*value);
        let there = given.f_to_kind(kind)?.f_double_value(&[])?;
        // A floating-point field may round the padding value. A field of another dtype must
        // represent the value exactly.
        if !crate::precision::is_floating(kind) && there != *value {
            return Err(Error::config(format!(
                "`{field}` is {kind:?}, which cannot represent the padding value {value}: choose another value"
            )));
        }
        let mut size = vec![tensors.len() as i64, length];
        size.extend(&model.size()[1..]);
        let padded = Tensor::f_full(&size, *value, (kind, model.device()))?;
        for (at, ((_, tensor), length)) in tensors.iter().zip(&lengths).enumerate() {
            padded.f_select(0, at as i64)?.f_narrow(0, 0, *length)?.f_copy_(tensor)?;
        }
        Ok((padded, Tensor::f_from_slice(&lengths)?))
    }
}
