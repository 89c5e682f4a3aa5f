//! Enums whose variants have names, for example for a command line.

/// Names each variant of an enum. Variants are parsed from and printed as these names. `$what` is
/// the enum's name in error messages.
macro_rules! named {
    ($type:ident, $what:literal, { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// All variants.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the variant's name on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                let found = Self::ALL.iter().find(|choice| choice.name() == text);
                found.copied().ok_or_else(|| {
                    let names = [$($name),+].join(", ");
                    $crate::Error::config(format!(
                        "unknown {} `{text}`: expected one of {names}", $what
                    ))
                })
            }
        }
    };
}

pub(crate) use named;
