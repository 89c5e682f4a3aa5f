//! libtorch's random generators, which all threads of the process share, and reproducible sections,
//! in which one thread uses the generators alone.

mod draws;
mod evaluation;
mod isolated;
mod rng;
mod section;
mod seeding;
mod state;

pub use draws::Draws;
pub(crate) use evaluation::EvaluationDraws;
pub use isolated::isolated;
pub use rng::Rng;
pub(crate) use section::{Inherited, Place, place};
pub use section::{Section, seeded};
pub(crate) use seeding::Seeding;
pub use state::RandomState;
