//! Measures how many rows per second are read from a Parquet table, decoded by one thread and by
//! one thread for each core. The file has 16 row groups of 65,536 rows, with eight columns of
//! floating-point numbers, one of integers and one of text, compressed by zstd.
//!
//! Run it with `cargo bench -p tests --bench parquet`. If `AMP_PYTHON` names a Python with torch and
//! pyarrow, pyarrow reads the same file in turn, and a table compares both.

mod peer;

use std::{ffi::OsStr, fs::File, sync::Arc, thread};

use amp_core::{
    Error, Result,
    data::{Columns, ParquetTable},
};
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
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
    let whole = (0..ROWS).map(|row| (row * 7919 % 1000) as i64);
    columns.push(("whole", Arc::new(Int64Array::from_iter_values(whole))));
    let text = (0..ROWS).map(|row| format!("city {}", row * 31 % 500));
    columns.push(("city", Arc::new(StringArray::from_iter_values(text))));
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rows.parquet");
    let file =
        File::create(&path).map_err(|error| Error::Io { path: path.clone(), source: error })?;
    let options = WriterProperties::builder()
        .set_max_row_group_row_count(Some(ROWS))
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut writer =
        ArrowWriter::try_new(file, group(0).schema(), Some(options)).expect("a new file");
    for number in 0..GROUPS {
        writer.write(&group(number)).expect("a row group");
    }
    writer.close().expect("a whole file");

    let cores = thread::available_parallelism().map_or(1, usize::from);
    let table =
        |threads| -> Result<ParquetTable> { Ok(ParquetTable::open(&path)?.threads(threads)) };
    let cities = table(cores)?.categories("city")?;
    let columns = Columns::new()
        .numbers("numbers", &NUMBERS)
        .integers("whole", "whole")
        .ids("city", "city", &cities);
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut all = criterion.benchmark_group("decoding a table");
    all.throughput(Throughput::Elements((GROUPS * ROWS) as u64));
    let mut counts = vec![1, cores];
    counts.dedup();
    for threads in counts {
        let table = table(threads)?;
        assert_eq!(table.group_rows().len(), GROUPS);
        all.bench_function(format!("{threads} threads"), |bencher| {
            bencher.iter(|| table.batch(&columns).expect("rows"));
        });
    }
    all.finish();
    criterion.final_summary();
    compare(path.as_os_str(), &[1, cores], |threads| {
        table(threads).and_then(|table| table.batch(&columns)).map(drop).expect("rows");
    });
    Ok(())
}

/// Reads the table in turn here and in Python, and prints the medians of nine rounds. The first is
/// left out.
fn compare(path: &OsStr, counts: &[usize], read: impl Fn(usize)) {
    let Some(mut python) = Peer::start("parquet", path) else { return };
    println!("| threads | ours: s, CPU s | pyarrow: s, CPU s | ours / pyarrow: s, CPU s |");
    println!("| --- | --- | --- | --- |");
    for &threads in counts {
        let rounds = (0..10).map(|_| (peer::seconds(|| read(threads)), python.run(threads)));
        let (ours, theirs): (Vec<_>, Vec<_>) = rounds.skip(1).unzip();
        let [[wall, cpu], [their_wall, their_cpu]] = [medians(&ours), medians(&theirs)];
        println!(
            "| {threads} | {wall:.3}, {cpu:.3} | {their_wall:.3}, {their_cpu:.3} | {:.2}, {:.2} |",
            wall / their_wall,
            cpu / their_cpu
        );
    }
}
