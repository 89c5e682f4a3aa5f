//! A macro for enums whose variants have names, for example on the command line.

/// Gives each variant of an enum a name, and implements `Display` and `FromStr` with these names.
/// `$what` describes the enum in error messages.
macro_rules! named {
    ($type:ident, $what:literal, { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// All variants, in the order of their declaration.
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
