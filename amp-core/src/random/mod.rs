//! libtorch's random generators, which the whole process shares, and sections that have them alone.

mod section;
mod state;

pub(crate) use section::{Inherited, place};
pub use section::{Section, seeded};
pub use state::RandomState;
