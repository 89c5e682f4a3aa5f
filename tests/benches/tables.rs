//! Measures how many rows of a table are read per second: from Parquet files with one thread and
//! with one thread per core, and from a CSV file. Ten columns have no missing values: eight of
//! floating-point numbers, one of integers and one of text. Three more columns, one of each kind,
//! have missing values. The Parquet file has 16 row groups of 65,536 rows, compressed by zstd.
//!
//! Run the benchmark with `cargo bench -p tests --bench tables`. If `AMP_PYTHON` names a Python
//! with torch and pyarrow, pyarrow writes a second Parquet file of the same rows, and takes turns
//! with this project to read all files. A table compares the times of this project and of pyarrow,
//! after a check that both give the same tensors.

mod peer;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use amp_core::{
    Error, Result,
    data::{AnyBatch, Columns, ParquetTable, Table},
    tch::Kind,
};
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use criterion::{Criterion, Throughput};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use peer::{Peer, medians};

const GROUPS: usize = 16;
const ROWS: usize = 65_536;
const NUMBERS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn group(number: usize) -> RecordBatch {
    let place = |row: usize| (number * ROWS + row) as f64;
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    for (at, name) in (1..).zip(NUMBERS) {
        let value = |row| (place(row) * 0.618_033_988_749 * f64::from(at)).fract();
        columns.push((name, Arc::new(Float64Array::from_iter_values((0..ROWS).map(value)))));
    }
    let whole = |row: usize| (row * 7919 % 1000) as i64;
    columns.push(("whole", Arc::new(Int64Array::from_iter_values((0..ROWS).map(whole)))));
    let city = |row: usize| format!("city {}", row * 31 % 500);
    columns.push(("city", Arc::new(StringArray::from_iter_values((0..ROWS).map(city)))));
    let level = |row| (row % 7 != 3).then(|| (place(row) * 0.414_213_562_373).fract());
    columns.push(("level", Arc::new(Float64Array::from_iter((0..ROWS).map(level)))));
    let count = |row| (row % 11 != 5).then(|| whole(row) % 97);
    columns.push(("count", Arc::new(Int64Array::from_iter((0..ROWS).map(count)))));
    let color = |row| (row % 5 != 2).then(|| format!("color {}", row * 17 % 60));
    columns.push(("color", Arc::new(StringArray::from_iter((0..ROWS).map(color)))));
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

fn write_parquet(path: &Path) -> Result<()> {
    let options = WriterProperties::builder()
        .set_max_row_group_row_count(Some(ROWS))
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut writer =
        ArrowWriter::try_new(created(path)?, group(0).schema(), Some(options)).expect("a new file");
    for number in 0..GROUPS {
        writer.write(&group(number)).expect("a row group");
    }
    writer.close().expect("a whole file");
    Ok(())
}

fn created(path: &Path) -> Result<File> {
    File::create(path).map_err(|error| Error::Io { path: path.to_owned(), source: error })
}

fn write_csv(path: &Path) -> Result<()> {
    let mut file = BufWriter::new(created(path)?);
    let names = group(0).schema().fields().iter().map(|own| own.name().clone()).collect::<Vec<_>>();
    writeln!(file, "{}", names.join(",")).expect("room on the disk");
    for number in 0..GROUPS {
        let group = group(number);
        for row in 0..ROWS {
            let cells = group.columns().iter().map(|column| cell(column, row));
            writeln!(file, "{}", cells.collect::<Vec<_>>().join(",")).expect("room on the disk");
        }
    }
    file.flush().expect("room on the disk");
    Ok(())
}

fn cell(column: &dyn Array, row: usize) -> String {
    let any = column.as_any();
    if column.is_null(row) {
        String::new()
    } else if let Some(own) = any.downcast_ref::<Float64Array>() {
        own.value(row).to_string()
    } else if let Some(own) = any.downcast_ref::<Int64Array>() {
        own.value(row).to_string()
    } else {
        any.downcast_ref::<StringArray>().expect("text").value(row).to_owned()
    }
}

/// The two sets of columns that are read separately. Only those of `gaps` have missing values.
const PARTS: [&str; 2] = ["full", "gaps"];

fn columns(part: &str, table: &ParquetTable) -> Result<Columns> {
    Ok(match part {
        "full" => Columns::new().numbers("numbers", &NUMBERS).integers("whole", "whole").ids(
            "city",
            "city",
            &table.categories("city")?,
        ),
        _ => Columns::new()
            .numbers_or("level", &["level"], 0.0)
            .integers_or("count", "count", -100)
            .ids_or("color", "color", &table.categories("color")?.with_unknown(), "none"),
    })
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, csv) = (folder.path().join("rows.parquet"), folder.path().join("rows.csv"));
    write_parquet(&path)?;
    write_csv(&csv)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut counts = vec![1, cores];
    counts.dedup();
    let table = ParquetTable::open(&path)?;
    assert_eq!(table.group_rows().len(), GROUPS);
    let [full, gaps] = PARTS.map(|part| columns(part, &table));
    let columns = [full?, gaps?];

    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut all = criterion.benchmark_group("reading a table");
    all.throughput(Throughput::Elements((GROUPS * ROWS) as u64));
    for (part, columns) in PARTS.iter().zip(&columns) {
        for &threads in &counts {
            let table = ParquetTable::open(&path)?.threads(threads);
            all.bench_function(format!("Parquet, {part}, {threads} threads"), |bencher| {
                bencher.iter(|| table.batch(columns).expect("rows"));
            });
        }
        all.bench_function(format!("CSV, {part}"), |bencher| {
            bencher
                .iter(|| Table::read(&csv).and_then(|table| table.batch(columns)).expect("rows"));
        });
    }
    all.finish();
    criterion.final_summary();
    compare(&path, &csv, &columns, &counts);
    Ok(())
}

/// Reads the files alternately in this process and in Python, and prints the medians of nine
/// rounds, which follow a warm-up round.
fn compare(path: &Path, csv: &Path, columns: &[Columns; 2], counts: &[usize]) {
    let Some(mut python) = Peer::start("tables", path.as_os_str()) else { return };
    println!("| file | columns | threads | ours: s, CPU s | pyarrow: s, CPU s | ours / pyarrow |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let other: PathBuf = path.with_extension("pyarrow");
    python.run(&format!("write {}", other.display()));
    for (file, path) in [("arrow-rs", path), ("pyarrow", &other), ("CSV", csv)] {
        for (part, columns) in PARTS.iter().zip(columns) {
            for &threads in counts.iter().filter(|threads| file != "CSV" || **threads == 1) {
                let read = || match file {
                    "CSV" => Table::read(csv).and_then(|table| table.batch(columns)),
                    _ => ParquetTable::open(path)
                        .and_then(|table| table.threads(threads).batch(columns)),
                };
                let work = format!("{part} {threads} {}", path.display());
                let sums = python.run(&format!("sum {work}"));
                let own = checksum(&read().expect("rows"));
                let close = |(own, other): (&f64, &f64)| (own - other).abs() <= 1e-9 * other.abs();
                assert!(
                    own.iter().zip(&sums).all(close),
                    "{work}: sums {own:?}, pyarrow's {sums:?}"
                );
                let round = |_| (peer::seconds(|| drop(read())), python.run(&work));
                let (ours, theirs): (Vec<_>, Vec<_>) = (0..10).map(round).skip(1).unzip();
                let [[wall, cpu], [their_wall, their_cpu]] = [medians(&ours), medians(&theirs)];
                println!(
                    "| {file} | {part} | {threads} | {wall:.3}, {cpu:.3} | {their_wall:.3}, \
                     {their_cpu:.3} | {:.2} |",
                    cpu / their_cpu
                );
            }
        }
    }
}

/// Returns two sums over the batch, one of all values, and one of all values weighted by their row.
/// If the sums of two readers agree, the readers return the same tensors.
fn checksum(batch: &AnyBatch) -> [f64; 2] {
    let sums = batch.tensors().map(|(_, tensor)| {
        let rows = tensor.to_kind(Kind::Double).view([(GROUPS * ROWS) as i64, -1]);
        let weights = Kind::Double;
        let weights = amp_core::tch::Tensor::arange(rows.size()[0], (weights, rows.device()));
        let weighted = &rows * weights.remainder(1009.0).view([-1, 1]);
        [rows, weighted].map(|values| values.sum(Kind::Double).double_value(&[]))
    });
    sums.fold([0.0; 2], |[one, two], [more, weighted]| [one + more, two + weighted])
}
