//! Tests of files that have more rows than are decoded at once. The expected values are computed
//! from the row number.

use std::{path::PathBuf, sync::Arc};

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::{
    arrow::ArrowWriter,
    data_type::{ByteArray, ByteArrayType},
    file::{
        metadata::ParquetMetaDataWriter,
        properties::{WriterProperties, WriterPropertiesBuilder},
        reader::{FileReader, SerializedFileReader},
        writer::SerializedFileWriter,
    },
    schema::parser::parse_message_type,
};
use tch::Tensor;
use tempfile::TempDir;

use super::*;

const ALL: i64 = 21_000;
const GROUP: usize = 9_000;

fn level(row: i64) -> Option<f64> {
    (row % 7 != 3).then_some(row as f64 / 8.0)
}

fn count(row: i64) -> Option<i64> {
    (row % 11 != 5).then_some(row * 3 - 7)
}

fn city(row: i64) -> Option<String> {
    (row % 9 != 4).then(|| format!("city {:03}", row * 31 % 500))
}

/// Writes a table of `ALL` rows in row groups of `GROUP` rows.
fn written(options: WriterPropertiesBuilder) -> (TempDir, PathBuf) {
    let rows = || 0..ALL;
    let columns: [(&str, ArrayRef); 4] = [
        ("row", Arc::new(Int64Array::from_iter_values(rows()))),
        ("level", Arc::new(Float64Array::from_iter(rows().map(level)))),
        ("count", Arc::new(Int64Array::from_iter(rows().map(count)))),
        ("city", Arc::new(StringArray::from_iter(rows().map(city)))),
    ];
    let (folder, path) = place();
    let file = std::fs::File::create(&path).expect("a new file");
    let options = options.set_max_row_group_row_count(Some(GROUP)).build();
    let table = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let mut writer = ArrowWriter::try_new(file, table.schema(), Some(options)).expect("a writer");
    writer.write(&table).expect("room on the disk");
    writer.close().expect("room on the disk");
    (folder, path)
}

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("table.parquet");
    (folder, path)
}

fn cities() -> Categories {
    Categories::of((0..500).map(|city| format!("city {city:03}")))
}

fn message<T>(outcome: Result<T>, path: &Path) -> String {
    let text = outcome.err().expect("an error").to_string();
    assert!(!text.contains('\n'), "{text}");
    text.replace(&path.display().to_string(), "FILE")
}

fn integers(batch: &AnyBatch, name: &str) -> Vec<i64> {
    Vec::try_from(batch.required(name).expect("the field")).expect("integers")
}

/// Checks the values of all rows for three ways in which the file stores text: with a dictionary,
/// without one, and with a dictionary that becomes too large in the middle of a row group.
#[test]
fn rows_of_several_batches_are_in_their_places() -> Result<()> {
    for (options, kind) in [
        (WriterProperties::builder(), "dictionary"),
        (WriterProperties::builder().set_dictionary_enabled(false), "plain"),
        (WriterProperties::builder().set_dictionary_page_size_limit(2000), "both"),
    ] {
        let (_folder, path) = written(options);
        let table = ParquetTable::open(&path)?.threads(2);
        assert_eq!(table.group_rows(), [9000, 9000, 3000]);
        assert_eq!(table.categories("city")?, cities(), "{kind}");
        let reversed = Categories::of(cities().names().iter().skip(250)).with_unknown();
        let columns = Columns::new()
            .numbers_or("numbers", &["row", "level", "count"], -1.5)
            .numbers_or("level", &["level"], 0.25)
            .integers_or("count", "count", -100)
            .ids_or("city", "city", &cities(), "city 002")
            .ids_or("late", "city", &reversed, "none");
        let batch = table.batch(&columns)?;
        let numbers = Vec::<f32>::try_from(&batch.required("numbers")?.reshape(-1))?;
        let levels = Vec::<f32>::try_from(&batch.required("level")?.reshape(-1))?;
        for row in 0..ALL {
            let expected = [
                row as f32,
                level(row).map_or(-1.5, |level| level as f32),
                count(row).map_or(-1.5, |count| count as f32),
            ];
            let at = 3 * row as usize;
            assert_eq!(numbers[at..at + 3], expected, "{kind}, row {row}");
            assert_eq!(levels[row as usize], level(row).map_or(0.25, |level| level as f32));
        }
        let expected = |value: fn(i64) -> i64| (0..ALL).map(value).collect::<Vec<i64>>();
        assert_eq!(integers(&batch, "count"), expected(|row| count(row).unwrap_or(-100)));
        let id = |row| if row % 9 == 4 { 2 } else { row * 31 % 500 };
        assert_eq!(integers(&batch, "city"), expected(id), "{kind}");
        let late = |row| match row * 31 % 500 {
            city @ 250.. if row % 9 != 4 => city - 250,
            _ => 250,
        };
        assert_eq!(integers(&batch, "late"), expected(late), "{kind}");
        // A set that reads single row groups must return the same rows.
        let mut set = ParquetTable::open(&path)?.lazily(columns)?;
        let rows: Vec<i64> = (0..ALL).step_by(997).collect();
        let (seen, at) =
            (crate::data::Dataset::gather(&mut set, &rows)?, Tensor::from_slice(&rows));
        for (name, tensor) in batch.tensors() {
            assert!(seen.required(name)?.equal(&tensor.index_select(0, &at)), "{kind}, {name}");
        }
    }
    Ok(())
}

/// Checks that an error states the number of the first bad row, counted from the start of the file
/// and not of the row group, whatever the number of threads.
#[test]
fn errors_name_the_row_of_the_file() -> Result<()> {
    let (_folder, path) = written(WriterProperties::builder());
    let most = Categories::of(cities().names().iter().filter(|name| *name != "city 499"));
    let unknown = (0..ALL).find(|row| city(*row).as_deref() == Some("city 499"));
    let unknown = unknown.expect("a row of the city");
    for threads in [1, 2, 3] {
        let says = |columns: Columns| -> Result<String> {
            Ok(message(ParquetTable::open(&path)?.threads(threads).batch(&columns), &path))
        };
        let text = says(Columns::new().numbers("x", &["row", "level"]))?;
        assert!(text.starts_with("FILE, row 3: `level` is missing: "), "{text}");
        let text = says(Columns::new().integers("x", "count"))?;
        assert!(text.starts_with("FILE, row 5: `count` is missing: "), "{text}");
        let text = says(Columns::new().ids("x", "city", &cities()))?;
        assert!(text.starts_with("FILE, row 4: `city` is missing: "), "{text}");
        let text = says(Columns::new().ids_or("x", "city", &most, "city 000"))?;
        let expected = format!("FILE, row {unknown}: `city` is `city 499`, which is not a known");
        assert!(text.starts_with(&expected), "{text}");
        let text = says(Columns::new().integers("x", "level"))?;
        assert!(text.starts_with("FILE, row 1: `level` is 0.125, which is not"), "{text}");
    }
    // The only bad value is in the last row of the second row group.
    let late = RecordBatch::try_from_iter([(
        "x",
        Arc::new(Float64Array::from_iter_values((0..20_000).map(|row| match row {
            17_999 => f64::NAN,
            _ => 0.5,
        }))) as ArrayRef,
    )])
    .expect("a column");
    let (_folder, path) = place();
    let options = WriterProperties::builder().set_max_row_group_row_count(Some(GROUP)).build();
    let file = std::fs::File::create(&path).expect("a new file");
    let mut writer = ArrowWriter::try_new(file, late.schema(), Some(options)).expect("a writer");
    writer.write(&late).expect("room on the disk");
    writer.close().expect("room on the disk");
    let columns = Columns::new().numbers("x", &["x"]);
    for threads in [1, 3] {
        let text = message(ParquetTable::open(&path)?.threads(threads).batch(&columns), &path);
        assert!(text.starts_with("FILE, row 17999: `x` is missing: "), "{text}");
    }
    Ok(())
}

/// Checks that a column of JSON is read as text.
#[test]
fn json_is_text() -> Result<()> {
    let (_folder, path) = place();
    let schema = parse_message_type("message m { optional binary json (JSON); }");
    let file = std::fs::File::create(&path).expect("a new file");
    let schema = Arc::new(schema.expect("a schema"));
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    let mut column = group.next_column().expect("a writer").expect("a column");
    let texts = ["{}", "[1]", "{}"].map(ByteArray::from);
    let column_of_text = column.typed::<ByteArrayType>();
    column_of_text.write_batch(&texts, Some(&[1, 0, 1, 1]), None).expect("room on the disk");
    column.close().expect("room on the disk");
    group.close().expect("room on the disk");
    writer.close().expect("room on the disk");
    let table = ParquetTable::open(&path)?;
    let json = table.categories("json")?;
    assert_eq!(json.names(), ["[1]", "{}"]);
    let batch = table.batch(&Columns::new().ids_or("x", "json", &json, "[1]"))?;
    assert_eq!(integers(&batch, "x"), [1, 0, 0, 1]);
    let text = message(table.batch(&Columns::new().ids("x", "json", &json)), &path);
    assert!(text.starts_with("FILE, row 1: `json` is missing: "), "{text}");
    let some = Categories::of(["{}"]);
    let text = message(table.batch(&Columns::new().ids_or("x", "json", &some, "{}")), &path);
    assert!(text.starts_with("FILE, row 2: `json` is `[1]`, which is not a known"), "{text}");
    let text = message(table.batch(&Columns::new().integers("x", "json")), &path);
    assert!(text.starts_with("FILE: `json` is of type Utf8, not of whole numbers"), "{text}");
    Ok(())
}

/// Checks that reading fails if the footer states a wrong number of rows for a row group. Otherwise
/// some rows would have no values.
#[test]
fn another_number_of_rows_is_refused() -> Result<()> {
    let (_folder, path) = written(WriterProperties::builder());
    let whole = std::fs::read(&path).expect("the file");
    let reader =
        SerializedFileReader::new(prost::bytes::Bytes::from(whole.clone())).expect("a file");
    for (rows, says) in [
        (8_999, "FILE: not a complete Parquet file: row group 0 has fewer or more rows than"),
        (9_001, "FILE: not a complete Parquet file: row group 0 has fewer or more rows than"),
        (-1, "FILE: not a complete Parquet file: the footer states a negative or too large"),
    ] {
        let mut footer = reader.metadata().clone().into_builder();
        let mut groups = footer.take_row_groups();
        groups[0] = groups[0].clone().into_builder().set_num_rows(rows).build().expect("a group");
        let footer = footer.set_row_groups(groups).build();
        let mut changed = whole.clone();
        ParquetMetaDataWriter::new(&mut changed, &footer).finish().expect("a footer");
        std::fs::write(&path, changed).expect("room on the disk");
        let columns = Columns::new().integers("row", "row").numbers_or("level", &["level"], 0.0);
        let text =
            message(ParquetTable::open(&path).and_then(|table| table.batch(&columns)), &path);
        assert!(text.starts_with(says), "{text}");
    }
    Ok(())
}
