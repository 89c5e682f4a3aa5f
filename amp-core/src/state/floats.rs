//! Saves floats that are NaN or infinite, which JSON cannot represent. If a value itself is such a
//! float, it is written as text. If such a float is part of a larger value, such as a list, saving
//! fails, because serde_json would silently write null.

use std::fmt;

use serde::{
    Serialize, Serializer,
    de::{DeserializeOwned, value::F64Deserializer},
    ser,
};
use serde_json::Value;

/// Converts the value to JSON. A value that is NaN or infinite becomes text.
///
/// # Errors
/// When JSON cannot represent the value.
pub(crate) fn to_value<T: Serialize + ?Sized>(value: &T) -> Result<Value, String> {
    match value.serialize(Look { bare: true }) {
        Ok(Some(float)) => Ok(Value::String(float.to_string())),
        Err(Stop::Nested(float)) => Err(format!(
            "{float} cannot be saved as part of a larger value: save a finite number instead, or \
             save {float} as a separate value"
        )),
        Ok(None) | Err(Stop::Other) => {
            serde_json::to_value(value).map_err(|error| error.to_string())
        }
    }
}

/// Reads a value that [`to_value`] wrote.
///
/// # Errors
/// When the value has another type.
pub(crate) fn from_value<T: DeserializeOwned>(value: &Value) -> serde_json::Result<T> {
    let outcome = T::deserialize(value);
    let float = match value.as_str() {
        Some("inf") => f64::INFINITY,
        Some("-inf") => f64::NEG_INFINITY,
        Some("NaN") => f64::NAN,
        _ => return outcome,
    };
    outcome.or_else(|error| {
        T::deserialize(F64Deserializer::<serde_json::Error>::new(float)).map_err(|_| error)
    })
}

/// A serializer that writes nothing and only searches for a float that is NaN or infinite. If the
/// value itself is such a float, the serializer returns it. If such a float is part of a larger
/// value, the serializer stops with an error.
struct Look {
    bare: bool,
}

#[derive(Debug)]
enum Stop {
    Nested(f64),
    /// Any other error. The value is then passed to serde_json, and serde_json's error is reported.
    Other,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not finite")
    }
}

impl std::error::Error for Stop {}

impl ser::Error for Stop {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Other
    }
}

type Found = Result<Option<f64>, Stop>;

/// Implements the serializer's methods for types that contain no float.
macro_rules! without {
    ($($method:ident($($of:ty),*)),+ $(,)?) => {
        $(fn $method(self, $(_: $of),*) -> Found {
            Ok(None)
        })+
    };
}

impl Serializer for Look {
    type Ok = Option<f64>;
    type Error = Stop;
    type SerializeSeq = Inside;
    type SerializeTuple = Inside;
    type SerializeTupleStruct = Inside;
    type SerializeTupleVariant = Inside;
    type SerializeMap = Inside;
    type SerializeStruct = Inside;
    type SerializeStructVariant = Inside;

    without! {
        serialize_bool(bool), serialize_i8(i8), serialize_i16(i16), serialize_i32(i32),
        serialize_i64(i64), serialize_i128(i128), serialize_u8(u8), serialize_u16(u16),
        serialize_u32(u32), serialize_u64(u64), serialize_u128(u128), serialize_char(char),
        serialize_str(&str), serialize_bytes(&[u8]), serialize_none(), serialize_unit(),
        serialize_unit_struct(&'static str),
        serialize_unit_variant(&'static str, u32, &'static str),
    }

    fn serialize_f32(self, value: f32) -> Found {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Found {
        match (value.is_finite(), self.bare) {
            (true, _) => Ok(None),
            (false, true) => Ok(Some(value)),
            (false, false) => Err(Stop::Nested(value)),
        }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Found {
        value.serialize(Self { bare: false })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Found {
        value.serialize(Self { bare: false })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Found {
        value.serialize(Self { bare: false })
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Inside, Stop> {
        Ok(Inside)
    }

    fn serialize_tuple(self, _: usize) -> Result<Inside, Stop> {
        Ok(Inside)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Inside, Stop> {
        Ok(Inside)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Inside, Stop> {
        Ok(Inside)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Inside, Stop> {
        Ok(Inside)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Inside, Stop> {
        Ok(Inside)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Inside, Stop> {
        Ok(Inside)
    }
}

/// The serializer of the elements, fields or entries of a larger value.
struct Inside;

impl Inside {
    fn look<T: Serialize + ?Sized>(value: &T) -> Result<(), Stop> {
        value.serialize(Look { bare: false }).map(drop)
    }
}

/// Implements serde's traits for the elements, fields or entries of larger values. The methods of
/// these traits differ only in their names.
macro_rules! parts {
    ($($of:ident: $method:ident($($key:ty)?)),+ $(,)?) => {
        $(impl ser::$of for Inside {
            type Ok = Option<f64>;
            type Error = Stop;

            fn $method<T: Serialize + ?Sized>(
                &mut self,
                $(_: $key,)?
                value: &T,
            ) -> Result<(), Stop> {
                Self::look(value)
            }

            fn end(self) -> Found {
                Ok(None)
            }
        })+
    };
}

parts! {
    SerializeSeq: serialize_element(),
    SerializeTuple: serialize_element(),
    SerializeTupleStruct: serialize_field(),
    SerializeTupleVariant: serialize_field(),
    SerializeStruct: serialize_field(&'static str),
    SerializeStructVariant: serialize_field(&'static str),
}

impl ser::SerializeMap for Inside {
    type Ok = Option<f64>;
    type Error = Stop;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Stop> {
        Self::look(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stop> {
        Self::look(value)
    }

    fn end(self) -> Found {
        Ok(None)
    }
}
