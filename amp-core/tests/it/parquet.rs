//! Tests of Parquet files that pandas and pyarrow have written (fixtures/oracles/tables.json).

use std::path::PathBuf;

use amp_core::{
    data::{
        AnyBatch, Categories, Columns, DataLoader, Dataset, Epoch, Loading, ParquetTable,
        Placement, Sampler, SharedDataset, Shuffled,
    },
    precision::Policy,
    prelude::*,
};
use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    support::{
        bits::{from_bits, values},
        message,
        oracle::{integer, oracle, text},
    },
    tables::{file, of_file},
    transforms::bytes,
};

fn recorded() -> Value {
    oracle!("tables.json")
}

fn written(all: &Value, kind: &str) -> (TempDir, PathBuf) {
    file("table.parquet", bytes(text(&all["files"], kind)))
}

/// Returns the recorded values of a column under the key `of`, if there are any. A missing value is
/// `None`.
fn cells<'a>(column: &'a Value, of: &str) -> Option<Vec<Option<&'a Value>>> {
    let cells = column.get(of)?.as_array().expect("cells");
    Some(cells.iter().map(|cell| Some(cell).filter(|cell| !cell.is_null())).collect())
}

/// Every column has the values that pyarrow reads. Each column is read as numbers, as integers and
/// as categories, if its type allows this. The files have several compressions and row groups.
#[rstest]
fn columns_are_read_as_pyarrow_reads_them(
    #[values("plain", "snappy", "gzip", "lz4", "zstd")] kind: &str,
) -> Result<()> {
    let all = recorded();
    let (_folder, path) = written(&all, kind);
    let table = ParquetTable::open(&path)?;
    assert_eq!(table.len(), integer(&all, "rows"));
    let mut read = 0;
    for (name, column) in all["columns"].as_object().expect("columns") {
        if let Some(cells) = cells(column, "floats") {
            let columns = Columns::new().numbers_or("x", &[name], -7.0);
            let seen = table.batch(&columns)?.required("x")?.shallow_clone();
            let expected = cells.iter().map(|cell| {
                let bits = cell.map(|bits| from_bits(Kind::Float, bits.as_str().expect("bits")));
                bits.map_or(-7.0, |number| number.double_value(&[0]))
            });
            assert_eq!(values(&seen), expected.collect::<Vec<f64>>(), "{name}");
            let flags = table.batch(&Columns::new().missing("x", &[name]))?;
            let expected = cells.iter().map(|cell| f64::from(u8::from(cell.is_none())));
            let expected = expected.collect::<Vec<f64>>();
            assert_eq!(values(flags.required("x")?), expected, "{name}");
            read += 1;
        }
        if let Some(cells) = cells(column, "integers") {
            let columns = Columns::new().integers_or("x", name, -7);
            let seen = Vec::<i64>::try_from(table.batch(&columns)?.required("x")?)?;
            let expected =
                cells.iter().map(|cell| cell.map_or(-7, |own| own.as_i64().expect("an integer")));
            assert_eq!(seen, expected.collect::<Vec<i64>>(), "{name}");
            read += 1;
        }
        if let Some(cells) = cells(column, "texts") {
            let categories = table.categories(name)?;
            let columns =
                Columns::new().ids_or("x", name, &categories.clone().with_unknown(), "\u{0}");
            let seen = Vec::<i64>::try_from(table.batch(&columns)?.required("x")?)?;
            let names =
                seen.iter().map(|id| categories.names().get(*id as usize).map(String::as_str));
            let expected = cells.iter().map(|cell| cell.and_then(Value::as_str));
            assert_eq!(names.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{name}");
            read += 1;
        }
    }
    assert!(read > 20, "{read}");
    Ok(())
}

fn columns() -> Columns {
    Columns::new()
        .numbers("number", &["f64", "i64"])
        .ids("city", "city", &Categories::of(["Köln", "Oslo", "Bern"]))
        .integers("flag", "flag")
}

/// Rows can be read in any order and repeatedly. They equal the rows of the whole table, however
/// many row groups are kept in memory.
#[rstest]
fn rows_are_read_when_they_are_needed(#[values(1, 2, 3)] kept: usize) -> Result<()> {
    let all = recorded();
    let (_folder, path) = written(&all, "snappy");
    let table = ParquetTable::open_all(&[&path, &path])?;
    assert_eq!(table.group_rows(), [4, 4, 3, 4, 4, 3]);
    let whole = table.batch(&columns())?;
    let mut set = table.lazily(columns())?.kept(kept);
    assert_eq!(set.len(), 22);
    for rows in [vec![0_i64], vec![21, 3, 3, 10, 4, 11], (0..22).rev().collect(), vec![7, 8]] {
        let (seen, at) = (set.gather(&rows)?, Tensor::from_slice(&rows));
        for (name, tensor) in whole.tensors() {
            assert_eq!(
                values(seen.required(name)?),
                values(&tensor.index_select(0, &at)),
                "{name} {rows:?}"
            );
        }
    }
    let text = of_file(&message(set.gather(&[22])), &path);
    assert_eq!(text, "FILE: there is no row 22 in a table of 22 rows");
    Ok(())
}

/// If as many row groups are kept in memory as are shuffled together, an epoch reads no row group
/// more than once.
#[rstest]
fn an_epoch_of_shuffled_groups_reads_each_once(
    #[values(1, 2, 4)] together: usize,
    #[values(1, 3, 7)] batch_size: i64,
) -> Result<()> {
    let all = recorded();
    let (_folder, path) = written(&all, "lz4");
    let mut set = ParquetTable::open_all(&[&path, &path])?.lazily(columns())?.kept(together);
    let order = set.shuffled_groups(together)?;
    for number in 1..=2 {
        let epoch = Epoch { seed: 1, epoch: number, examples: 22, batch_size };
        let before = set.groups_read();
        for batch in order.order(&epoch)?.chunks(batch_size as usize) {
            set.gather(batch)?;
        }
        // Row groups that are still in memory from the previous epoch are not read again.
        let read = set.groups_read() - before;
        assert!(read <= 8 && read + together as u64 >= 8 && (number > 1 || read == 8), "{read}");
    }
    Ok(())
}

/// The number of threads has no effect: the same rows are returned in the same order, the same
/// number of row groups is read, and the same error is found.
#[rstest]
fn threads_change_nothing(
    #[values(2, 3, 16)] threads: usize,
    #[values(1, 4)] kept: usize,
) -> Result<()> {
    let all = recorded();
    let (_folder, path) = written(&all, "zstd");
    let (_other_folder, other) = written(&all, "plain");
    let table = |threads| -> Result<ParquetTable> {
        Ok(ParquetTable::open_all(&[&path, &other, &path])?.threads(threads))
    };
    let bits = |batch: &AnyBatch| -> Vec<Vec<f64>> {
        batch.tensors().map(|(_, tensor)| values(tensor)).collect()
    };
    let (one, several) = (table(1)?, table(threads)?);
    assert_eq!(bits(&several.batch(&columns())?), bits(&one.batch(&columns())?));
    assert_eq!(several.categories("city")?, one.categories("city")?);
    let missing = Columns::new().numbers("x", &["f64_missing"]);
    assert_eq!(message(several.batch(&missing)), message(one.batch(&missing)));
    let (mut one, mut several) =
        (one.lazily(columns())?.kept(kept), several.lazily(columns())?.kept(kept));
    let shuffled = Epoch { seed: 1, epoch: 0, examples: 33, batch_size: 5 };
    for rows in Shuffled.order(&shuffled)?.chunks(5).chain([&[0, 1, 2][..], &[32, 0, 20]]) {
        assert_eq!(bits(&several.gather(rows)?), bits(&one.gather(rows)?), "{rows:?}");
        assert_eq!(several.groups_read(), one.groups_read());
    }
    Ok(())
}

/// If several threads read from the same open file, no thread changes the position at which another
/// thread reads.
#[test]
fn threads_read_one_file_at_a_time() -> Result<()> {
    let all = recorded();
    let (_folder, path) = written(&all, "lz4");
    let table = ParquetTable::open_all(&[&path; 8])?.threads(8);
    let expected = ParquetTable::open_all(&[&path; 8])?.threads(1).batch(&columns())?;
    for _ in 0..50 {
        let seen = table.batch(&columns())?;
        for (name, tensor) in expected.tensors() {
            assert!(seen.required(name)?.equal(tensor), "{name}");
        }
    }
    Ok(())
}

/// The batches equal those of the table in memory, whether they are read ahead of the training loop
/// or inside it.
#[rstest]
fn batches_are_those_of_the_table_in_memory(
    #[values((Placement::Host, Some(0)), (Placement::Host, Some(2)), (Placement::Device, None))]
    way: (Placement, Option<usize>),
) -> Result<()> {
    let all = recorded();
    let (_folder, path) = written(&all, "gzip");
    let whole: SharedDataset = ParquetTable::open(&path)?.batch(&columns())?.into();
    let lazy: SharedDataset = ParquetTable::open(&path)?.lazily(columns())?.into();
    let policy = Policy::new(Precision::F32True, Device::Cpu);
    let epoch = |set: &SharedDataset, loading: Loading| -> Result<Vec<Vec<f64>>> {
        let loader = DataLoader::new(set, 3, loading, policy)?.shuffled(5);
        let batches = loader.epoch(2, 1)?.map(|batch| {
            let batch = batch?;
            Ok(batch.tensors().flat_map(|(_, tensor)| values(tensor)).collect())
        });
        batches.collect()
    };
    let expected = epoch(&whole, Loading::default())?;
    let loading = Loading { placement: way.0, prefetch: way.1, ..Loading::default() };
    assert_eq!(epoch(&lazy, loading)?, expected);
    assert_eq!(expected.len(), 3);
    Ok(())
}

#[rstest]
#[case(Columns::new().numbers("x", &["f64_missing"]), "FILE, row 1: `f64_missing` is missing: ")]
#[case(Columns::new().integers("x", "i64_missing"), "FILE, row 2: `i64_missing` is missing: ")]
#[case(Columns::new().integers("x", "f64"), "FILE, row 0: `f64` is -0.3, which is not an int64 integer")]
#[case(Columns::new().integers("x", "u64"), "FILE, row 9: `u64` is 9223372036854775817, which")]
#[case(Columns::new().integers("x", "city"), "FILE: `city` is of type Utf8, not of whole numbers")]
#[case(Columns::new().numbers("x", &["city"]), "FILE: `city` is of type Utf8, not of numbers")]
#[case(Columns::new().numbers("x", &["list"]), "FILE: `list` is of type List(")]
#[case(Columns::new().ids("x", "f64", &Categories::of([""])), "FILE: `f64` is of type Float64, not of text")]
#[case(Columns::new().numbers("x", &["F64"]), "FILE: no column `F64`; there are f64, f32, ")]
fn what_does_not_fit_is_named(#[case] columns: Columns, #[case] says: &str) -> Result<()> {
    let all = recorded();
    let (_folder, path) = written(&all, "snappy");
    let text = of_file(&message(ParquetTable::open(&path)?.batch(&columns)), &path);
    assert!(text.starts_with(says) && !text.contains('\n'), "{text}");
    Ok(())
}

/// A truncated file, a file with a changed byte, a file of another format and a missing file are
/// refused with an error that names the file.
#[test]
fn files_that_are_damaged_are_refused() -> Result<()> {
    let all = recorded();
    let bytes = bytes(text(&all["files"], "zstd"));
    let (_folder, path) = file("table.parquet", &bytes[..bytes.len() - 9]);
    let says = |error: &str| {
        let text = of_file(error, &path);
        assert!(
            text.starts_with("FILE: not a complete Parquet file: ") && !text.contains('\n'),
            "{text}"
        );
    };
    says(&message(ParquetTable::open(&path)));
    std::fs::write(&path, "a,b\n1,2\n3,4\n5,6\n").expect("room on the disk");
    says(&message(ParquetTable::open(&path)));
    // The changed byte belongs to the numbers of the first column. The column can still be
    // decompressed, so only the checksum shows the change.
    let mut changed = bytes.clone();
    changed[50] ^= 1;
    std::fs::write(&path, changed).expect("room on the disk");
    let text = message(ParquetTable::open(&path)?.batch(&columns()));
    assert!(of_file(&text, &path).starts_with("FILE: ") && text.contains("CRC"), "{text}");
    let text = message(ParquetTable::open("/nowhere/table.parquet"));
    assert!(text.starts_with("/nowhere/table.parquet: "), "{text}");
    let none: [PathBuf; 0] = [];
    assert!(message(ParquetTable::open_all(&none)).contains("at least one Parquet file"));
    Ok(())
}
