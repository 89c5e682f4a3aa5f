//! Converts Arrow arrays, as they are read from Parquet files, to the cells of a table.

use std::borrow::Cow;

use arrow_array::{
    Array, BooleanArray, Date32Array, Date64Array, Float16Array, Float32Array, Float64Array,
    Int8Array, Int16Array, Int32Array, Int64Array, LargeStringArray, StringArray, StringViewArray,
    Time32MillisecondArray, Time64MicrosecondArray, Time64NanosecondArray,
    TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray,
    TimestampSecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};

/// Reads the cells of an array if its type is one of the listed types. For an array of another type
/// the result is `None`.
macro_rules! cells {
    ($array:expr, $($($kind:ty)|+ => $cell:expr;)*) => {{
        let any = $array.as_any();
        $($(if let Some(array) = any.downcast_ref::<$kind>() {
            return Some(array.iter().map(|cell| cell.map($cell)).collect());
        })+)*
        None
    }};
}

/// Converts numbers to f32 with one rounding.
pub(super) fn floats(array: &dyn Array) -> Option<Vec<Option<f32>>> {
    cells!(array,
        Float32Array => |own| own;
        Float64Array | Int8Array | Int16Array | Int32Array | Int64Array | UInt8Array | UInt16Array | UInt32Array
            | UInt64Array => |own| own as f32;
        Float16Array => |own| own.to_f32();
        BooleanArray => |own| f32::from(u8::from(own));
    )
}

/// Reads whole numbers. Dates are read as days, and times in the unit of the column. The result for
/// a number that int64 cannot represent is an error.
pub(super) fn integers(array: &dyn Array) -> Option<Vec<Option<Result<i64, String>>>> {
    cells!(array,
        Int64Array | Date64Array | Time64MicrosecondArray | Time64NanosecondArray | TimestampSecondArray
            | TimestampMillisecondArray | TimestampMicrosecondArray | TimestampNanosecondArray => Ok;
        Int8Array | Int16Array | Int32Array | UInt8Array | UInt16Array | UInt32Array | BooleanArray | Date32Array
            | Time32MillisecondArray => |own| Ok(i64::from(own));
        UInt64Array => |own| i64::try_from(own).map_err(|_| own.to_string());
        Float32Array => |own| whole(f64::from(own));
        Float64Array => whole;
    )
}

/// Converts a floating-point number to an integer if it is a whole number. Programs without
/// nullable integers, such as pandas, store integers as floating-point numbers if a value is
/// missing.
fn whole(number: f64) -> Result<i64, String> {
    // Above 2⁵³ neighbouring f64 values are more than 1 apart, so the number may have been rounded.
    let exact = number.abs() <= 2.0_f64.powi(53);
    match exact && number.fract() == 0.0 {
        true => Ok(number as i64),
        false => Err(number.to_string()),
    }
}

/// Reads text. Whole numbers are converted to text.
pub(super) fn texts(array: &dyn Array) -> Option<Vec<Option<Cow<'_, str>>>> {
    cells!(array,
        StringArray | LargeStringArray | StringViewArray => Cow::Borrowed;
        Int64Array | Int8Array | Int16Array | Int32Array | UInt8Array | UInt16Array | UInt32Array
            | UInt64Array | BooleanArray => |own| Cow::Owned(own.to_string());
    )
}
