//! Whether a model logs the figures it is judged by.

use amp_core::{
    Error, Result,
    event::{EpochEnd, Event, Subscriber},
};

/// The validation loss that every golden has.
const LOSS: &str = "val_loss";

/// Ends a run after its first epoch where figures of a golden are missing.
pub(super) struct Judged<S> {
    /// The model's name.
    pub(super) model: &'static str,
    /// The validation metric it is judged by.
    pub(super) metric: &'static str,
    /// What hears every event, too.
    pub(super) inner: S,
}

impl<S: Subscriber> Subscriber for Judged<S> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        if let Event::EpochEnd(end) = event {
            self.check(end)?;
        }
        self.inner.on_event(event)
    }
}

impl<S> Judged<S> {
    fn check(&self, end: &EpochEnd) -> Result<()> {
        let Self { model, metric, .. } = self;
        let names: Vec<&str> = end.val.iter().map(|logged| logged.name.as_str()).collect();
        if !names.contains(&LOSS) {
            return Err(Error::config(format!(
                "{model} does not log `{LOSS}` in validation, which a golden holds: it logs {}",
                listed(&names)
            )));
        }
        if names.contains(metric) {
            return Ok(());
        }
        let others: Vec<&str> = names.iter().copied().filter(|name| *name != LOSS).collect();
        let fix = match others.first() {
            Some(other) => {
                format!("name one that grows as the model gets better with `metric = \"{other}\"`")
            }
            None => "give it one, as `#[metric(accuracy, name = acc)]` logs `val_acc`".to_owned(),
        };
        Err(Error::config(format!(
            "{model} does not log `{metric}` in validation, the metric it is judged by: it logs \
             {}; {fix}",
            listed(&names)
        )))
    }
}

/// The names in backticks, or the word nothing.
fn listed(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}
