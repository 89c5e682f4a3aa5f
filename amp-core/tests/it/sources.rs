//! Tests of data sets from token files, numpy arrays, tables and windows of time series.

use std::path::PathBuf;

use amp_core::{
    data::{
        DataLoader, Loading, MapDataset, Placement, Table, TokenFile, TokenWidth, Windows, map_npy,
        read_npy,
    },
    precision::Policy,
    prelude::*,
    random::Rng,
};
use rstest::rstest;
use tempfile::{TempDir, tempdir};

use crate::support::{bits::values, device, message};

/// Creates a temporary file with the given content. Returns the folder and the path of the file.
fn file(bytes: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("data");
    std::fs::write(&path, bytes).expect("room on the disk");
    (folder, path)
}

fn example<D: MapDataset<Example = Batch>>(set: &D, index: i64) -> Result<(Vec<f64>, Vec<f64>)> {
    let Batch { input, target } = set.get(index, &mut Rng::with_seed(0))?;
    Ok((values(&input), values(&target)))
}

/// Returns a file of the tokens 2^bits − 1, 2^bits − 2, …, which are negative if read as signed.
fn tokens(width: TokenWidth, count: u32) -> Vec<u8> {
    let bytes = |at: u32| match width {
        TokenWidth::U16 => (u16::MAX - at as u16).to_le_bytes().to_vec(),
        TokenWidth::U32 => (u32::MAX - at).to_le_bytes().to_vec(),
    };
    (0..count).flat_map(bytes).collect()
}

/// A token file has a window of `length` tokens every `stride` tokens, as far as the windows fit
/// into the file. The targets of a window are its tokens, shifted by one.
#[rstest]
#[case(TokenWidth::U16, 65535.0)]
#[case(TokenWidth::U32, 4294967295.0)]
fn windows_of_tokens_predict_the_next(
    #[case] width: TokenWidth,
    #[case] first: f64,
    #[values((4, 4, 3), (4, 2, 5), (4, 1, 10), (13, 1, 1), (5, 3, 3))] shape: (i64, i64, i64),
) -> Result<()> {
    let (length, stride, windows) = shape;
    let (_folder, path) = file(tokens(width, 14));
    let set = TokenFile::open(&path, width, length)?.stride(stride)?;
    assert_eq!((set.tokens(), set.len()), (14, windows));
    for at in 0..windows {
        let from = |start: i64| -> Vec<f64> {
            (start..start + length).map(|place| first - place as f64).collect()
        };
        assert_eq!(example(&set, at)?, (from(at * stride), from(at * stride + 1)));
    }
    assert!((windows - 1) * stride + length < 14);
    assert!(windows * stride + length + 1 > 14, "one more window would fit");
    Ok(())
}

#[rstest]
#[case(5, TokenWidth::U16, 1, "5 bytes are not a whole number of tokens of 2 bytes")]
#[case(
    8,
    TokenWidth::U32,
    2,
    "a window of 2 tokens and the token after it do not fit into 2 tokens: choose a length from 1 to 1"
)]
#[case(8, TokenWidth::U32, 0, "a window of 0 tokens and the token after it do not fit")]
#[case(0, TokenWidth::U32, 1, "the file is empty: write it again")]
fn invalid_token_files_are_refused(
    #[case] bytes: usize,
    #[case] width: TokenWidth,
    #[case] length: i64,
    #[case] says: &str,
) {
    let (_folder, path) = file(vec![1; bytes]);
    let text = message(TokenFile::open(&path, width, length));
    assert!(text.starts_with(&format!("{}: {says}", path.display())), "{text}");
}

#[test]
fn tokens_of_another_vocabulary_are_refused() -> Result<()> {
    let (_folder, path) = file([1, 0, 2, 0, 3, 0, 9, 0]);
    let open = || TokenFile::open(&path, TokenWidth::U16, 1);
    assert_eq!(example(&open()?.vocabulary(10), 2)?, (vec![3.0], vec![9.0]));
    let set = open()?.vocabulary(9);
    assert_eq!(example(&set, 1)?, (vec![2.0], vec![3.0]));
    let text = message(example(&set, 2));
    assert!(
        text.contains("the token 9 is not below the size of the vocabulary, 9: was the file"),
        "{text}"
    );
    assert_eq!(message(open()?.stride(0)), "stride 0: it must be at least 1");
    let text = message(TokenFile::open(path.with_extension("none"), TokenWidth::U16, 1));
    assert!(text.contains("data.none: No such file"), "{text}");
    Ok(())
}

/// Random windows can begin anywhere in the file. Their positions differ from epoch to epoch and
/// from seed to seed. They do not depend on the number of workers or on whether the run was resumed
/// in the middle of an epoch.
#[test]
fn random_windows_follow_from_the_seed() -> Result<()> {
    let (_folder, path) = file(tokens(TokenWidth::U16, 14));
    let open = || TokenFile::open(&path, TokenWidth::U16, 4);
    let set = open()?.random(400)?.shared();
    let read = |num_workers, seed, epoch, from| -> Result<Vec<(Vec<f64>, Vec<f64>)>> {
        let loading = Loading { num_workers, placement: Placement::Host, ..Loading::default() };
        let policy = Policy::new(Precision::F32True, device());
        let loader = DataLoader::new(&set, 1, loading, policy)?.drawing(seed);
        let batches = loader.epoch(epoch, from)?.map(|batch| {
            let batch = Batch::from_any(&batch?)?;
            Ok((values(&batch.input), values(&batch.target)))
        });
        batches.collect()
    };
    let own = read(0, 1, 0, 0)?;
    let mut starts = [0; 10];
    for (input, target) in &own {
        let start = 65535.0 - input[0];
        let from =
            |first: f64| -> Vec<f64> { (0..4).map(|at| 65535.0 - first - f64::from(at)).collect() };
        assert_eq!((input, target), (&from(start), &from(start + 1.0)));
        starts[start as usize] += 1;
    }
    // There are 400 random windows and ten possible starts, so each start is expected 40 times.
    // Five standard deviations are 30.
    assert!(starts.iter().all(|count| (10..=70).contains(count)), "{starts:?}");
    assert_eq!(read(3, 1, 0, 0)?, own);
    assert_eq!(read(0, 1, 0, 150)?, own[150..]);
    for (seed, epoch) in [(2, 0), (1, 1)] {
        assert_ne!(read(0, seed, epoch, 0)?, own);
    }
    assert!(message(open()?.random(0)).starts_with("the number of random windows is 0"));
    Ok(())
}

/// Several workers can read windows from the same file at the same time.
#[test]
fn workers_read_windows() -> Result<()> {
    let (_folder, path) = file(tokens(TokenWidth::U16, 300));
    let read = |num_workers| -> Result<Vec<Vec<f64>>> {
        let set = TokenFile::open(&path, TokenWidth::U16, 8)?.stride(3)?.shared();
        let loading = Loading { num_workers, placement: Placement::Host, ..Loading::default() };
        let loader = DataLoader::new(&set, 4, loading, Policy::new(Precision::F32True, device()))?
            .shuffled(1);
        let batches = loader.epoch(0, 0)?.map(|batch| {
            let batch = Batch::from_any(&batch?)?;
            assert_eq!((batch.input.kind(), batch.input.size()[1]), (Kind::Int64, 8));
            Ok([values(&batch.input), values(&batch.target)].concat())
        });
        batches.collect()
    };
    assert_eq!(read(3)?, read(0)?);
    Ok(())
}

/// Returns the content of an `.npy` file as numpy 2.4 writes it: the format version, the header
/// `text`, padded to a multiple of 64 bytes, and the data.
fn npy(version: u8, text: &str, data: &[u8]) -> Vec<u8> {
    let width = if version == 1 { 2 } else { 4 };
    let length = (8 + width + text.len() + 1).next_multiple_of(64) - 8 - width;
    let length_bytes = (length as u32).to_le_bytes();
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    bytes.extend(&length_bytes[..width]);
    bytes.extend(format!("{text:<width$}\n", width = length - 1).bytes());
    bytes.extend(data);
    bytes
}

/// Files that numpy 2.4 wrote by `numpy.lib.format.write_array` are read with the same values.
#[rstest]
#[case::f4(
    npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
        b"\x00\x00\x00\x00\x00\x00\x80>\x00\x00\x00?\x00\x00@?\x00\x00\x80?\x00\x00\xa0?"),
    Kind::Float, &[2, 3], &[0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
)]
#[case::fortran(
    npy(1, "{'descr': '<i2', 'fortran_order': True, 'shape': (2, 3, 2), }",
        b"\x00\x00\x06\x00\x02\x00\x08\x00\x04\x00\n\x00\x01\x00\x07\x00\x03\x00\t\x00\x05\x00\x0b\x00"),
    Kind::Int16, &[2, 3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
)]
#[case::scalar(
    npy(2, "{'descr': '<f8', 'fortran_order': False, 'shape': (), }", b"\x00\x00\x00\x00\x00\x00\x04@"),
    Kind::Double, &[], &[2.5]
)]
#[case::bools(
    npy(3, "{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }", b"\x01\x00\x01"),
    Kind::Bool, &[3], &[1.0, 0.0, 1.0]
)]
#[case::nothing(
    npy(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 3), }", b""),
    Kind::Double, &[0, 3], &[]
)]
fn arrays_are_read_as_numpy_wrote_them(
    #[case] bytes: Vec<u8>,
    #[case] kind: Kind,
    #[case] shape: &[i64],
    #[case] expected: &[f64],
) -> Result<()> {
    assert_eq!((bytes.len() - expected.len() * kind.elt_size_in_bytes()) % 64, 0);
    let (_folder, path) = file(&bytes);
    for array in [read_npy(&path)?, map_npy(&path)?] {
        assert_eq!((array.kind(), array.size().as_slice()), (kind, shape));
        assert_eq!(values(&array), expected);
    }
    // Writing to a mapped array does not change the file.
    let _ = map_npy(&path)?.zero_();
    assert_eq!(std::fs::read(&path).expect("the file"), bytes);
    Ok(())
}

const TWO: &[u8] = &[0; 8];

#[rstest]
#[case(
    npy(1, "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }", TWO),
    "the array has the dtype `<u2`, which is not supported: save it as"
)]
#[case(
    npy(1, "{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", TWO),
    "the array has the dtype `>f4`, which is not supported"
)]
#[case(
    npy(
        1,
        "{'descr': [('a', '<f4'), ('b', '<i4')], 'fortran_order': False, 'shape': (1,), }",
        TWO
    ),
    "the array has the dtype `[('a', '<f4'), ('b', '<i4')]`, which is not supported"
)]
#[case(
    npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", TWO),
    "the file has 8 bytes of data, but an array of shape [3] and dtype Float needs another number of bytes: write the file again"
)]
#[case(
    npy(1, "{'descr': '<f4', 'shape': (2,), }", TWO),
    "not a .npy file, or its header is damaged"
)]
#[case(
    npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", TWO),
    "not a .npy file, or its header is damaged"
)]
#[case(
    npy(9, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", TWO),
    "not a .npy file, or its header is damaged"
)]
#[case(b"\x93NUMPY\x01\x00v\x00{'descr'".to_vec(), "not a .npy file, or its header is damaged")]
#[case(b"PK\x03\x04 another kind of file".to_vec(), "not a .npy file, or its header is damaged")]
fn invalid_arrays_are_refused(#[case] bytes: Vec<u8>, #[case] says: &str) {
    let (_folder, path) = file(bytes);
    let text = message(read_npy(&path));
    assert!(text.starts_with(&format!("{}: {says}", path.display())), "{text}");
}

const PEOPLE: &str =
    "age, job ,hours,class\n31,cook,40.5,1\n45,\"clerk, head\",,0\n28,cook,1e1,1\n";

#[test]
fn columns_become_tensors() -> Result<()> {
    let (_folder, path) = file(PEOPLE);
    let table = Table::read(&path)?;
    assert_eq!(
        (table.len(), table.columns()),
        (3, ["age", "job", "hours", "class"].map(str::to_owned).as_slice())
    );
    let numbers = table.numbers_or(&["hours", "age"], -1.0)?;
    assert_eq!((numbers.size(), numbers.kind()), (vec![3, 2], Kind::Float));
    assert_eq!(values(&numbers), [40.5, 31.0, -1.0, 45.0, 10.0, 28.0]);
    let class = table.integers("class")?;
    assert_eq!(
        (class.size(), class.kind(), values(&class)),
        (vec![3], Kind::Int64, vec![1.0, 0.0, 1.0])
    );
    let jobs = table.categories("job")?;
    assert_eq!(
        (jobs.names(), jobs.len()),
        (["clerk, head".to_owned(), "cook".to_owned()].as_slice(), 2)
    );
    let ids = table.ids("job", &jobs)?;
    assert_eq!((ids.kind(), values(&ids)), (Kind::Int64, vec![1.0, 0.0, 1.0]));
    Ok(())
}

/// A category that the training set does not have is refused, unless `with_unknown` adds an id for
/// unknown categories after the others.
#[test]
fn unknown_categories_need_a_declared_id() -> Result<()> {
    let (_folder, path) = file(PEOPLE);
    let (_other, other) = file("job\nbaker\ncook\n");
    let (jobs, other_table) = (Table::read(&path)?.categories("job")?, Table::read(&other)?);
    let text = message(other_table.ids("job", &jobs));
    let says = "line 2: `job` is `baker`, which is not a known category; Categories::with_unknown";
    assert!(text.starts_with(&format!("{}, {says}", other.display())), "{text}");
    let jobs = jobs.with_unknown();
    assert_eq!((values(&other_table.ids("job", &jobs)?), jobs.len()), (vec![2.0, 1.0], 3));
    Ok(())
}

#[test]
fn cells_that_do_not_fit_are_named() -> Result<()> {
    let (_folder, path) = file(PEOPLE);
    let table = Table::read(&path)?;
    let at = |text: String| text.replace(&path.display().to_string(), "FILE");
    assert_eq!(
        at(message(table.numbers(&["hours"]))),
        "FILE, line 3: `hours` is missing: fill in the cell, or declare a replacement for missing values"
    );
    assert_eq!(
        at(message(table.numbers_or(&["age", "job"], 0.0))),
        "FILE, line 2: `job` is `cook`, which is not a number"
    );
    assert_eq!(
        at(message(table.integers("hours"))),
        "FILE, line 2: `hours` is `40.5`, which is not a whole number"
    );
    assert_eq!(
        at(message(table.numbers(&["Age"]))),
        "FILE: no column `Age`; there are age, job, hours, class"
    );
    let (_folder, path) = file("a,b\n1,2\n3\n");
    let text = message(Table::read(&path));
    assert!(text.contains("record 2 (line: 3, byte: 8): found record with 1 fields"), "{text}");
    let (_folder, path) = file("a,b,a\n1,2,3\n");
    assert!(message(Table::read(&path)).ends_with("two columns are called `a`"));
    Ok(())
}

/// Returns the series `number` as a tensor `[count, 2]`. The row of time step t is `[x, -x]` with
/// x = t + 1000 · `number`, so that a value shows its series and its time step.
fn series(number: i64, count: i64) -> Tensor {
    let times = Tensor::arange(count, (Kind::Float, Device::Cpu)) + (1000 * number) as f64;
    Tensor::stack(&[&times, &-&times], 1)
}

/// Returns the first value of each window, in order. It shows the series of the window and the time
/// step at which the window begins.
fn starts(windows: &Windows) -> Result<Vec<i64>> {
    let start = |at| {
        let example = windows.get(at, &mut Rng::with_seed(0))?;
        let (past, future) = (values(&example.input), values(&example.target));
        let times: Vec<f64> = [past, future].concat();
        let first = times[0];
        for (at, two) in times.chunks(2).enumerate() {
            assert_eq!(two, [first + at as f64, -first - at as f64], "the pairs are consecutive");
        }
        assert_eq!((example.input.size(), example.target.size()), (vec![3, 2], vec![2, 2]));
        Ok(first as i64)
    };
    (0..windows.len()).map(start).collect()
}

/// No window has values of two series, and a series that is too short has no windows.
#[test]
fn windows_stay_within_a_series() -> Result<()> {
    let windows =
        || Windows::new(vec![series(0, 7), series(1, 4), series(2, 6), series(3, 5)], 3, 2);
    assert_eq!(starts(&windows()?)?, [0, 1, 2, 2000, 2001, 3000]);
    assert_eq!(starts(&windows()?.stride(2)?)?, [0, 2, 2000, 3000]);
    assert!(windows()?.get(6, &mut Rng::with_seed(0)).is_err());
    Ok(())
}

/// After `Windows::split`, training windows and validation windows have no value in common.
#[test]
fn a_split_leaks_nothing() -> Result<()> {
    let (before, after) = Windows::new(vec![series(0, 20), series(1, 11)], 3, 2)?.split(0.5)?;
    assert_eq!(starts(&before)?, [0, 1, 2, 3, 4, 5, 1000]);
    assert_eq!(starts(&after)?, [10, 11, 12, 13, 14, 15, 1005, 1006]);
    let numbers = |set: &Windows| -> Result<Vec<i64>> {
        let starts = starts(set)?;
        Ok(starts.iter().flat_map(|start| *start..start + 5).collect())
    };
    let after = numbers(&after)?;
    assert!(numbers(&before)?.iter().all(|time| !after.contains(time)));
    Ok(())
}

#[test]
fn invalid_windows_are_refused() -> Result<()> {
    let text = message(Windows::new(vec![series(0, 4), series(0, 3)], 3, 2));
    assert_eq!(text, "no window of context 3 and horizon 2 fits: the longest series has 4 values");
    let text = message(Windows::new(vec![series(0, 9)], 0, 2));
    assert_eq!(text, "windows of context 0 and horizon 2: both must be at least 1");
    let text = message(Windows::new(vec![Tensor::from(1.0)], 1, 1));
    assert_eq!(text, "series 0 is a scalar: give a tensor [T, …] of T time steps");
    let windows = Windows::new(vec![series(0, 9)], 3, 2)?;
    let text = message(windows.split(0.8));
    assert_eq!(text, "no window of context 3 and horizon 2 fits: the longest series has 2 values");
    assert!(message(windows.split(1.0)).starts_with("the series cannot be split at 1: "));
    assert_eq!(message(windows.stride(0)), "stride 0: it must be at least 1");
    Ok(())
}
