//! libtorch's random generators, which the whole process shares, and sections with exclusive use of them.

mod draws;
mod rng;
mod section;
mod state;

pub use draws::Draws;
pub use rng::Rng;
pub(crate) use section::{Inherited, Place, place};
pub use section::{Section, seeded};
pub use state::RandomState;
