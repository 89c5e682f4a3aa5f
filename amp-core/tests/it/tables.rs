//! Tests of columns of tables that become fields of batches. The tables are CSV files, and Parquet
//! files from pandas (fixtures/oracles/tables.json).

use std::path::PathBuf;

use amp_core::{
    data::{Categories, Columns, Epoch, Sampler, ShuffledBlocks, Table},
    prelude::*,
    state::State,
};
use rstest::rstest;
use tempfile::{TempDir, tempdir};

use crate::support::{bits::values, message};

/// Creates a temporary folder, and in it a file with the given name and content. Returns the folder
/// and the path of the file.
pub(crate) fn file(name: &str, bytes: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("room on the disk");
    (folder, path)
}

/// Returns the text with `FILE` in place of the path.
pub(crate) fn of_file(text: &str, path: &std::path::Path) -> String {
    text.replace(&path.display().to_string(), "FILE")
}

const PEOPLE: &str = "age;job;hours;class\n31;cook;40.5;1\n45;;;0\n28;cook;NaN;\n50;clerk;1e1;1\n";

fn columns(jobs: &Categories) -> Columns {
    Columns::new()
        .numbers("age", &["age"])
        .numbers_or("both", &["hours", "age"], -1.0)
        .ids_or("job", "job", jobs, "none")
        .integers_or("class", "class", -100)
}

#[derive(Batch)]
struct People {
    age: Tensor,
    both: Tensor,
    #[batch(ids)]
    job: Tensor,
    class: Tensor,
}

/// Columns of the file become fields of the batch, with their shapes, dtypes and roles. Empty cells
/// and NaN become the values that the declaration of the column gives.
#[test]
fn columns_become_fields() -> Result<()> {
    let (_folder, path) = file("people.csv", PEOPLE);
    let table = Table::read_separated(&path, b';')?;
    let jobs = table.categories("job")?;
    assert_eq!(jobs.names(), ["clerk", "cook"]);
    let batch = table.batch(&columns(&jobs.with_unknown()))?;
    let People { age, both, job, class } = People::from_any(&batch)?;
    assert_eq!((age.size(), values(&age)), (vec![4, 1], vec![31.0, 45.0, 28.0, 50.0]));
    let expected = vec![40.5, 31.0, -1.0, 45.0, -1.0, 28.0, 10.0, 50.0];
    assert_eq!((both.size(), both.kind(), values(&both)), (vec![4, 2], Kind::Float, expected));
    assert_eq!((job.kind(), values(&job)), (Kind::Int64, vec![1.0, 2.0, 1.0, 0.0]));
    assert_eq!((class.kind(), values(&class)), (Kind::Int64, vec![1.0, 0.0, -100.0, 1.0]));
    let half = batch.place(amp_core::precision::Policy::new(Precision::Bf16True, Device::Cpu))?;
    let half = People::from_any(&half)?;
    assert_eq!((half.age.kind(), half.job.kind()), (Kind::BFloat16, Kind::Int64));
    Ok(())
}

/// A field of flags says which numbers are missing, like the function `isna()` of pandas. A column
/// of text is refused.
#[test]
fn missing_numbers_are_flagged() -> Result<()> {
    let (_folder, path) = file("people.csv", PEOPLE);
    let table = Table::read_separated(&path, b';')?;
    let columns = Columns::new().missing("unknown", &["hours", "age", "class"]);
    let text = serde_json::to_string(&columns).expect("JSON");
    assert_eq!(serde_json::from_str::<Columns>(&text).expect("columns"), columns);
    let batch = table.batch(&columns)?;
    let flags = batch.required("unknown")?;
    let expected = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0];
    assert_eq!((flags.size(), flags.kind()), (vec![4, 3], Kind::Float));
    assert_eq!(values(flags), expected);
    let text = of_file(&message(table.batch(&Columns::new().missing("x", &["job"]))), &path);
    assert!(text.starts_with("FILE, line 2: `job` is `cook`, which is not a number"), "{text}");
    Ok(())
}

#[rstest]
#[case(Columns::new().numbers("x", &["age", "hours"]), "FILE, line 3: `hours` is missing: fill in the cell")]
#[case(Columns::new().integers("x", "class"), "FILE, line 4: `class` is missing: ")]
#[case(Columns::new().ids("x", "job", &Categories::of(["cook", "clerk"])), "FILE, line 3: `job` is missing")]
#[case(Columns::new().ids_or("x", "job", &Categories::of(["cook"]), "cook"), "FILE, line 5: `job` is `clerk`, which")]
#[case(Columns::new().ids_or("x", "job", &Categories::of(["cook"]), "none"), "the replacement for missing values of `job` is `none`")]
#[case(Columns::new().numbers_or("x", &["hours"], f32::NAN), "the replacement for missing values of `x` is NaN")]
#[case(Columns::new().numbers("x", &[]), "a field of numbers needs at least one column")]
#[case(Columns::new().missing("x", &[]), "a field of numbers needs at least one column")]
#[case(Columns::new(), "no columns: a batch needs at least one field")]
#[case(Columns::new().numbers("x", &["age"]).integers("x", "age"), "the batch `Columns`: two tensors are called `x`")]
fn what_cannot_be_a_field_is_refused(#[case] columns: Columns, #[case] says: &str) -> Result<()> {
    let (_folder, path) = file("people.csv", PEOPLE);
    let text = message(Table::read_separated(&path, b';')?.batch(&columns));
    assert!(of_file(&text, &path).starts_with(says), "{text}");
    Ok(())
}

/// In a large file, each row keeps its values, and errors name the right lines. The file has more
/// rows than are converted at a time, empty lines, and values that contain line breaks.
#[rstest]
fn rows_of_a_large_file_are_in_their_places(#[values("\n", "\r\n")] end: &str) -> Result<()> {
    let job = |row: i64| if row % 3 == 0 { "cook" } else { "\"a\nclerk\"" };
    let rows = (0..5000).map(|row| format!(" {row} ,{},{},{end}{end}", job(row), row as f64 / 4.0));
    let (_folder, path) =
        file("large.csv", format!("row,job,number,{end}{}", rows.collect::<String>()));
    let table = Table::read(&path)?;
    let jobs = table.categories("job")?;
    assert_eq!(jobs.names(), ["a\nclerk", "cook"]);
    let columns = Columns::new()
        .numbers("x", &["row", "number"])
        .ids("job", "job", &jobs)
        .integers("row", "row");
    let batch = table.batch(&columns)?;
    let numbers = (0..5000).flat_map(|row| [f64::from(row), f64::from(row) / 4.0]);
    assert_eq!(values(batch.required("x")?), numbers.collect::<Vec<_>>());
    let integers =
        |name| Vec::<i64>::try_from(batch.required(name).expect("the field")).expect("integers");
    assert_eq!(integers("row"), (0..5000).collect::<Vec<_>>());
    assert_eq!(integers("job"), (0..5000).map(|row| i64::from(row % 3 == 0)).collect::<Vec<_>>());
    // The first number that is not whole is in row 1. Row 0 is in line 2 and an empty line follows
    // it, so row 1 is in line 4.
    let text = of_file(&message(table.integers("number")), &path);
    assert_eq!(text, "FILE, line 4: `number` is `0.25`, which is not a whole number");
    let text = of_file(
        &message(table.batch(&columns.integers_or("none", "", 0).ids(
            "y",
            "row",
            &Categories::of(["0"]),
        ))),
        &path,
    );
    assert!(text.starts_with("FILE, line 4: `row` is `1`, which is not a known"), "{text}");
    Ok(())
}

/// A file without rows gives a batch without rows. A column that the file does not have is refused
/// in this case, too.
#[test]
fn columns_are_looked_for_without_rows() -> Result<()> {
    let (_folder, path) = file("empty.csv", "a,b\n");
    let table = Table::read(&path)?;
    let batch = table.batch(&Columns::new().numbers("x", &["b", "a"]).integers("y", "a"))?;
    assert_eq!(batch.required("x")?.size(), [0, 2]);
    let text = of_file(&message(table.batch(&Columns::new().numbers("x", &["c"]))), &path);
    assert_eq!(text, "FILE: no column `c`; there are a, b");
    Ok(())
}

/// Text that is not UTF-8 is refused. Quotes, line breaks and bytes above 127 are refused as
/// separators.
#[test]
fn other_text_is_refused() {
    let (_folder, path) = file("latin.csv", b"a,b\n1,2\nK\xf6ln,3\n");
    let text = of_file(&message(Table::read(&path)), &path);
    assert_eq!(text, "FILE: line 3 is not UTF-8: save the file as UTF-8");
    for separator in [b'"', b'\n', b'\r', 0xe4] {
        let text = of_file(&message(Table::read_separated(&path, separator)), &path);
        assert!(
            text.starts_with("FILE: cells cannot be separated by `") && !text.contains('\n'),
            "{text}"
        );
    }
}

/// If a row after thousands of valid rows is invalid, the error names its line.
#[rstest]
#[case("\n", "4001")]
#[case("\r\n", "4001")]
fn the_line_of_a_late_row_is_named(#[case] end: &str, #[case] line: &str) -> Result<()> {
    let rows =
        (2..5000).map(|line| if line == 4001 { format!("x{end}") } else { format!("{line}{end}") });
    let (_folder, path) = file("late.csv", format!("a{end}{}", rows.collect::<String>()));
    let text = of_file(&message(Table::read(&path)?.numbers(&["a"])), &path);
    assert_eq!(text, format!("FILE, line {line}: `a` is `x`, which is not a number"));
    Ok(())
}

/// Columns and categories are equal after they were saved to a file and loaded. Columns are also
/// equal after they were saved in a model's state.
#[test]
fn columns_and_categories_are_saved() -> Result<()> {
    let jobs = Categories::of(["cook", "clerk", "cook"]).with_unknown();
    let columns = columns(&jobs);
    let (folder, path) = file("columns.json", "");
    columns.save(&path)?;
    assert_eq!(Columns::load(&path)?, columns);
    let path = folder.path().join("jobs.json");
    jobs.save(&path)?;
    assert_eq!(Categories::load(&path)?, jobs);
    let mut state = State::default();
    state.put("columns", &columns)?;
    assert_eq!(state.get::<Columns>("columns")?, columns);
    // A file of categories is refused if the names are not sorted, because the ids are the
    // positions in the sorted list.
    std::fs::write(&path, r#"{"names": ["b", "a"], "unknown": false}"#).expect("room on the disk");
    let text = message(Categories::load(&path));
    assert!(text.contains("not in the order of their bytes"), "{text}");
    let text = message(columns.numbers_or("y", &["age"], f32::INFINITY).save(&path));
    assert!(text.contains("is inf, which is not finite"), "{text}");
    Ok(())
}

/// `ShuffledBlocks` returns every example once, in another order in each epoch. At any time, at
/// most `together` blocks have been started and not yet finished.
#[rstest]
fn blocks_are_shuffled(#[values(1, 2, 3, 9)] together: usize) -> Result<()> {
    let lengths = vec![3, 0, 5, 1, 4, 2];
    let blocks = ShuffledBlocks::new(lengths.clone(), together)?;
    let epoch = Epoch { seed: 3, epoch: 0, examples: 15, batch_size: 4 };
    let order = blocks.order(&epoch)?;
    let mut all = order.clone();
    all.sort_unstable();
    assert_eq!(all, (0..15).collect::<Vec<i64>>());
    assert_ne!(order, blocks.order(&Epoch { epoch: 1, ..epoch })?);
    assert_eq!(order, blocks.order(&epoch)?);
    let ends = [3, 3, 8, 9, 13, 15];
    let block = |index: i64| ends.iter().position(|end| index < *end).expect("a block");
    // `open` is the number of blocks that were started and are not finished.
    let mut left = lengths.clone();
    let (mut open, mut most) = (0_usize, 0);
    for index in order {
        let at = block(index);
        open += usize::from(left[at] == lengths[at]);
        most = most.max(open);
        left[at] -= 1;
        open -= usize::from(left[at] == 0);
    }
    assert!(most <= together, "{most} blocks were open at the same time");
    Ok(())
}

#[test]
fn blocks_of_another_set_are_refused() -> Result<()> {
    let epoch = Epoch { seed: 3, epoch: 0, examples: 6, batch_size: 4 };
    let text = message(ShuffledBlocks::new(vec![2, 3], 1)?.order(&epoch));
    assert_eq!(
        text,
        "the blocks have 5 examples in total, but the set has 6: give the lengths of the set's blocks"
    );
    assert!(message(ShuffledBlocks::new(vec![1], 0)).contains("at least 1 block"));
    assert!(message(ShuffledBlocks::new(vec![-1], 1)).contains("a block has the length -1"));
    Ok(())
}
