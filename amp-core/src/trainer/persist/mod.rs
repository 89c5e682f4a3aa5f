//! Saves and resumes a run: the [contents] of a checkpoint, the moments at which a run is
//! [saved](save), the thread that [writes](write) files, and [resuming](resume).
//! [`checkpoint`](crate::checkpoint) defines the format of the file.

mod contents;
mod differences;
mod resume;
mod save;
mod write;

pub use resume::Change;
pub(super) use write::Writer;
