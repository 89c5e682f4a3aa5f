//! Saves and resumes a run: [what is saved](contents), [when](save), the thread that
//! [writes](write) files, and [resuming](resume). [`checkpoint`](crate::checkpoint) defines the
//! format of the file.

mod contents;
mod resume;
mod save;
mod write;

pub use resume::Change;
pub(super) use write::Writer;
