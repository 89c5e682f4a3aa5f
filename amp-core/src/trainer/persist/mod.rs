//! Saving and resuming a run: [what is saved](contents), [when](save), the thread that [writes](write)
//! files, and [resuming](resume). The format of the file is [`checkpoint`](crate::checkpoint).

mod contents;
mod resume;
mod save;
mod write;

pub use resume::Change;
pub(super) use write::Writer;
