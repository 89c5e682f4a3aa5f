//! `cargo amp new` and `cargo amp init`.

mod changes;
mod init;
mod new;
mod source;
mod template;

pub(crate) use init::init;
pub(crate) use new::new;
