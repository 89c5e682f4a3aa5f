//! Digests of the initial weights, the order of examples and the validation set. They must be the
//! same in two paired runs: the run under a precision, and the run under 32-true with the same
//! seed.

use std::{cell::RefCell, collections::HashSet, rc::Rc};

use amp_core::{
    LightningModule, Result,
    data::{AnyBatch, DataModule, SharedDataset},
    nn::named_tensors,
    tch::{Device, Kind, Tensor},
};
use sha2::{Digest, Sha256};

use crate::{rounding::rounding_of, scalars::all_finite};

/// How many batches at the start of a run are recorded, to compare the order of the examples
/// between runs. Two runs that shuffle differently already differ in these batches. Later batches
/// cannot be read if they are part of a CUDA graph.
const NOTED: usize = 3;

/// How many values of each tensor are recorded in each of the first [`NOTED`] batches. If a run
/// stores its batches in 16 bits, its digest differs from that of 32-true. Then these values are
/// compared, with a tolerance for rounding.
const VALUES: i64 = 64;

/// Digests are computed of at most this many examples of a data set, because a data set may be
/// larger than memory.
const MOST_EXAMPLES: i64 = 1 << 16;
/// Digests are computed of at most this many elements of a data set, in all examples together.
const MOST_NUMBERS: i64 = 1 << 27;
/// The number of examples that are read at once.
const AT_ONCE: usize = 256;

/// The record of the order in which a run uses the examples: a digest and some values of its first
/// batches.
#[derive(Debug, Clone, Default)]
pub(super) struct Order(Rc<RefCell<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    count: usize,
    hash: Sha256,
    values: Vec<f64>,
}

impl Order {
    pub(super) fn add(&self, batch: &AnyBatch) -> Result<()> {
        let noted = &mut *self.0.borrow_mut();
        if noted.count < NOTED {
            noted.count += 1;
            for (_, tensor) in batch.tensors() {
                noted.hash.update(bytes(tensor)?);
                noted.values.extend(spaced(tensor)?);
            }
        }
        Ok(())
    }

    pub(super) fn digest(&self) -> String {
        hex(&self.0.borrow().hash.clone().finalize())
    }

    /// Returns the recorded values.
    pub(super) fn values(&self) -> Vec<f64> {
        self.0.borrow().values.clone()
    }
}

/// Returns evenly spaced elements of a tensor. In place of infinities and NaN, which JSON cannot
/// represent, returns `f64::MAX`.
fn spaced(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor.f_detach()?.f_reshape([-1])?;
    let step = (flat.numel() as i64 / VALUES).max(1);
    let flat = flat.f_slice(0, 0, Some(step * VALUES), step)?;
    let values = Vec::<f64>::try_from(&flat.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?;
    Ok(values.into_iter().map(|own| if own.is_finite() { own } else { f64::MAX }).collect())
}

/// Returns whether the values of two runs' first batches are equal up to rounding to `storage`, the
/// dtype in which one of the runs stores its batches. The tolerance allows for several rounding
/// errors, because the transforms of the data may round too.
pub(super) fn are_near(base: &[f64], own: &[f64], storage: Kind) -> bool {
    let size = base.iter().map(|value| value.powi(2)).sum::<f64>() / base.len().max(1) as f64;
    let unit = 8.0 * rounding_of(storage).max(rounding_of(Kind::Float));
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= unit * (a.abs() + size.sqrt());
    base.len() == own.len() && base.iter().zip(own).all(near)
}

/// Returns a digest of the initial weights.
pub(super) fn weights(model: &dyn LightningModule) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, tensor, _) in named_tensors(model) {
        hash.update(name);
        hash.update(own_bytes(&tensor)?);
    }
    Ok(hex(&hash.finalize()))
}

/// Returns whether every value of the model is finite.
pub(super) fn is_finite(model: &dyn LightningModule) -> Result<bool> {
    let tensors: Vec<Tensor> =
        named_tensors(model).into_iter().map(|(_, tensor, _)| tensor).collect();
    all_finite(&tensors)
}

/// Digests of a validation set.
pub(super) struct Validation {
    /// A digest of each example that was read.
    examples: Vec<String>,
}

impl Validation {
    /// Reads the validation set of `data`.
    pub(super) fn of(data: &DataModule) -> Result<Self> {
        let mut examples = Vec::new();
        for (_, set) in data.val.iter() {
            examples.extend(sample(set, None)?.0);
        }
        Ok(Self { examples })
    }

    /// Returns a digest of the whole set.
    pub(super) fn digest(&self) -> String {
        digest(&self.examples)
    }

    /// Returns the fraction of the examples on which a run with this seed also trains.
    pub(super) fn overlap(&self, data: &DataModule, seed: u64) -> Result<f64> {
        let (train, seen) = sample(&data.train, data.trained_on(seed)?.as_deref())?;
        let train: HashSet<String> = train.into_iter().collect();
        let shared = self.examples.iter().filter(|example| train.contains(*example)).count();
        // Only the fraction `seen` of the training examples was read, so only about this fraction
        // of the duplicates was found. Dividing by `seen` estimates the number of all duplicates.
        let overlap = shared as f64 / self.examples.len().max(1) as f64 / seen;
        Ok(overlap.min(1.0))
    }
}

/// Returns digests of some of the examples at the indices `part`, or of the whole data set if
/// `part` is `None`, and the fraction of these examples that were used. The examples are evenly
/// spaced. If the data set is a stream, they are the first examples.
fn sample(set: &SharedDataset, part: Option<&[i64]>) -> Result<(Vec<String>, f64)> {
    let length = part.map_or(set.len(), |part| part.len() as i64);
    if length == 0 {
        return Ok((Vec::new(), 1.0));
    }
    let first = set.head(1)?;
    let size: usize = first.tensors().map(|(_, tensor)| tensor.numel()).sum();
    let count = length.min(MOST_EXAMPLES).min(MOST_NUMBERS / size.max(1) as i64).max(1);
    let mut digests = Vec::new();
    let spaced = |at: i64| (i128::from(at) * i128::from(length) / i128::from(count)) as i64;
    let places: Vec<i64> = match set.is_stream() {
        true => (0..count).collect(),
        false => {
            let spaced = (0..count).map(spaced);
            spaced.map(|at| part.map_or(at, |part| part[at as usize])).collect()
        }
    };
    // Reads the examples one at a time, because an example may look different in a larger batch:
    // padded to the length of the longest example, or stored with all others in one shared tensor,
    // as the nodes of graphs are. Only data sets that return whole batches without shared tensors
    // are read in batches, because reading single examples may be slow for them. (A stream copies
    // its state for each example, but this state is small.)
    let alone = set.reads_single_examples() || set.is_stream() || !first.is_divisible();
    let at_once = if alone { 1 } else { AT_ONCE };
    for places in places.chunks(at_once) {
        digests.extend(examples(&set.gather(places)?)?);
    }
    Ok((digests, count as f64 / length as f64))
}

/// Returns a digest of each example of the batch. A digest is computed from the example's values in
/// all tensors of the batch, and from the shared tensors.
fn examples(batch: &AnyBatch) -> Result<Vec<String>> {
    let length = batch.len();
    let (mut rows, mut shared) = (Vec::new(), Sha256::new());
    for (name, tensor) in batch.tensors() {
        match batch.is_shared(name) {
            true => shared.update(own_bytes(tensor)?),
            false => rows.push(own_bytes(tensor)?),
        }
    }
    Ok((0..length as usize)
        .map(|at| {
            let mut hash = shared.clone();
            for tensor in &rows {
                let size = tensor.len() / length as usize;
                hash.update(&tensor[at * size..(at + 1) * size]);
            }
            hex(&hash.finalize())
        })
        .collect())
}

/// Combines several digests into one digest.
pub(crate) fn digest<T: AsRef<str>>(parts: &[T]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_ref());
        hash.update([0]);
    }
    hex(&hash.finalize())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the bytes of a tensor's values in f64, which represents the values of every dtype
/// exactly.
fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    own_bytes(&tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)
}

/// Returns the bytes of a tensor's elements in the dtype of the tensor.
fn own_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?.f_reshape([-1])?;
    let flat = flat.f_view_dtype(Kind::Uint8)?;
    let mut bytes = vec![0; flat.numel()];
    flat.f_copy_data_u8(&mut bytes, flat.numel())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use amp_core::{
        Error,
        data::{
            Batch, BatchType, Collate, FieldRole, IterableDataset, MapDataset, Pad, Shuffled,
            Subset,
        },
        precision::{Policy, Precision},
        random::Rng,
        state::State,
    };
    use rstest::rstest;

    use super::*;

    /// Checks that `are_near` accepts the same batches in another dtype, and refuses batches whose
    /// examples have another order.
    #[test]
    fn rounded_batches_have_the_same_order() -> Result<()> {
        let input = Tensor::f_arange(4096, (Kind::Double, Device::Cpu))?.f_sin()?;
        let of = |rows: &Tensor, precision: Precision| -> Result<(String, Vec<f64>)> {
            let input = input.f_view([64, 64])?.f_index_select(0, rows)?;
            let target = input.f_select(1, 0)?;
            let policy = Policy::new(precision, Device::Cpu);
            let order = Order::default();
            order.add(&Batch::new(input, target)?.to_any()?.place(policy)?)?;
            Ok((order.digest(), order.values()))
        };
        let rows = Tensor::f_arange(64, (Kind::Int64, Device::Cpu))?;
        let (digest, values) = of(&rows, Precision::F32True)?;
        for precision in [Precision::F16True, Precision::Bf16True, Precision::F64True] {
            let (rounded, own) = of(&rows, precision)?;
            assert_ne!(digest, rounded, "{precision}");
            assert!(are_near(&values, &own, precision.storage()), "{precision}");
            let (_, other) = of(&rows.f_roll([1], [0])?, precision)?;
            assert!(!are_near(&values, &other, precision.storage()), "{precision}");
        }
        Ok(())
    }

    /// A data set of graphs. A graph is stored as one number for each of its nodes. A batch
    /// contains the nodes of all its graphs, one after the other. Each graph has the class 0.
    struct Graphs(Vec<Vec<f32>>);

    impl MapDataset for Graphs {
        type Example = Batch;

        fn len(&self) -> i64 {
            self.0.len() as i64
        }

        fn get(&self, index: i64, _: &mut Rng) -> Result<Batch> {
            let input = Tensor::f_from_slice(&self.0[index as usize])?;
            Ok(Batch { input, target: Tensor::from(0_i64) })
        }

        fn collate(&self, examples: &[(i64, Batch)], _: &mut Rng) -> Result<AnyBatch> {
            let nodes: Vec<&Tensor> = examples.iter().map(|(_, graph)| &graph.input).collect();
            let targets: Vec<&Tensor> = examples.iter().map(|(_, graph)| &graph.target).collect();
            let mut batch = AnyBatch::new("Graphs");
            batch.push("nodes", &Tensor::f_cat(&nodes, 0)?, FieldRole::Shared)?;
            batch.push("target", &Tensor::f_stack(&targets, 0)?, FieldRole::Ids)?;
            Ok(batch)
        }
    }

    /// A data set of sentences. A batch pads its sentences to the length of the longest one.
    struct Sentences(Vec<Vec<i64>>);

    impl MapDataset for Sentences {
        type Example = Batch;

        fn len(&self) -> i64 {
            self.0.len() as i64
        }

        fn get(&self, index: i64, _: &mut Rng) -> Result<Batch> {
            let input = Tensor::f_from_slice(&self.0[index as usize])?;
            Ok(Batch { input, target: Tensor::from(0_i64) })
        }

        fn collate(&self, examples: &[(i64, Batch)], _: &mut Rng) -> Result<AnyBatch> {
            Collate::new().pad(Pad::new("input", 0.0)).batch(examples)
        }
    }

    /// A stream of the sentences, repeated without end. The number is the index of the next
    /// sentence.
    struct Spoken(Sentences, i64);

    impl IterableDataset for Spoken {
        type Example = Batch;

        fn epoch_len(&self) -> i64 {
            self.0.len()
        }

        fn next(&mut self, rng: &mut Rng) -> Result<Batch> {
            self.1 += 1;
            self.0.get((self.1 - 1) % self.0.len(), rng)
        }

        fn state(&self) -> Result<State> {
            let mut state = State::default();
            state.put("next", &self.1)?;
            Ok(state)
        }

        fn load_state(&mut self, state: &State) -> Result<()> {
            self.1 = state.get("next")?;
            Ok(())
        }

        fn collate(&self, examples: &[(i64, Batch)], rng: &mut Rng) -> Result<AnyBatch> {
            self.0.collate(examples, rng)
        }
    }

    /// Checks that a validation sentence is found in the training set even if batches of the two
    /// sets pad it to different lengths.
    #[rstest]
    #[case::indexed(false)]
    #[case::stream(true)]
    fn padding_does_not_hide_an_example(#[case] is_stream: bool) -> Result<()> {
        let train = Sentences(vec![vec![1, 2], vec![3, 4, 5, 6]]);
        let train = if is_stream { Spoken(train, 0).shared()? } else { train.shared() };
        assert_eq!(train.reads_single_examples(), !is_stream);
        let val = Sentences(vec![vec![1, 2], vec![7, 8, 9]]).shared();
        let data = DataModule::new("sentences", train, val, 2);
        assert_eq!(Validation::of(&data)?.overlap(&data, 0)?, 0.5);
        Ok(())
    }

    /// Checks that only those rows of a data set count as training examples that the order reads,
    /// as in k-fold cross-validation.
    #[test]
    fn rows_outside_of_the_order_are_no_training_examples() -> Result<()> {
        let input = Tensor::f_arange(10, (Kind::Float, Device::Cpu))?.f_view([10, 1])?;
        let target = Tensor::f_zeros([10], (Kind::Int64, Device::Cpu))?;
        let overlap = |read: Vec<i64>| {
            let held_out = Batch::new(input.f_narrow(0, 2, 4)?, target.f_narrow(0, 2, 4)?)?;
            let all = Batch::new(input.shallow_clone(), target.shallow_clone())?;
            let data =
                DataModule::new("folds", all, held_out, 2).with_order(Subset::new(read, Shuffled)?);
            Validation::of(&data)?.overlap(&data, 7)
        };
        assert_eq!(overlap(vec![0, 1, 6, 7, 8, 9])?, 0.0);
        assert_eq!(overlap(vec![9, 8, 7, 6, 5, 1, 0])?, 0.25);
        Ok(())
    }

    /// Checks that graphs are compared by their nodes even if a batch stores the nodes of all its
    /// graphs in one shared tensor.
    #[test]
    fn graphs_are_compared_by_their_nodes() -> Result<()> {
        let of = |train: &[&[f32]], val: &[&[f32]]| {
            let set = |graphs: &[&[f32]]| {
                Graphs(graphs.iter().map(|nodes| nodes.to_vec()).collect()).shared()
            };
            let data = DataModule::new("graphs", set(train), set(val), 2);
            let validation = Validation::of(&data)?;
            Ok::<_, Error>((validation.overlap(&data, 0)?, validation.digest()))
        };
        let train: [&[f32]; 4] = [&[1.0], &[1.0, 2.0], &[3.0, 4.0, 5.0], &[6.0]];
        let other = of(&train, &[&[1.0, 2.0, 3.0], &[7.0]])?;
        assert_eq!(other.0, 0.0);
        let half = of(&train, &[&[3.0, 4.0, 5.0], &[7.0]])?;
        assert_eq!(half.0, 0.5);
        assert_ne!(other.1, half.1);
        Ok(())
    }
}
