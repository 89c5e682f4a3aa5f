//! How closely those who follow a run need to see each step.

/// How near a step someone has to be who follows it, when it runs as a CUDA graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepAccess {
    /// Is told of steps in order, perhaps when later ones are under way. What he wants done is
    /// done once those have ended.
    Late,
    /// Sees the model as each step left it.
    EachStep,
    /// Is called within the step, as before the optimizer's, or changes it from one to the next: it
    /// cannot be a graph. The text says who he is, as in `the model has a hook there`. Nobody else
    /// is called within a step.
    Within(&'static str),
}

impl StepAccess {
    /// The closer of two: what two observers of one run need together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Within(_), _) | (Self::EachStep, Self::Late) => self,
            (Self::Late, _) | (_, Self::Within(_)) => other,
            (Self::EachStep, Self::EachStep) => self,
        }
    }
}
