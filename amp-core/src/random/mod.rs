//! libtorch's random generators, which the whole process shares, and reproducible sections, which
//! use them exclusively.

mod draws;
mod rng;
mod section;
mod state;

pub use draws::Draws;
pub use rng::Rng;
pub(crate) use section::{Inherited, Place, place};
pub use section::{Section, seeded};
pub use state::RandomState;
