//! Converts Arrow arrays, as they are read from Parquet files, to values of fields.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use arrow_array::{
    Array, ArrayRef,
    cast::AsArray,
    types::{
        Date32Type, Date64Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type,
        Int32Type, Int64Type, Time32MillisecondType, Time64MicrosecondType, Time64NanosecondType,
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
};

use super::super::{Categories, cells::Column};

/// Why an array cannot be converted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// The array has a type that cannot be converted.
    Type,
    /// The value in this row is missing, and nothing replaces it.
    Missing(usize),
    /// The number in this row is not an int64 integer.
    NotWhole(usize, String),
    /// The text in this row is not one of the categories.
    Unknown(usize, String),
}

/// Matches the array's type against the types before each `=>`. For the first match, binds the
/// typed array to `own` and makes the calling function return the value of the code after `|own|`.
/// If nothing matches, the calling function continues after the macro.
macro_rules! primitive {
    ($array:expr, $($($kind:ty)|+ => |$own:ident| $code:expr;)*) => {
        $($(if let Some($own) = $array.as_primitive_opt::<$kind>() {
            return $code;
        })+)*
    };
}

/// Writes an array of numbers or booleans as f32 to `to`. Each number is converted to f32 in one
/// step, so that it is rounded only once. `missing` replaces nulls and NaN.
pub(super) fn floats(array: &dyn Array, missing: Option<f32>, to: Column<'_>) -> Result<(), Unfit> {
    primitive!(array,
        Float64Type | Int8Type | Int16Type | Int32Type | Int64Type | UInt8Type | UInt16Type | UInt32Type
            | UInt64Type => |own| numbers(own, own.values().iter().map(|own| *own as f32), missing, to);
        Float32Type => |own| numbers(own, own.values().iter().copied(), missing, to);
        Float16Type => |own| numbers(own, own.values().iter().map(|own| own.to_f32()), missing, to);
    );
    let own = array.as_boolean_opt().ok_or(Unfit::Type)?;
    numbers(own, own.values().iter().map(|own| f32::from(u8::from(own))), missing, to)
}

/// Writes `values`, the numbers of an array, to `to`. In rows that are null, these numbers are
/// arbitrary. `missing` replaces nulls and NaN.
fn numbers(
    array: &dyn Array,
    values: impl Iterator<Item = f32>,
    missing: Option<f32>,
    mut to: Column<'_>,
) -> Result<(), Unfit> {
    let nan = to.write(values);
    let Some(missing) = missing else {
        if !nan && array.null_count() == 0 {
            return Ok(());
        }
        let mut rows = 0..array.len();
        let row = rows.find(|row| array.is_null(*row) || to.get(*row).is_nan());
        return row.map_or(Ok(()), |row| Err(Unfit::Missing(row)));
    };
    if nan {
        // A NaN counts as a missing value, because in training a NaN would make all weights NaN.
        to.iter_mut().filter(|number| number.is_nan()).for_each(|number| *number = missing);
    }
    nulls(array, |row| to.set(row, missing));
    Ok(())
}

/// Calls `found` with the index of each null.
fn nulls(array: &dyn Array, found: impl FnMut(usize)) {
    if let Some(valid) = array.nulls().filter(|valid| valid.null_count() > 0) {
        (!valid.inner()).set_indices().for_each(found);
    }
}

/// Writes an array of whole numbers, booleans, dates or times to `to`. Dates and times are written
/// as Arrow stores them: a date, for example, as the number of days since 1970, a timestamp as the
/// number of the column's time units since then. `missing` replaces nulls.
pub(super) fn integers(
    array: &dyn Array,
    missing: Option<i64>,
    to: &mut [i64],
) -> Result<(), Unfit> {
    written(array, to)?;
    match missing {
        Some(missing) => nulls(array, |row| to[row] = missing),
        None if array.null_count() == 0 => {}
        None => {
            let row = (0..array.len()).find(|row| array.is_null(*row));
            return row.map_or(Ok(()), |row| Err(Unfit::Missing(row)));
        }
    }
    Ok(())
}

/// Writes the numbers of an array to `to`, without regard to nulls: what is written for a null is
/// arbitrary.
fn written(array: &dyn Array, to: &mut [i64]) -> Result<(), Unfit> {
    fn all(values: impl Iterator<Item = i64>, to: &mut [i64]) -> Result<(), Unfit> {
        to.iter_mut().zip(values).for_each(|(to, value)| *to = value);
        Ok(())
    }
    primitive!(array,
        Int64Type | Date64Type | Time64MicrosecondType | Time64NanosecondType | TimestampSecondType
            | TimestampMillisecondType | TimestampMicrosecondType | TimestampNanosecondType
            => |own| all(own.values().iter().copied(), to);
        Int8Type | Int16Type | Int32Type | UInt8Type | UInt16Type | UInt32Type | Date32Type
            | Time32MillisecondType => |own| all(own.values().iter().map(|own| i64::from(*own)), to);
        UInt64Type => |own| {
            let values = own.values().iter().map(|own| i64::try_from(*own).map_err(|_| own.to_string()));
            checked(own, values, to)
        };
        Float32Type => |own| checked(own, own.values().iter().map(|own| whole(f64::from(*own))), to);
        Float64Type => |own| checked(own, own.values().iter().map(|own| whole(*own)), to);
    );
    let own = array.as_boolean_opt().ok_or(Unfit::Type)?;
    all(own.values().iter().map(i64::from), to)
}

/// Writes `values` to `to`. An `Err` among `values` contains, as text, a number that is not an
/// int64 integer. Such a number makes the call fail unless its row is null.
fn checked(
    array: &dyn Array,
    values: impl Iterator<Item = Result<i64, String>>,
    to: &mut [i64],
) -> Result<(), Unfit> {
    for (row, (to, value)) in to.iter_mut().zip(values).enumerate() {
        match value {
            Ok(value) => *to = value,
            Err(_) if array.is_null(row) => {}
            Err(number) => return Err(Unfit::NotWhole(row, number)),
        }
    }
    Ok(())
}

/// Converts a floating-point number to an integer if it is a whole number up to 2⁵³, and to text
/// otherwise. Programs without nullable integers, such as pandas, store integers as floating-point
/// numbers if a value is missing.
fn whole(number: f64) -> Result<i64, String> {
    // Above 2⁵³ neighbouring f64 values are more than 1 apart, so the number may have been rounded.
    let exact = number.abs() <= 2.0_f64.powi(53);
    match exact && number.fract() == 0.0 {
        true => Ok(number as i64),
        false => Err(number.to_string()),
    }
}

/// The category ids of the names in a column's Arrow dictionary. Consecutive arrays of a column
/// often share one dictionary. The ids are kept so that the dictionary's names are not looked up
/// again for each array.
pub(super) struct Dictionary<'c> {
    column: String,
    known: &'c Categories,
    names: ArrayRef,
    ids: Vec<i64>,
}

/// The most recently read dictionary of each column.
pub(super) type Dictionaries<'c> = Vec<Dictionary<'c>>;

/// Returns the category id of each name in a column's Arrow dictionary. The id of a name that is
/// not a category is [`UNKNOWN`].
fn looked_up<'d, 'c>(
    all: &'d mut Dictionaries<'c>,
    column: &str,
    known: &'c Categories,
    names: &ArrayRef,
) -> &'d [i64] {
    let same = |own: &Dictionary<'c>| own.column == column && std::ptr::eq(own.known, known);
    let at = all.iter().position(same).unwrap_or_else(|| {
        let (column, names) = (column.to_owned(), arrow_array::new_empty_array(names.data_type()));
        all.push(Dictionary { column, known, names, ids: Vec::new() });
        all.len() - 1
    });
    let own = &mut all[at];
    if !Arc::ptr_eq(&own.names, names) {
        own.names = names.clone();
        own.ids.clear();
        if let Some(names) = names.as_string_opt::<i32>() {
            own.ids.extend(names.iter().map(|name| name.map_or(UNKNOWN, |name| id(known, name))));
        }
    }
    &own.ids
}

/// Stands for the id of text that is not one of the categories. No category has this id.
const UNKNOWN: i64 = -1;

fn id(known: &Categories, name: &str) -> i64 {
    known.id(name).unwrap_or(UNKNOWN)
}

/// Writes the category ids of text, whole numbers or booleans to `to`. Whole numbers and booleans
/// are converted to text. `missing` replaces nulls. `dictionaries` keeps the ids of the most recent
/// dictionaries for the next call.
pub(super) fn ids<'c>(
    array: &dyn Array,
    column: &str,
    known: &'c Categories,
    missing: Option<i64>,
    dictionaries: &mut Dictionaries<'c>,
    to: &mut [i64],
) -> Result<(), Unfit> {
    if let Some(own) = array.as_dictionary_opt::<Int32Type>()
        && let Some(names) = own.values().as_string_opt::<i32>()
    {
        let (ids, keys) = (looked_up(dictionaries, column, known, own.values()), own.keys());
        let id = |key: &i32| ids.get(*key as usize).copied().unwrap_or(UNKNOWN);
        let name = |row| names.value(keys.value(row) as usize).to_owned();
        return found(array, keys.values().iter().map(id), name, missing, to);
    }
    if let Some(own) = array.as_string_opt::<i32>() {
        let ids = own.iter().map(|name| name.map_or(UNKNOWN, |name| id(known, name)));
        return found(array, ids, |row| own.value(row).to_owned(), missing, to);
    }
    if let Some(own) = array.as_boolean_opt() {
        let ids = [id(known, "false"), id(known, "true")];
        let ids = own.values().iter().map(|value| ids[usize::from(value)]);
        return found(array, ids, |row| own.value(row).to_string(), missing, to);
    }
    primitive!(array,
        Int64Type | Int8Type | Int16Type | Int32Type | UInt8Type | UInt16Type | UInt32Type | UInt64Type => |own| {
            let mut ids = HashMap::new();
            let ids = own.values().iter().map(|value| {
                *ids.entry(*value).or_insert_with(|| id(known, &value.to_string()))
            });
            found(array, ids, |row| own.value(row).to_string(), missing, to)
        };
    );
    Err(Unfit::Type)
}

/// Writes `ids`, the category ids of an array's rows, to `to`. `missing` replaces the ids of rows
/// that are null. `name` returns the text in a row, for error messages.
fn found(
    array: &dyn Array,
    ids: impl Iterator<Item = i64>,
    name: impl Fn(usize) -> String,
    missing: Option<i64>,
    to: &mut [i64],
) -> Result<(), Unfit> {
    let mut least = 0;
    to.iter_mut().zip(ids).for_each(|(to, id)| {
        least = least.min(id);
        *to = id;
    });
    if least == UNKNOWN || (missing.is_none() && array.null_count() > 0) {
        for (row, id) in to.iter().enumerate() {
            match array.is_null(row) {
                true if missing.is_none() => return Err(Unfit::Missing(row)),
                false if *id == UNKNOWN => return Err(Unfit::Unknown(row, name(row))),
                _ => {}
            }
        }
    }
    if let Some(missing) = missing {
        nulls(array, |row| to[row] = missing);
    }
    Ok(())
}

/// Adds the distinct texts of an array to `names`. Whole numbers and booleans are converted to
/// text.
pub(super) fn names(array: &dyn Array, names: &mut BTreeSet<String>) -> Result<(), Unfit> {
    let mut add = |name: &str| {
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
    };
    if let Some(own) = array.as_dictionary_opt::<Int32Type>()
        && let Some(values) = own.values().as_string_opt::<i32>()
    {
        // A dictionary may contain names that occur in no row.
        let mut used = vec![false; values.len()];
        own.keys().iter().flatten().for_each(|key| used[key as usize] = true);
        values.iter().zip(used).filter(|(_, used)| *used).for_each(|(name, _)| {
            name.map(&mut add);
        });
        return Ok(());
    }
    if let Some(own) = array.as_string_opt::<i32>() {
        own.iter().flatten().for_each(add);
        return Ok(());
    }
    if let Some(own) = array.as_boolean_opt() {
        let values: HashSet<bool> = own.iter().flatten().collect();
        values.iter().for_each(|value| add(&value.to_string()));
        return Ok(());
    }
    primitive!(array,
        Int64Type | Int8Type | Int16Type | Int32Type | UInt8Type | UInt16Type | UInt32Type | UInt64Type => |own| {
            let values: HashSet<_> = own.iter().flatten().collect();
            values.iter().for_each(|value| add(&value.to_string()));
            Ok(())
        };
    );
    Err(Unfit::Type)
}
